"""A token bucket: so many at once, and so many a second after that.  It bounds requests, writes and log lines."""

from __future__ import annotations

import time
from collections.abc import Callable


class Bucket:
    """Full at first.  rate: what comes back in a second.  burst: what it holds.  clock: seconds, monotonic."""

    __slots__ = ("_burst", "_clock", "_level", "_rate", "_seen")

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._level = burst
        self._seen = clock()

    def take(self) -> bool:
        """Take one; False if there is none."""
        self._fill()
        if self._level < 1.0:
            return False
        self._level -= 1.0
        return True

    def wait_s(self) -> float:
        """How long until one can be taken."""
        self._fill()
        return max(0.0, (1.0 - self._level) / self._rate)

    def _fill(self) -> None:
        now = self._clock()
        self._level = min(self._burst, self._level + (now - self._seen) * self._rate)
        self._seen = now
