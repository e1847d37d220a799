"""HTTP listeners of a process: metrics, and whether it is ready.  They must not know what is measured, nor what is waited for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aiohttp import web

from nodeproxy.errors import ConfigError
from nodeproxy.settings import Address


class Listeners:
    """Started once, stopped once."""

    def __init__(self) -> None:
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
            await web.TCPSite(runner, *address).start()
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
        for runner in self._runners:
            await runner.cleanup()
