"""One poller with real sockets on loopback, real sessions, and real TLS between two tunnels of this process."""

from __future__ import annotations

import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nodeproxy.identity.local_ca import LocalCA
from nodeproxy.identity.tls import client_context, server_context
from nodeproxy.model.connection import Connection, Direction, Party
from nodeproxy.observe.counters import Counters
from nodeproxy.proxy.app_socket import AppSocket
from nodeproxy.proxy.pods import Pod
from nodeproxy.proxy.poller import Poller
from nodeproxy.proxy.session import Session
from nodeproxy.proxy.sessions import Sessions

DEADLINE_S = 5.0
IDENTITY = "spiffe://cluster.local/ns/test/sa/test"


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection, neither of which blocks."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    for sock in (one, other):
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return one, other


class Bench:
    """A poller, and everything that a session needs."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self.ended: list[Connection] = []
        self.poller = Poller(self.errors.append)
        self.counters = Counters()
        self.sessions = Sessions(
            self.counters, lambda connection, kind: self.ended.append(connection), lambda connection, refusal: None
        )
        self.pod = Pod("uid", 1, ("127.0.0.1",), os.open("/dev/null", os.O_RDONLY))
        self.socks: list[socket.socket] = []
        self._pods = {"uid": self.pod}

    def pod_called(self, uid: str) -> Pod:
        """The pod with this uid, the same each time."""
        if uid not in self._pods:
            self._pods[uid] = Pod(uid, 1 + len(self._pods), ("127.0.0.1",), os.open("/dev/null", os.O_RDONLY))
        return self._pods[uid]

    def pair(self) -> tuple[socket.socket, socket.socket]:
        made = tcp_pair()
        self.socks += made
        return made

    def until(self, condition: Callable[[], object]) -> None:
        """Run passes until it holds."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come about"
            self.poller.run_once(0.005)

    def passes(self, count: int = 5) -> None:
        for _ in range(count):
            self.poller.run_once(0)

    def session(self, direction: Direction = Direction.OUTBOUND) -> Session:
        record = Connection(
            id=self.sessions.new_id(), direction=direction, source=Party("1.1.1.1:1"), destination=Party("2.2.2.2:2")
        )
        return Session(self.sessions, self.pod, record)

    def relayed(self) -> tuple[socket.socket, socket.socket, Session]:
        """(the source's program, the destination's program, the session between them)."""
        source, ours = self.pair()
        theirs, destination = self.pair()
        session = self.session()
        session.relay(AppSocket(self.poller, ours, session), AppSocket(self.poller, theirs, session))
        return source, destination, session

    def read(self, sock: socket.socket, count: int) -> bytes:
        """`count` bytes that arrive at `sock` while the poller runs."""
        data = bytearray()

        def enough() -> bool:
            try:
                while len(data) < count:
                    chunk = sock.recv(count - len(data))
                    if not chunk:
                        return True
                    data.extend(chunk)
            except BlockingIOError:
                return False
            return True

        self.until(enough)
        return bytes(data)

    def close(self) -> None:
        for sock in self.socks:
            sock.close()
        for pod in self._pods.values():
            pod.close()
        self.poller.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """(client's, server's) contexts of one identity."""
    directory: Path = tmp_path_factory.mktemp("ca") / "ca"
    ca = LocalCA.create(directory)
    issued = ca.issue(IDENTITY)
    roots = (directory / "root-cert.pem").read_bytes()
    return client_context(issued.chain_pem, issued.key_pem, roots), server_context(issued.chain_pem, issued.key_pem, roots)
