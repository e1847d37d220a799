"""The names that the source is asked for on demand: on whose account, since when, answered or not, and when last used.

Invariant: there are at most `MAX_NAMES` that may be let go; who has the most of them makes room.  What is pinned (the node's own
pods) is not counted and stays.  Knows neither the state nor the source.
"""

from __future__ import annotations

from collections.abc import Iterator

# A name takes some 0.4 KB here and in the store, and about as much in the control plane for each node.
MAX_NAMES = 16_384
# Room is made for so many at once: each time readers forget what hangs on what was let go.
ROOM = 256


class Asked:
    """One name.  answered: when the source last said who has it, 0.0 if it has not; absent: nobody.

    asked, used: when it was last asked for, and when a decision last hung on it.  waiting: who is to be told.
    whole: it is a service, whose endpoints came with it.
    """

    __slots__ = ("absent", "answered", "asked", "name", "owner", "pinned", "used", "waiting", "whole")

    def __init__(self, name: str, owner: str, now: float, *, pinned: bool = False) -> None:
        self.name = name
        self.owner = owner
        self.pinned = pinned
        self.asked = self.used = now
        self.answered = 0.0
        self.absent = False
        self.whole = False
        self.waiting: set[int] = set()


class AskedNames:
    """All of them."""

    def __init__(self) -> None:
        self._names: dict[str, Asked] = {}
        self._owners: dict[str, dict[str, None]] = {}  # without what is pinned; the least recently used first

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[Asked]:
        return iter(list(self._names.values()))

    def get(self, name: str) -> Asked | None:
        """What is known of a name."""
        return self._names.get(name)

    def add(self, name: str, owner: str, now: float) -> Asked:
        """A name is asked for, on this account."""
        asked = self._names[name] = Asked(name, owner, now)
        self._owners.setdefault(owner, {})[name] = None
        return asked

    def pin(self, name: str, now: float) -> Asked:
        """A name stays, whether it was asked for before or not."""
        asked = self._names.get(name)
        if asked is None:
            asked = self._names[name] = Asked(name, "", now, pinned=True)
        elif not asked.pinned:
            self._leave_owner(asked)
            asked.pinned = True
        return asked

    def unpin(self, asked: Asked) -> None:
        """It may be let go like any other."""
        if asked.pinned:
            asked.pinned = False
            self._owners.setdefault(asked.owner, {})[asked.name] = None

    def use(self, asked: Asked, now: float) -> None:
        """A decision hangs on it."""
        asked.used = now
        if not asked.pinned:
            mine = self._owners[asked.owner]
            del mine[asked.name]
            mine[asked.name] = None

    def remove(self, name: str) -> Asked | None:
        """It is not asked for any more."""
        asked = self._names.pop(name, None)
        if asked is not None and not asked.pinned:
            self._leave_owner(asked)
        return asked

    def restore(self, asked: Asked) -> None:
        """It could not be let go, and stays, unless it was asked for anew meanwhile."""
        if asked.name not in self._names:
            self._names[asked.name] = asked
            self._owners.setdefault(asked.owner, {})[asked.name] = None

    def to_make_room(self) -> list[str]:
        """The names that must go before another one comes: mostly none."""
        if sum(map(len, self._owners.values())) < MAX_NAMES:
            return []
        most = max(self._owners.values(), key=len)
        return [name for name, _ in zip(most, range(ROOM), strict=False)]

    def _leave_owner(self, asked: Asked) -> None:
        mine = self._owners[asked.owner]
        del mine[asked.name]
        if not mine:
            del self._owners[asked.owner]
