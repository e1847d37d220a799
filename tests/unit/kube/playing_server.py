"""An HTTP server that plays an API server's part as a test says: one script a request, so that every fault can be had.

It keeps what was asked.  A test fails if more is asked for than there are scripts: then the server answers 503, and says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

Script = Callable[[web.Request], Awaitable[web.StreamResponse]]
PATH = "/api/v1/things"


class PlayingServer:
    """lists, watches: what answers the next ones, in turn.  others: by path.  asked: method, path and query of each request."""

    def __init__(self, folder: Path) -> None:
        self.lists: deque[Script] = deque()
        self.watches: deque[Script] = deque()
        self.others: dict[str, Script] = {}
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.headers: list[dict[str, str]] = []
        self.kubeconfig = folder / "kubeconfig"
        self.token_file = folder / "token"
        self.token_file.write_text("first\n")

    def queries(self, *, watch: bool) -> list[dict[str, str]]:
        """What lists, or watches, were asked for."""
        return [query for _, path, query in self.asked if path == PATH and ("watch" in query) == watch]

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.method, request.path, dict(request.query)))
        self.headers.append(dict(request.headers))
        if request.path in self.others:
            return await self.others[request.path](request)
        scripts = self.watches if "watch" in request.query else self.lists
        if request.path != PATH:
            return failure(404, "there is no such path")
        if not scripts:
            return failure(503, "the script is over")
        return await scripts.popleft()(request)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        application = web.Application(client_max_size=1 << 20)
        application.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.01)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.write_kubeconfig(f"http://127.0.0.1:{runner.addresses[0][1]}")
        try:
            yield
        finally:
            await runner.cleanup()

    def write_kubeconfig(self, server: str) -> None:
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": server}}],
            "users": [{"name": "test", "user": {"tokenFile": str(self.token_file)}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        }
        self.kubeconfig.write_text(yaml.safe_dump(content))


def thing(name: str, version: int, **spec: Any) -> dict[str, Any]:
    namespace, _, name = name.rpartition("/")
    return {"metadata": {"name": name, "namespace": namespace, "resourceVersion": str(version)}, "spec": spec}


def failure(status: int, message: str, **headers: str) -> web.Response:
    return web.json_response({"kind": "Status", "code": status, "message": message}, status=status, headers=headers)


def says(status: int, message: str = "no", **headers: str) -> Script:
    async def script(request: web.Request) -> web.StreamResponse:
        return failure(status, message, **headers)

    return script


def page(version: int, *things: Any, more: str = "") -> Script:
    async def script(request: web.Request) -> web.StreamResponse:
        return web.json_response({"metadata": {"resourceVersion": str(version), "continue": more}, "items": things})

    return script


def body(content: bytes) -> Script:
    async def script(request: web.Request) -> web.StreamResponse:
        return web.Response(body=content, content_type="application/json")

    return script


def event(type_: str, object_: Any) -> bytes:
    return json.dumps({"type": type_, "object": object_}).encode() + b"\n"


def stream(*parts: bytes, then: str = "wait") -> Script:
    """A watch that sends `parts`, and then waits to be ended, ends, or is cut."""

    async def script(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        for part in parts:
            await response.write(part)
        if then == "wait":
            await asyncio.Event().wait()
        if then == "cut":
            assert request.transport is not None
            request.transport.abort()
        return response

    return script
