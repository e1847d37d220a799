"""The HTTP listeners of a node: admin on a Unix socket and TCP, metrics, readiness."""

from __future__ import annotations

import os
from pathlib import Path

from aiohttp import web

from nodeproxy.agent.admin import SOCKET_FILE, Admin, write_token
from nodeproxy.agent.node import Node
from nodeproxy.errors import ConfigError
from nodeproxy.observe.metrics import CONTENT_TYPE, CONTENT_TYPE_OPENMETRICS

Address = tuple[str, int]


class Endpoints:
    """Started once, stopped once."""

    def __init__(self) -> None:
        self._runners: list[web.AppRunner] = []

    async def serve_admin(self, admin: Admin, run_dir: Path, address: Address | None) -> None:
        """The Unix socket always, TCP if `address` is given."""
        runner = await self._runner(admin.application(None))
        path = run_dir / SOCKET_FILE
        path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            await web.UnixSite(runner, str(path)).start()
        finally:
            os.umask(before)
        token = write_token(run_dir)
        if address is not None:
            await self._listen(admin.application(token), address, "admin")

    async def serve_metrics(self, node: Node, address: Address) -> None:
        """Prometheus' page, under both names that Istio's scrapers use."""

        async def metrics(request: web.Request) -> web.Response:
            await node.refresh_counters()
            openmetrics = "application/openmetrics-text" in request.headers.get("Accept", "")
            body = node.metrics.render(openmetrics)
            return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_OPENMETRICS if openmetrics else CONTENT_TYPE})

        app = web.Application()
        app.add_routes([web.get("/metrics", metrics), web.get("/stats/prometheus", metrics)])
        await self._listen(app, address, "metrics")

    async def serve_ready(self, node: Node, address: Address) -> None:
        """200 when nothing is pending, else 500 with what is; `/healthz/live` answers as long as the agent's loop runs."""

        async def ready(request: web.Request) -> web.Response:
            pending = node.pending()
            return web.Response(text="".join(f"{each}\n" for each in pending) or "ready\n", status=500 if pending else 200)

        async def live(request: web.Request) -> web.Response:
            return web.Response(text="live\n")

        app = web.Application()
        app.add_routes([web.get("/healthz/ready", ready), web.get("/healthz/live", live)])
        await self._listen(app, address, "ready")

    async def stop(self) -> None:
        """Close every listener."""
        for runner in self._runners:
            await runner.cleanup()

    async def _listen(self, app: web.Application, address: Address, setting: str) -> None:
        runner = await self._runner(app)
        try:
            await web.TCPSite(runner, *address).start()
        except OSError as error:
            raise ConfigError(
                f"--{setting} {address[0]}:{address[1]}: {error.strerror}; give another address, or `off`"
            ) from error

    async def _runner(self, app: web.Application) -> web.AppRunner:
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        self._runners.append(runner)
        return runner
