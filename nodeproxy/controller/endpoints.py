"""The controller's metrics over HTTP."""

from __future__ import annotations

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from nodeproxy.observe.listeners import Listeners
from nodeproxy.settings import Address


class Endpoints(Listeners):
    """The listeners of a replica."""

    async def serve_metrics(self, registry: CollectorRegistry, address: Address) -> None:
        """Prometheus' page.  Raises ConfigError if the address can't be had."""

        async def metrics(request: web.Request) -> web.Response:
            return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

        await self.listen("metrics", address, [web.get("/metrics", metrics)])
