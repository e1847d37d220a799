"""The admin API: HTTP and JSON, on a Unix socket of root's in the run directory and, for reading, on a TCP address.

Invariant: over TCP, what changes something needs the token that only root can read: any process on the node, a host-network pod
among them, can connect to loopback.
"""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from nodeproxy.agent.checks import Checks
from nodeproxy.agent.node import Node
from nodeproxy.agent.pod_rows import pod_rows
from nodeproxy.agent.why import explain_arrival_now, explain_now
from nodeproxy.errors import ConfigError, NodeproxyError
from nodeproxy.model.delta import PodSpec
from nodeproxy.observe.explain_arrival import Arrival

TOKEN_FILE = "admin.token"  # noqa: S105 - a file's name
SOCKET_FILE = "admin.sock"
# What a request may bring: a pod's uid and path.
_MAX_BODY_BYTES = 64 * 1024

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_encoder = msgspec.json.Encoder(enc_hook=str)


def new_token() -> str:
    """One that nobody can guess."""
    return secrets.token_urlsafe(32)


def write_token(run_dir: Path, token: str) -> None:
    """Leave it in `run_dir`, for root's eyes only."""
    path = run_dir / TOKEN_FILE
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(token)


class Admin:
    """The handlers; `application(token)` binds them, with a token for what changes something, or None on the Unix socket."""

    def __init__(self, node: Node, *, identification: dict[str, str], name: str, stop: Callable[[], None]) -> None:
        self._node = node
        self._identification = identification
        self._name = name
        self._stop = stop
        self._checks = Checks()

    def application(self, token: str | None) -> web.Application:
        """An application to serve."""
        app = web.Application(middlewares=[_errors, _guard(token)], client_max_size=_MAX_BODY_BYTES)
        app.add_routes(
            [
                web.get("/version", self._version),
                web.get("/status", self._status),
                web.get("/connections", self._connections),
                web.get("/why", self._why),
                web.get("/why/arrival", self._why_arrival),
                web.get("/check", self._check),
                web.post("/pods", self._enrol),
                web.delete("/pods/{uid:.+}", self._leave),
                web.post("/quitquitquit", self._quit),
            ]
        )
        return app

    async def _version(self, request: web.Request) -> web.Response:
        return _json(self._identification)

    async def _status(self, request: web.Request) -> web.Response:
        node = self._node
        pending = node.pending()
        return _json(
            {
                **self._identification,
                "node": self._name,
                "started": node.started,
                "ready": not pending,
                "pending": pending,
                "state": {
                    **msgspec.to_builtins(node.state.statistics()),
                    "error": node.source_error,
                    "connection": msgspec.to_builtins(node.connection()) if node.connection is not None else None,
                },
                "pods": pod_rows(node),
                "cni": node.cni.status() if node.cni is not None else None,
                "workers": [
                    {"slot": slot, "pid": pid, "ready": ready, "restarts": node.workers.restarts[slot]}
                    for slot, (pid, ready) in node.workers.pids.items()
                ],
                "kernel": {"adopted": node.steering.adopted, "drops": node.steering.drop_counters()},
                "kubelet": {**msgspec.to_builtins(node.kubelet.status()), "connections": node.steering.probes.counters()},
                "direct": {"same_node": node.same_node.value, **node.direct.status()},
                "certificates": node.identities.manager.statistics(),
            }
        )

    async def _connections(self, request: web.Request) -> web.Response:
        connections = await self._node.connections()
        return _json({"connections": sorted(connections, key=lambda each: each.started)})

    async def _why(self, request: web.Request) -> web.Response:
        try:
            source, destination = request.query["source"], request.query["destination"]
        except KeyError as error:
            raise ConfigError(f"the query lacks {error}: /why?source=…&destination=…") from error
        outside = request.query.get("outside", "")
        return _json(await explain_now(self._node, self._name, source, destination, outside))

    async def _why_arrival(self, request: web.Request) -> web.Response:
        try:
            arrival = msgspec.convert(dict(request.query), Arrival)
        except msgspec.ValidationError as error:
            raise ConfigError(
                f"/why/arrival?kind=…&workload=…&address=…&authority=…&identity=…&source_address=…: {error}"
            ) from error
        return _json(await explain_arrival_now(self._node, arrival))

    async def _check(self, request: web.Request) -> web.Response:
        rows = self._checks.rows()
        return _json({"ok": all(row.ok for row in rows), "requirements": rows})

    async def _enrol(self, request: web.Request) -> web.Response:
        try:
            spec = msgspec.json.decode(await request.read(), type=PodSpec)
        except msgspec.MsgspecError as error:
            raise ConfigError(f'the body must be {{"uid": …, "netns": …}}: {error}') from error
        milliseconds = await self._node.enrol(spec)
        return _json({"uid": spec.uid, "enrolled_ms": milliseconds})

    async def _leave(self, request: web.Request) -> web.Response:
        uid = request.match_info["uid"]
        if not await self._node.leave(uid):
            return _error(404, f"pod {uid} is not enrolled here; `nodeproxy status` lists those that are")
        return _json({"uid": uid})

    async def _quit(self, request: web.Request) -> web.Response:
        self._stop()
        return _json({"stopping": True})


def _guard(token: str | None) -> Any:
    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if token is not None and request.method not in ("GET", "HEAD"):
            given = request.headers.get("Authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
                return _error(
                    403, f"this needs `Authorization: Bearer TOKEN`; the token is in {TOKEN_FILE} of the run directory, for root"
                )
        return await handler(request)

    return guard


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except ConfigError as error:
        return _error(400, str(error))
    except NodeproxyError as error:
        return _error(409, str(error))
    except web.HTTPException as error:
        return _error(error.status, f"{request.method} {request.path}: {error.reason}")


def _error(status: int, text: str) -> web.Response:
    return _json({"error": text}, status)


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(body=_encoder.encode(value), status=status, content_type="application/json")
