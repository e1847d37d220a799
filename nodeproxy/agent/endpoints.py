"""The HTTP listeners of a node: admin on a Unix socket and TCP, metrics, readiness."""

from __future__ import annotations

import os
from pathlib import Path

from aiohttp import web

from nodeproxy.agent.admin import SOCKET_FILE, Admin, write_token
from nodeproxy.agent.node import Node
from nodeproxy.observe.listeners import Listeners
from nodeproxy.observe.metrics import CONTENT_TYPE, CONTENT_TYPE_OPENMETRICS
from nodeproxy.settings import Address


class Endpoints(Listeners):
    """The listeners of a node."""

    async def serve_admin(self, admin: Admin, run_dir: Path, address: Address | None) -> None:
        """The Unix socket always, TCP if `address` is given."""
        runner = await self.runner(admin.application(None))
        path = run_dir / SOCKET_FILE
        path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            await web.UnixSite(runner, str(path)).start()
        finally:
            os.umask(before)
        token = write_token(run_dir)
        if address is not None:
            await self.listen_to("admin", address, admin.application(token))

    async def serve_metrics(self, node: Node, address: Address) -> None:
        """Prometheus' page, under both names that Istio's scrapers use."""

        async def metrics(request: web.Request) -> web.Response:
            await node.refresh_counters()
            openmetrics = "application/openmetrics-text" in request.headers.get("Accept", "")
            body = node.metrics.render(openmetrics)
            return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_OPENMETRICS if openmetrics else CONTENT_TYPE})

        await self.listen("metrics", address, [web.get("/metrics", metrics), web.get("/stats/prometheus", metrics)])
