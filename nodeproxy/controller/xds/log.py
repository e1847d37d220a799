"""In which order names changed, for readers that are each at a place of their own.

Invariants: revisions rise; a name is read once, at its latest change, however often it changed since the reader's place; the log
holds no more entries than twice the names in it (and a little).  It must not know what a name stands for.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import islice

# Entries that newer ones have replaced are dropped when they are the half of the log.
_MIN_COMPACT = 1024


class ChangeLog:
    """Names by the revision of their latest change."""

    def __init__(self) -> None:
        # Three lists and not one of tuples: 24 bytes an entry instead of 80.
        self._revisions: list[int] = []
        self._names: list[str] = []
        self._times: list[float] = []
        self._latest: dict[str, int] = {}

    def __len__(self) -> int:
        """How many names are in it."""
        return len(self._latest)

    def append(self, revision: int, name: str, now: float) -> None:
        """A name changed.  now: seconds, of any clock."""
        self._revisions.append(revision)
        self._names.append(name)
        self._times.append(now)
        self._latest[name] = revision
        if len(self._names) > 2 * len(self._latest) + _MIN_COMPACT:
            self._compact()

    def between(self, after: int, up_to: int) -> Iterator[tuple[int, str]]:
        """(revision, name), oldest first.  A name that changed again after `up_to` is left to that change."""
        begin, stop = bisect_right(self._revisions, after), bisect_right(self._revisions, up_to)
        if stop <= begin:
            return
        latest = self._latest
        for revision, name in zip(islice(self._revisions, begin, stop), islice(self._names, begin, stop), strict=True):
            if latest[name] == revision:
                yield revision, name

    def count(self, after: int, up_to: int) -> int:
        """How many names `between` tells, at most."""
        return min(len(self._latest), max(0, bisect_right(self._revisions, up_to) - bisect_right(self._revisions, after)))

    def time(self, revision: int) -> float:
        """When a change was made that the log still has."""
        return self._times[bisect_left(self._revisions, revision)]

    def middle(self) -> int:
        """A revision before which about half of the log lies."""
        return self._revisions[len(self._revisions) // 2]

    def drop(self, up_to: int) -> None:
        """Forget the changes up to a revision."""
        count = bisect_right(self._revisions, up_to)
        for revision, name in zip(islice(self._revisions, count), islice(self._names, count), strict=True):
            if self._latest[name] == revision:
                del self._latest[name]
        del self._revisions[:count], self._names[:count], self._times[:count]

    def _compact(self) -> None:
        latest = self._latest
        kept = [index for index, name in enumerate(self._names) if latest[name] == self._revisions[index]]
        self._revisions = [self._revisions[index] for index in kept]
        self._names = [self._names[index] for index in kept]
        self._times = [self._times[index] for index in kept]
