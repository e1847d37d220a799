from __future__ import annotations

import asyncio
import os
import threading

import pytest

from nodeproxy.agent.in_thread import in_thread


def test_what_a_thread_opens_for_who_is_cancelled_is_closed() -> None:
    """As an agent that hands over is cancelled while pods are prepared."""

    async def scenario() -> None:
        began, go_on = threading.Event(), threading.Event()

        def work() -> int:
            began.set()
            go_on.wait(30)
            return os.open("/dev/null", os.O_RDONLY)

        descriptors = len(os.listdir("/proc/self/fd"))
        asking = asyncio.create_task(in_thread(work, os.close))
        await asyncio.to_thread(began.wait, 30)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        go_on.set()
        async with asyncio.timeout(10):
            while len(os.listdir("/proc/self/fd")) > descriptors:
                await asyncio.sleep(0.001)
        kept = await in_thread(lambda: os.open("/dev/null", os.O_RDONLY), os.close)
        os.fstat(kept)
        os.close(kept)

    asyncio.run(scenario())


def test_what_fails_is_raised_and_nobody_is_told_of_it_who_was_cancelled() -> None:
    async def scenario() -> None:
        go_on = threading.Event()

        def work() -> int:
            go_on.wait(30)
            raise OSError("no")

        asking = asyncio.create_task(in_thread(work, os.close))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        go_on.set()
        with pytest.raises(OSError, match="no"):
            await in_thread(work, os.close)

    asyncio.run(scenario())
