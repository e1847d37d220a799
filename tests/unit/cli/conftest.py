"""An admin server with given answers, on a Unix socket or on TCP: what the commands say is tested without an agent.

That the real agent answers in this form is shown by tests/mesh.
"""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from nodeproxy.__main__ import main
from nodeproxy.cli.client import SOCKET_NAME

Answer = tuple[int, Any]


@dataclass
class FakeAdmin:
    """answers: by "METHOD path"; requests: what was asked, with headers and body."""

    answers: dict[str, Answer] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)

    def handler(self) -> type[BaseHTTPRequestHandler]:
        admin = self

        class Handler(BaseHTTPRequestHandler):
            def address_string(self) -> str:
                return "client"

            def log_message(self, *_: Any) -> None: ...

            def answer(self) -> None:
                call = f"{self.command} {self.path}"
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                admin.requests.append((call, dict(self.headers), body))
                status, value = admin.answers.get(call, (404, {"error": f"{call} is not there"}))
                content = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_DELETE = answer

        return Handler


def served(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def admin() -> FakeAdmin:
    return FakeAdmin()


@pytest.fixture
def run_dir(admin: FakeAdmin, tmp_path: Path) -> Iterator[Path]:
    """A run directory whose socket `admin` answers."""
    for _ in served(socketserver.UnixStreamServer(str(tmp_path / SOCKET_NAME), admin.handler())):
        yield tmp_path


@pytest.fixture
def tcp(admin: FakeAdmin) -> Iterator[str]:
    """ADDR:PORT where `admin` answers."""
    server = socketserver.TCPServer(("127.0.0.1", 0), admin.handler())
    for _ in served(server):
        yield f"127.0.0.1:{server.server_address[1]}"


@dataclass
class Result:
    status: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs `nodeproxy ARGUMENTS`, in an environment that says nothing."""
    for variable in ("NODEPROXY_INSTANCE", "NODEPROXY_RUN_DIR", "NODEPROXY_ADMIN_TOKEN"):
        monkeypatch.delenv(variable, raising=False)

    def run(*arguments: str | Path) -> Result:
        status = main([str(argument) for argument in arguments])
        return Result(status, *capsys.readouterr())

    return run
