"""An event loop in a thread of its own, for what a test lets run while it goes on, in plain calls, itself."""

from __future__ import annotations

import asyncio
import gc
import threading
import warnings
from collections.abc import Callable, Coroutine
from typing import Any


class Background:
    """`main` runs until `stop`, which sets the event that it is given; it returns when it has ended all that it began."""

    def __init__(self, name: str, main: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> None:
        self._main = main
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        if self._loop is not None and self._stop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)
        assert not self._thread.is_alive(), f"{self._thread.name} does not end"
        if self.error is not None:
            raise self.error

    def call(self, function: Callable[[], None]) -> None:
        """In its thread; returns when it is done."""
        assert self._loop is not None
        done = threading.Event()
        self._loop.call_soon_threadsafe(lambda: (function(), done.set()))
        assert done.wait(30)

    def _run(self) -> None:
        async def main() -> None:
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            await self._main(self._stop)

        try:
            asyncio.run(main())
        except BaseException as exc:  # it is the test's: `stop` raises it
            self.error = exc
        # Where a server was killed, asyncio leaves the socket of a TLS handshake that broke off to the collector, which closes it
        # with a warning, in whatever test it comes.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
