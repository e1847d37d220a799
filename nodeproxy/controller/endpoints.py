"""The controller's HTTP listeners: metrics and readiness.  They must not know what is measured, nor what is waited for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from nodeproxy.errors import ConfigError
from nodeproxy.settings import Address


class Endpoints:
    """Started once, stopped once."""

    def __init__(self) -> None:
        self._runners: list[web.AppRunner] = []

    async def serve_metrics(self, registry: CollectorRegistry, address: Address) -> None:
        """Prometheus' page.  Raises ConfigError if the address can't be had."""

        async def metrics(request: web.Request) -> web.Response:
            return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

        await self._listen("metrics", address, [web.get("/metrics", metrics)])

    async def serve_ready(self, pending: Callable[[], Sequence[str]], address: Address) -> None:
        """200 when nothing is pending, else 500 with what is; `/healthz/live` answers as long as the loop runs."""

        async def ready(request: web.Request) -> web.Response:
            waits = pending()
            return web.Response(text="".join(f"{each}\n" for each in waits) or "ready\n", status=500 if waits else 200)

        async def live(request: web.Request) -> web.Response:
            return web.Response(text="live\n")

        await self._listen("ready", address, [web.get("/healthz/ready", ready), web.get("/healthz/live", live)])

    async def stop(self) -> None:
        """Close every listener."""
        for runner in self._runners:
            await runner.cleanup()

    async def _listen(self, setting: str, address: Address, routes: Sequence[web.RouteDef]) -> None:
        application = web.Application()
        application.add_routes(routes)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        self._runners.append(runner)
        try:
            await web.TCPSite(runner, *address).start()
        except OSError as exc:
            raise ConfigError(f"--{setting} {address}: {exc.strerror}; give another address, or `off`") from exc
