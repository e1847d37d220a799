"""What was in a large mesh file when it was last applied: for each piece of its text, the key of the entry that it is.

A piece whose text is known need not be parsed again.  It is a cache: without it the file is read whole.
Invariant: an index is believed only if the store says that the state which it belongs to was written, and if the very same code
reads the file.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import ModuleType

import msgspec
import yaml

from nodeproxy.agent.sources import mesh_entries, mesh_schema, mesh_split, yaml_nodes, yaml_stream
from nodeproxy.model import policy, workload
from nodeproxy.policy import address
from nodeproxy.state import layout

META = "mesh_index"  # key of the store's meta table: the digest of the index that belongs to the state
_FILE = "mesh.index"  # beside the store's own files
_DIGEST_BYTES = 16
_CODE: tuple[ModuleType, ...] = (
    mesh_entries, mesh_schema, mesh_split, yaml_nodes, yaml_stream, policy, workload, address, layout
)  # fmt: skip

Keys = dict[bytes, str]  # digest of a piece → key of its entry


def digest(text: bytes) -> bytes:
    """What a text is known by."""
    return hashlib.blake2b(text, digest_size=_DIGEST_BYTES).digest()


class _File(msgspec.Struct, array_like=True):
    """digests: those of a list's pieces, one after the other; keys: in the same order."""

    code: bytes
    digests: dict[str, bytes]
    keys: dict[str, list[str]]


def read_index(store: Path, expected: bytes | None) -> dict[str, Keys] | None:
    """The index by list, None if there is none that can be believed.  expected: what the store has under `META`."""
    if expected is None:
        return None
    try:
        content = (store / _FILE).read_bytes()
        code = _code()
    except OSError:
        return None
    if digest(content) != expected:
        return None
    file = msgspec.msgpack.decode(content, type=_File)
    if file.code != code:
        return None
    return {name: dict(zip(_cut(file.digests[name]), keys, strict=True)) for name, keys in file.keys.items()}


def write_index(store: Path, index: dict[str, Keys]) -> bytes | None:
    """Keep an index; what the store is to have under `META`.  None: it could not be kept."""
    digests = {name: b"".join(keys) for name, keys in index.items()}
    try:
        content = msgspec.msgpack.encode(_File(_code(), digests, {name: list(keys.values()) for name, keys in index.items()}))
        beside = store / f"{_FILE}.new"
        beside.write_bytes(content)
        os.replace(beside, store / _FILE)
    except OSError:
        return None
    return digest(content)


def _cut(digests: bytes) -> list[bytes]:
    return [digests[at : at + _DIGEST_BYTES] for at in range(0, len(digests), _DIGEST_BYTES)]


def _code() -> bytes:
    """What tells one version of the code that reads entries from another.  Raises OSError."""
    sources = [Path(module.__file__ or "").read_bytes() for module in _CODE]
    return digest(b"".join([*sources, yaml.__version__.encode()]))
