"""How long to wait before the next attempt to connect.  Knows neither clock nor chance: both are passed in."""

from __future__ import annotations

# protocols of Istio ambient, "xDS": back-off 10 ms to 15 s.
FIRST_S = 0.010
MAX_S = 15.0
# A stream that lived so long was a good one.  A shorter life does not count as success: a source that flaps each second would
# cost as much as one that is well, all the time.
GOOD_S = MAX_S


class Backoff:
    """Doubles from `FIRST_S` to `MAX_S` with each round over all addresses; half of each wait is by chance."""

    def __init__(self, addresses: int) -> None:
        self._addresses = addresses
        self._attempts = 0

    def wait_s(self, lived_s: float, jitter: float) -> float:
        """After a stream, or an attempt at one.  lived_s: how long it was of use.  jitter: 0.0 to 1.0, by chance."""
        if lived_s >= GOOD_S:
            self._attempts = 0
        rounds = self._attempts // self._addresses
        self._attempts += 1
        return min(FIRST_S * 2.0 ** min(rounds, 16), MAX_S) * (0.5 + jitter / 2)
