"""What is to be written to the store for a large mesh file, as little as can be told from the file alone.

With an index of the file as it was last applied, only pieces with new text are parsed.  Invariant: what then comes out is what
reading the whole file gives; whatever raises a doubt (an error, a name that is gone and may be referred to, an alias) has it read
whole, and only then an error is told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import Any

import msgspec

from nodeproxy.agent.sources.mesh_entries import RESOURCES, Entries
from nodeproxy.agent.sources.mesh_index import Keys, digest
from nodeproxy.agent.sources.mesh_split import Pieces, split
from nodeproxy.errors import ConfigError
from nodeproxy.model.delta import Delta, PodSpec
from nodeproxy.state.layout import decode_policy, decode_service, decode_workload, encode

_DECODE: dict[str, Callable[[bytes], Any]] = {
    "workloads": decode_workload,
    "services": decode_service,
    "policies": decode_policy,
}
_DELTA = 500  # resources that are in memory as objects at once: half a megabyte


class Scan(msgspec.Struct):
    """The outcome.

    parsed: resources to put, by list: (key, encoded).  removed: uids of workloads to remove.
    kept: keys of all resources by list, if what else is in the store is to go.
    index: the next index, None if the file can't be split.
    """

    pods: tuple[PodSpec, ...]
    parsed: dict[str, list[tuple[str, bytes]]]
    removed: tuple[str, ...] = ()
    kept: dict[str, Collection[str]] | None = None
    index: dict[str, Keys] | None = None

    def take_deltas(self) -> Iterator[Delta]:
        """What is to be put and removed, each of it once and then let go."""
        if self.removed:
            yield Delta(removed_workloads=self.removed)
        for name, keyed in self.parsed.items():
            keyed.sort(reverse=True)  # what is written in the order of keys takes two thirds of the pages
            while keyed:
                resources = tuple(_DECODE[name](encoded) for _, encoded in keyed[-_DELTA:])
                del keyed[-_DELTA:]
                yield Delta(**{name: resources})


def scan(path: str, content: bytes, index: dict[str, Keys] | None, progress: Callable[[int], None]) -> Scan:
    """Read a mesh file.  progress: is told the number of entries that were parsed so far, each.  Raises ConfigError."""
    pieces = split(content)
    digests = [] if pieces is None else [(name, digest(text)) for name, text in pieces.texts()]
    if len(set(digests)) != len(digests):
        pieces = None  # some entry is there twice
    if pieces is not None and index is not None:
        changed = _scan_changed(path, pieces, digests, index, progress)
        if changed is not None:
            return changed
    parsed, entries = _parse(path, progress)
    alone = entries.read(content)
    kept: dict[str, Collection[str]] = {name: entries.keys[name] for name in RESOURCES}
    found = Scan(tuple(entries.pods), parsed, kept=kept)
    if pieces is not None and alone:
        found.index = _index(digests, {name: list(keys) for name, keys in kept.items()}, {})
    return found


def _scan_changed(
    path: str, pieces: Pieces, digests: list[tuple[str, bytes]], index: dict[str, Keys], progress: Callable[[int], None]
) -> Scan | None:
    """By the pieces that are not in the index alone; None: that does not tell."""
    known: dict[str, list[str]] = {name: [] for name in RESOURCES}
    unknown = set()
    for number, (name, mark) in enumerate(digests):
        key = index[name].get(mark)
        if key is None:
            unknown.add(number)
        else:
            known[name].append(key)
    parsed, entries = _parse(path, progress, known)
    try:
        if not entries.read(pieces.only(unknown)):
            return None
    except ConfigError:
        return None
    gone = {name: index[name].values() - entries.keys[name].keys() for name in RESOURCES}
    if gone["services"] or gone["policies"]:
        return None  # an entry that was not parsed may refer to it
    new = {name: list(entries.keys[name])[len(known[name]) :] for name in RESOURCES}
    following = _index(digests, new, index)
    if following is None:
        return None
    return Scan(tuple(entries.pods), parsed, removed=tuple(gone["workloads"]), index=following)


def _parse(
    path: str, progress: Callable[[int], None], known: dict[str, list[str]] | None = None
) -> tuple[dict[str, list[tuple[str, bytes]]], Entries]:
    parsed: dict[str, list[tuple[str, bytes]]] = {name: [] for name in RESOURCES}
    count = 0

    def take(name: str, key: str, resource: msgspec.Struct) -> None:
        nonlocal count
        parsed[name].append((key, encode(resource)))
        count += 1
        progress(count)

    return parsed, Entries(path, take, known)


def _index(digests: list[tuple[str, bytes]], parsed: dict[str, list[str]], known: dict[str, Keys]) -> dict[str, Keys] | None:
    """The keys of all pieces: of those known, and of those parsed, in their order.  None: that are not as many."""
    unknown = Counter(name for name, mark in digests if mark not in known.get(name, ()))
    if any(unknown[name] != len(parsed[name]) for name in RESOURCES):
        return None
    following = {name: iter(keys) for name, keys in parsed.items()}
    index: dict[str, Keys] = {name: {} for name in RESOURCES}
    for name, mark in digests:
        key = known[name].get(mark) if name in known else None
        index[name][mark] = next(following[name]) if key is None else key
    return index
