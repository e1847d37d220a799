"""The client of a running agent's admin API: JSON over HTTP, through the Unix socket in its run directory or over TCP.

Invariant: whatever goes wrong becomes one sentence that names what was tried and what to do next.  The Unix socket is its own
authority (root may open it); over TCP, calls that change something carry the token from a file that only root may read.
It must not know how answers are shown.
"""

from __future__ import annotations

import errno
import http.client
import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlencode

import click

from nodeproxy import config
from nodeproxy.errors import NodeproxyError

SOCKET_NAME = "admin.sock"
TOKEN_NAME = "admin.token"
# Enrolling waits for the kernel and a certificate, a second at worst; what takes longer than this hangs.
TIMEOUT_S = 15.0
# 100,000 connections of some 2 KB; more is not an answer of ours.
MAX_ANSWER_BYTES = 256 << 20


class Transport(Protocol):
    """How an agent is reached."""

    name: str  # for errors

    def open(self) -> http.client.HTTPConnection:
        """A connection, not yet connected."""

    def unreachable(self, exc: OSError) -> NodeproxyError:
        """The error for a connect that failed."""


class Client:
    """Calls of the admin API.  Each raises NodeproxyError if it fails, click.UsageError if the agent did not understand it."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    @classmethod
    def of_run_dir(cls, run_dir: Path) -> Client:
        """Reach the agent of a run directory by its Unix socket."""
        return cls(_UnixTransport(run_dir / SOCKET_NAME))

    @classmethod
    def of_address(cls, address: config.Address) -> Client:
        """Reach an agent over TCP."""
        return cls(_TcpTransport(address))

    def get(self, path: str, query: Mapping[str, str] | None = None) -> Any:
        """What stands at `path`."""
        return self._call("GET", f"{path}?{urlencode(query)}" if query else path)

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Have something done."""
        return self._call("POST", path, body or {}, self._authority())

    def delete(self, path: str) -> Any:
        """Have something undone."""
        return self._call("DELETE", path, None, self._authority())

    def _authority(self) -> dict[str, str]:
        if isinstance(self._transport, _UnixTransport):
            return {}
        token = os.environ.get("NODEPROXY_ADMIN_TOKEN") or self._token_of_run_dir()
        return {"Authorization": f"Bearer {token}"}

    def _token_of_run_dir(self) -> str:
        path = Path(self.get("/version")["run_dir"]) / TOKEN_NAME
        try:
            return path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as exc:
            raise NodeproxyError(
                f"can't read the admin token in {path}: {exc}; be root on the agent's machine, or set NODEPROXY_ADMIN_TOKEN"
            ) from exc

    def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> Any:
        connection = self._transport.open()
        try:
            try:
                connection.connect()
            except OSError as exc:
                raise self._transport.unreachable(exc) from exc
            content = None if body is None else json.dumps(body).encode()
            kind = {} if content is None else {"Content-Type": "application/json"}
            connection.request(method, path, content, {**kind, **(headers or {})})
            response = connection.getresponse()
            answer = response.read(MAX_ANSWER_BYTES + 1)
        except (OSError, http.client.HTTPException) as exc:
            reason = "no answer in time" if isinstance(exc, TimeoutError) else str(exc) or type(exc).__name__
            raise NodeproxyError(f"{method} {path} at {self._transport.name}: {reason}; see the agent's log") from exc
        finally:
            connection.close()
        return self._understand(response.status, answer, f"{method} {path}")

    def _understand(self, status: int, answer: bytes, call: str) -> Any:
        try:
            value = json.loads(answer) if len(answer) <= MAX_ANSWER_BYTES else None
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise NodeproxyError(
                f"{self._transport.name} is no nodeproxy: it answers {call} with status {status} and no JSON object"
            )
        if status == http.HTTPStatus.BAD_REQUEST:
            raise click.UsageError(str(value.get("error")))
        if status >= http.HTTPStatus.MULTIPLE_CHOICES:
            raise NodeproxyError(str(value.get("error", f"{call}: status {status}")))
        return value


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(str(self._path))


class _UnixTransport:
    def __init__(self, path: Path) -> None:
        self._path = path
        self.name = str(path)

    def open(self) -> http.client.HTTPConnection:
        return _UnixConnection(self._path)

    def unreachable(self, exc: OSError) -> NodeproxyError:
        if exc.errno in (errno.EACCES, errno.EPERM):
            return NodeproxyError(f"this user may not open {self._path}: use sudo, or --admin ADDR:PORT to read only")
        what = (
            "is there, but nobody listens: its agent has ended"
            if exc.errno == errno.ECONNREFUSED
            else f"can't be reached ({exc.strerror or exc})"
        )
        return NodeproxyError(f"no agent answers: {self._path} {what}.  {_how_to_choose(self._path)}")


class _TcpTransport:
    def __init__(self, address: config.Address) -> None:
        self._address = address
        self.name = str(address)

    def open(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._address.host, self._address.port, timeout=TIMEOUT_S)

    def unreachable(self, exc: OSError) -> NodeproxyError:
        return NodeproxyError(f"no agent answers at {self.name}: {exc.strerror or exc}.  {_how_to_choose(None)}")


def _how_to_choose(tried: Path | None) -> str:
    """What to do when nobody answered; names the instances that have a socket."""
    try:
        found = sorted(
            path for path in (*config.RUN_ROOT.glob(SOCKET_NAME), *config.RUN_ROOT.glob(f"*/{SOCKET_NAME}")) if path != tried
        )
    except OSError:  # an ordinary user may not look
        found = []
    if found:
        others = ", ".join(
            f"--instance {path.parent.name}" if path.parent != config.RUN_ROOT else f"--run-dir {path.parent}" for path in found
        )
        return f"Did you mean {others}?"
    named = "Start one (nodeproxy run --help), or name the one that runs by --instance, --run-dir or --admin"
    context = click.get_current_context(silent=True)
    if context is not None and "kubeconfig" in context.params:
        return f"{named}; a cluster's are reached by --kubeconfig, --context or -n."
    return f"{named}."
