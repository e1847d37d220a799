"""Free memory of this process, given back to the machine.

gRPC has a copy of a whole state for each client that it is sent to, in pieces that lie between others; glibc keeps them when they
are freed.  It must not know what the memory was for.
"""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Callable

# After the last of what takes much memory: by then clients have read what was written to them.
WAIT_S = 3.0


def _malloc_trim() -> Callable[[], object]:
    """glibc's; other C libraries have none, and keep less."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return (lambda: trim(0)) if trim is not None else lambda: None


class Trimming:
    """Call `soon` after what takes much memory.  trim: gives back what is free; called in another thread, as it takes a while."""

    def __init__(self, trim: Callable[[], object] | None = None, *, wait_s: float = WAIT_S) -> None:
        self._trim = trim or _malloc_trim()
        self._wait_s = wait_s
        self._timer: asyncio.TimerHandle | None = None

    def soon(self) -> None:
        """Give back what is free, some time after the last call of this."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(self._wait_s, self._start)

    def _start(self) -> None:
        self._timer = None
        asyncio.get_running_loop().run_in_executor(None, self._trim)
