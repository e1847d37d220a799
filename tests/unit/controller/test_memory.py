from __future__ import annotations

import asyncio
import threading

from nodeproxy.controller.memory import Trimming


def test_what_is_free_is_given_back_once_after_the_last_call() -> None:
    async def scenario() -> None:
        trimmed = asyncio.Event()
        loop = asyncio.get_running_loop()
        threads: list[threading.Thread] = []

        def trim() -> None:
            threads.append(threading.current_thread())
            loop.call_soon_threadsafe(trimmed.set)

        trimming = Trimming(trim, wait_s=0.01)
        for _ in range(5):
            trimming.soon()
        await asyncio.wait_for(trimmed.wait(), 5)
        assert len(threads) == 1
        assert threads[0] is not threading.main_thread()

    asyncio.run(scenario())


def test_the_c_librarys_own_can_be_called() -> None:
    async def scenario() -> None:
        Trimming(wait_s=0).soon()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(scenario())
