"""What `nodeproxy check` asks, asked by a running agent of its own machine and with its own capabilities.

Invariant: whoever may read can't keep the agent busy with it: it is looked at again only when the last look is some seconds old
(a look takes 1 to 6 ms).
"""

from __future__ import annotations

import time
from collections.abc import Callable

from nodeproxy.kernel import preflight as kernel
from nodeproxy.linux import preflight as linux
from nodeproxy.model.requirement import Requirement

_KEPT_S = 5.0  # what changes here is changed by people


def _look() -> list[Requirement]:
    return [*linux.rows(), *kernel.rows()]


class Checks:
    """`look` and `clock` (monotonic seconds) are passed in by tests."""

    def __init__(self, look: Callable[[], list[Requirement]] = _look, clock: Callable[[], float] = time.monotonic) -> None:
        self._look, self._clock = look, clock
        self._rows: list[Requirement] = []
        self._looked_at = 0.0

    def rows(self) -> list[Requirement]:
        """A row for each requirement."""
        now = self._clock()
        if not self._rows or now - self._looked_at >= _KEPT_S:
            self._rows, self._looked_at = self._look(), now
        return self._rows
