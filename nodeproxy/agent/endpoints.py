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

    async def serve_admin_socket(self, admin: Admin, run_dir: Path, token: str) -> None:
        """The Unix socket, and the token for TCP beside it, each in place of an agent's before at once."""
        runner = await self.runner(admin.application(None))
        path = run_dir / SOCKET_FILE
        beside = path.with_suffix(".new")
        beside.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            await web.UnixSite(runner, str(beside)).start()
        finally:
            os.umask(before)
        beside.rename(path)
        write_token(run_dir, token)

    async def serve_admin(self, admin: Admin, address: Address, token: str) -> None:
        """The same over TCP."""
        await self.listen_to("admin", address, admin.application(token))

    async def serve_metrics(self, node: Node, address: Address) -> None:
        """Prometheus' page, under both names that Istio's scrapers use."""

        async def metrics(request: web.Request) -> web.Response:
            await node.refresh_counters()
            openmetrics = "application/openmetrics-text" in request.headers.get("Accept", "")
            body = node.metrics.render(openmetrics)
            return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_OPENMETRICS if openmetrics else CONTENT_TYPE})

        await self.listen("metrics", address, [web.get("/metrics", metrics), web.get("/stats/prometheus", metrics)])
