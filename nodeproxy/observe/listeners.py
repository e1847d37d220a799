"""HTTP listeners of a process: metrics, and whether it is ready.  They must not know what is measured, nor what is waited for."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Sequence

from aiohttp import web

from nodeproxy.errors import ConfigError
from nodeproxy.settings import Address

_POLL_S = 0.1


class Listeners:
    """Started, and stopped."""

    def __init__(self, comes: Callable[[], bool] = lambda: False) -> None:
        """comes: whether an address that somebody has will be free in a moment."""
        self._comes = comes
        self._runners: list[web.AppRunner] = []

    async def serve_ready(self, pending: Callable[[], Sequence[str]], address: Address) -> None:
        """200 when nothing is pending, else 500 with what is; `/healthz/live` answers as long as the loop runs."""

        async def ready(request: web.Request) -> web.Response:
            waits = pending()
            return web.Response(text="".join(f"{each}\n" for each in waits) or "ready\n", status=500 if waits else 200)

        async def live(request: web.Request) -> web.Response:
            return web.Response(text="live\n")

        await self.listen("ready", address, [web.get("/healthz/ready", ready), web.get("/healthz/live", live)])

    async def listen(self, setting: str, address: Address, routes: Sequence[web.AbstractRouteDef]) -> None:
        """Serve `routes`.  setting: the option that gave the address.  Raises ConfigError if it can't be had."""
        application = web.Application()
        application.add_routes(routes)
        await self.listen_to(setting, address, application)

    async def listen_to(self, setting: str, address: Address, application: web.Application) -> None:
        """As `listen`."""
        runner = await self.runner(application)
        try:
            while not await self._listens(runner, address):
                await asyncio.sleep(_POLL_S)
        except OSError as exc:
            raise ConfigError(f"--{setting} {address}: {exc.strerror}; give another address, or `off`") from exc

    async def runner(self, application: web.Application) -> web.AppRunner:
        """An application that listens nowhere yet."""
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        self._runners.append(runner)
        return runner

    async def stop(self) -> None:
        """Close every listener."""
        runners, self._runners = self._runners, []
        for runner in runners:
            await runner.cleanup()

    async def _listens(self, runner: web.AppRunner, address: Address) -> bool:
        try:
            await web.TCPSite(runner, *address).start()
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE or not self._comes():
                raise
            return False
        return True
