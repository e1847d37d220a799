"""Work in a thread whose result must be let go of.

Invariant: what was opened is somebody's, or is let go of, also when whoever asked for it has been cancelled meanwhile: the thread
goes on then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


async def in_thread(work: Callable[[], _T], let_go: Callable[[_T], None]) -> _T:
    """What `work` returns.  let_go: called with that if nobody waits for it any more."""
    made = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(made)
    except asyncio.CancelledError:
        made.add_done_callback(lambda made: None if made.cancelled() or made.exception() else let_go(made.result()))
        raise
