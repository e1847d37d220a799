"""Reads a large mesh file and writes it to the store: a child process, for the memory that this takes ends with it.

    python -m nodeproxy.agent.sources.mesh_loader FILE STORE TRIED

TRIED is the digest of the content that was tried last, or "".  Reports go to stdout, the order and the leave come from stdin,
each a length of 4 bytes and msgpack.  Nothing is written before the file is read whole and the order has come: with it the
agent lends its place as the store's writer.  What the agent is to keep for itself comes with the order, for the same transaction,
which is committed when the agent, told what it touches, has given leave.
"""

from __future__ import annotations

import gc
import hashlib
import os
import struct
import sys
import time
from pathlib import Path
from typing import BinaryIO

import msgspec

from nodeproxy.agent.sources import mesh_index
from nodeproxy.agent.sources.mesh_file import read_mesh
from nodeproxy.agent.sources.mesh_scan import Scan, scan
from nodeproxy.errors import ConfigError, StateError
from nodeproxy.linux.process import die_with_parent
from nodeproxy.model.delta import PodSpec
from nodeproxy.state.changes import Touched
from nodeproxy.state.reader import StateReader
from nodeproxy.state.store import StateWriter

_PROGRESS_S = 2.0
_PROGRESS_ENTRIES = 1000  # the clock is looked at once in so many
HEADER = struct.Struct(">I")


class Progress(msgspec.Struct, tag=True):
    """So many entries were parsed."""

    entries: int


class Unchanged(msgspec.Struct, tag=True):
    """The content is what was tried last."""


class Refused(msgspec.Struct, tag=True):
    """The file is wrong.  tried: what to take for tried now."""

    reason: str
    tried: str


class Parsed(msgspec.Struct, tag=True):
    """The file is good.  entries: how many of it were parsed, for the rest was known."""

    pods: tuple[PodSpec, ...]
    entries: int
    tried: str


class Write(msgspec.Struct):
    """The order to write it."""

    meta: dict[str, bytes | None]


class Touching(msgspec.Struct, tag=True):
    """All is written, and waits to be committed until the agent gives leave by an empty message: it may have to do something
    before anybody sees this."""

    touched: Touched


class Written(msgspec.Struct, tag=True):
    """It is in the store."""


class Unwritten(msgspec.Struct, tag=True):
    """Nothing of it is in the store."""

    reason: str


Report = Progress | Unchanged | Refused | Parsed | Touching | Written | Unwritten


def send(stream: BinaryIO, message: msgspec.Struct) -> None:
    """Write one message."""
    data = msgspec.msgpack.encode(message)
    stream.write(HEADER.pack(len(data)) + data)
    stream.flush()


def main(arguments: list[str]) -> int:
    """The child's whole life."""
    die_with_parent()
    gc.disable()  # it would walk millions of objects for cycles that nothing here makes
    path, store, tried = arguments
    scanned = _read(path, Path(store), tried)
    header = sys.stdin.buffer.read(HEADER.size) if scanned is not None else b""
    if scanned is None or not header:
        return 0
    (length,) = HEADER.unpack(header)
    order = msgspec.msgpack.decode(sys.stdin.buffer.read(length), type=Write)
    try:
        _write(Path(store), scanned, order)
    except StateError as exc:
        send(sys.stdout.buffer, Unwritten(str(exc)))
    else:
        send(sys.stdout.buffer, Written())
    return 0


def _read(path: str, store: Path, tried: str) -> Scan | None:
    """Read the file and report; None: there is nothing to write."""
    try:
        content = read_mesh(path)
    except ConfigError as exc:
        send(sys.stdout.buffer, Unchanged() if str(exc) == tried else Refused(str(exc), str(exc)))
        return None
    digest = hashlib.blake2b(content).hexdigest()
    if digest == tried:
        send(sys.stdout.buffer, Unchanged())
        return None
    reader = StateReader(store)
    try:
        index = mesh_index.read_index(store, reader.get_meta(mesh_index.META))
    finally:
        reader.close()
    try:
        scanned = scan(path, content, index, _Teller().tell)
    except ConfigError as exc:
        send(sys.stdout.buffer, Refused(str(exc), digest))
        return None
    send(sys.stdout.buffer, Parsed(scanned.pods, sum(map(len, scanned.parsed.values())), digest))
    return scanned


def _write(store: Path, scanned: Scan, order: Write) -> None:
    """Raises StateError."""
    mark = None if scanned.index is None else mesh_index.write_index(store, scanned.index)
    scanned.index = None
    writer = StateWriter(store, lent=True, before_commit=_wait_for_leave)
    try:
        writer.rewrite(scanned.take_deltas(), scanned.kept, {**order.meta, mesh_index.META: mark})
    finally:
        writer.close()


def _wait_for_leave(touched: Touched) -> None:
    send(sys.stdout.buffer, Touching(touched))
    if len(sys.stdin.buffer.read(HEADER.size)) < HEADER.size:
        raise StateError("the agent has ended before it gave leave to commit")


class _Teller:
    """Tells how far the reading is."""

    def __init__(self) -> None:
        self._next = time.monotonic() + _PROGRESS_S

    def tell(self, entries: int) -> None:
        if entries % _PROGRESS_ENTRIES == 0 and time.monotonic() >= self._next:
            self._next = time.monotonic() + _PROGRESS_S
            send(sys.stdout.buffer, Progress(entries))


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))  # at once: what it has in memory need not be taken apart
