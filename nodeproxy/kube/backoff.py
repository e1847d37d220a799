"""How long to wait before asking again: doubling, with jitter, so that many who failed together do not come back together.

Invariant: a wait is never longer than the cap or, if that is longer, than what the server asked for, up to `MAX_ASKED_S`.
It must not know what is repeated.
"""

from __future__ import annotations

from collections.abc import Callable

MAX_ASKED_S = 60.0  # a server that asks for more is mistaken; the API server asks for 1 s


class Backoff:
    """The waits of one caller.  random: 0 to 1, as `random.random`."""

    def __init__(self, random: Callable[[], float], *, first_s: float = 0.2, cap_s: float = 10.0) -> None:
        self._random = random
        self._first_s = first_s
        self._cap_s = cap_s
        self._next_s = first_s

    def next_s(self, asked_s: float | None = None) -> float:
        """How long to wait now: half to all of the current step, or, on top of what the server asked for, up to that step."""
        step = self._next_s
        self._next_s = min(step * 2, self._cap_s)
        if asked_s is not None:
            return min(asked_s, MAX_ASKED_S) + step * self._random()
        return step * (0.5 + self._random() / 2)

    def reset(self) -> None:
        """It works again: the next wait is the first."""
        self._next_s = self._first_s
