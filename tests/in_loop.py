"""A test that is a coroutine."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable

DEADLINE_S = 10.0


def in_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run it in an event loop of its own, for a bounded time."""

    @functools.wraps(test)
    def run(*arguments: object, **named: object) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(DEADLINE_S):
                await test(*arguments, **named)

        asyncio.run(bounded())

    return run
