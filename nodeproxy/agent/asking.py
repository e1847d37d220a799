"""Whose question is asked next: a queue for each asker, served in turn and at a bounded pace.

Invariant: an asker is never asked for faster than its own pace, nor all of them faster than theirs together, and what waits of
each is bounded: so one that asks for every address there is delays nobody but itself.  It must not know what is asked for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

# A pod that comes up connects to some tens of places at once, a crawler to a hundred new ones a second; a scanner to thousands.
BURST_OF_ASKER, PACE_OF_ASKER = 200.0, 100.0
# A control plane answers some thousands a second, and has many nodes.
BURST, PACE = 1000.0, 500.0
# Who comes behind so many waits longer than a connection does.
MAX_WAITING = 256
# Between two askings: several names in one request cost less.
_COARSE_S = 0.005


class Bucket:
    """So many at once, and then so many a second."""

    __slots__ = ("_at", "_burst", "_left", "_pace")

    def __init__(self, burst: float, pace: float, now: float) -> None:
        self._burst, self._pace = burst, pace
        self._left, self._at = burst, now

    def has_one(self, now: float) -> bool:
        """Whether one may be taken."""
        self._left = min(self._burst, self._left + (now - self._at) * self._pace)
        self._at = now
        return self._left >= 1.0

    def take(self) -> None:
        """Take one, which there is."""
        self._left -= 1.0

    def delay_s(self) -> float:
        """Until there is one."""
        return max(0.0, (1.0 - self._left) / self._pace)

    def is_full(self, now: float) -> bool:
        """Nothing of it is known that a new one would not know."""
        self.has_one(now)
        return self._left >= self._burst


class Asking:
    """Names that wait to be asked for.  clock: in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._all = Bucket(BURST, PACE, clock())
        self._buckets: dict[str, Bucket] = {}
        self._waiting: dict[str, deque[str]] = {}  # in the order of their turns

    def put(self, asker: str, name: str) -> bool:
        """Have a name wait; False: this asker has as many waiting as it may."""
        waiting = self._waiting.setdefault(asker, deque())
        if len(waiting) >= MAX_WAITING:
            return False
        waiting.append(name)
        return True

    def take(self) -> list[tuple[str, str]]:
        """What may be asked for now: (asker, name), the askers in turn."""
        now = self._clock()
        found: list[tuple[str, str]] = []
        resting: dict[str, deque[str]] = {}
        while self._waiting and self._all.has_one(now):
            asker = next(iter(self._waiting))
            waiting = self._waiting.pop(asker)
            bucket = self._buckets.get(asker)
            if bucket is None:
                bucket = self._buckets[asker] = Bucket(BURST_OF_ASKER, PACE_OF_ASKER, now)
            if not bucket.has_one(now):
                resting[asker] = waiting
                continue
            bucket.take()
            self._all.take()
            found.append((asker, waiting.popleft()))
            if waiting:
                self._waiting[asker] = waiting  # behind all others
        self._waiting.update(resting)
        return found

    def delay_s(self) -> float | None:
        """After `take`: when to call it again; None: nothing waits."""
        if not self._waiting:
            return None
        of_askers = [bucket.delay_s() if (bucket := self._buckets.get(asker)) is not None else 0.0 for asker in self._waiting]
        return max(self._all.delay_s(), min(of_askers), _COARSE_S)

    def forget_idle(self) -> None:
        """Let go of askers who are as if they had never asked."""
        now = self._clock()
        for asker, bucket in list(self._buckets.items()):
            if asker not in self._waiting and bucket.is_full(now):
                del self._buckets[asker]

    @property
    def count(self) -> int:
        """How many wait."""
        return sum(map(len, self._waiting.values()))
