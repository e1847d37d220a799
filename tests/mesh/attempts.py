"""Servers that speak first, and what becomes of connections to them: an answer, or a reset before its first byte."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from nodeproxy.lab.topology import Host
from nodeproxy.linux.netns import inside
from tests.mesh import cluster as cluster_module
from tests.mesh.cluster import TIMEOUT_S, Agent, Cluster

# The product looks at its mesh file each 200 ms.  Here some hundred edits are made, and what follows an edit is timed.
WATCH_INTERVAL_S = 0.01


@contextlib.contextmanager
def fast_edits(*statements: str) -> Iterator[None]:
    """Agents that are started within look at their mesh file more often, and have executed `statements`."""
    script = (
        "import sys",
        "from nodeproxy.__main__ import main",
        "from nodeproxy.agent.sources.mesh_watch import MeshFile",
        f"MeshFile.changes.__defaults__ = ({WATCH_INTERVAL_S},)",
        *statements,
        "sys.exit(main())",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster_module, "ENTRY", ["-c", "\n".join(script)])
        yield


class Greeter(threading.Thread):
    """Listens in a host on some ports, of both families; says `name` to each connection at once and keeps it open."""

    def __init__(self, host: Host, ports: tuple[int, ...], name: str = "") -> None:
        super().__init__(daemon=True)
        self.name = name or host.name
        self.peers: list[tuple[str, int]] = []  # (address, port it asked for) of all that were accepted
        self._selector = selectors.DefaultSelector()
        self._wake, wake = socket.socketpair()
        self._selector.register(wake, selectors.EVENT_READ, 0)
        self._open: set[socket.socket] = {wake}
        for port in ports:
            with inside(host.netns_fd):
                listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
            listener.setblocking(False)
            self._open.add(listener)
            self._selector.register(listener, selectors.EVENT_READ, port)
        self.start()

    @property
    def accepted(self) -> int:
        """How many connections reached it."""
        return len(self.peers)

    def by_port(self) -> Counter[int]:
        """How many each port took."""
        return Counter(port for _, port in self.peers)

    def run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if key.data == 0:
                    return
                if key.data is None:
                    self._hear(sock)
                else:
                    self._accept(sock, key.data)

    def _accept(self, listener: socket.socket, port: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                sock, address = listener.accept()
                self.peers.append((address[0].removeprefix("::ffff:"), port))
                sock.setblocking(False)
                self._open.add(sock)
                self._selector.register(sock, selectors.EVENT_READ)
                with contextlib.suppress(OSError):  # reset already
                    sock.send(self.name.encode())

    def _hear(self, sock: socket.socket) -> None:
        """The end, orderly or not: what a client says is thrown away."""
        try:
            if sock.recv(4096):
                return
        except OSError:
            pass
        self._selector.unregister(sock)
        self._open.discard(sock)
        sock.close()

    @property
    def live(self) -> int:
        """How many connections it holds (a moment's truth)."""
        return sum(1 for key in self._selector.get_map().values() if key.data is None)

    def close(self) -> None:
        self._wake.send(b"x")
        self.join(TIMEOUT_S)
        self._selector.close()
        for sock in (self._wake, *self._open):
            sock.close()


def opened(host: Host, address: str) -> socket.socket:
    """A TCP socket in `host`, of the family of `address`."""
    with inside(host.netns_fd):
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    sock.settimeout(TIMEOUT_S)
    return sock


def connected(host: Host, address: str, port: int) -> tuple[socket.socket, str]:
    """A connection that stands, and who greeted it."""
    sock = opened(host, address)
    try:
        sock.connect((address, port))
        return sock, sock.recv(64).decode()
    except BaseException:
        sock.close()
        raise


def answer(host: Host, address: str, port: int) -> str | None:
    """Who answered a connection from `host`; None: nobody, it was reset before the first byte."""
    with opened(host, address) as sock:
        try:
            sock.connect((address, port))
            return sock.recv(64).decode()
        except ConnectionResetError:
            return None


def until_reset(socks: dict[str, socket.socket], timeout_s: float = TIMEOUT_S) -> dict[str, float]:
    """When each of them was reset, by time.monotonic(); those that were not are left out.  A byte or a FIN is an error."""
    found: dict[str, float] = {}
    deadline = time.monotonic() + timeout_s
    with selectors.DefaultSelector() as selector:
        for name, sock in socks.items():
            selector.register(sock, selectors.EVENT_READ, name)
        while len(found) < len(socks) and (left_s := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left_s):
                selector.unregister(key.fileobj)
                with pytest.raises(ConnectionResetError):
                    key.fileobj.recv(1)  # type: ignore[union-attr]  # it is a socket
                found[key.data] = time.monotonic()
    return found


def is_open(sock: socket.socket) -> bool:
    """Whether a connection, on which nothing is to be read, still stands."""
    sock.setblocking(False)
    try:
        sock.send(b"still here?")
        sock.recv(1)
    except BlockingIOError:
        return True
    except ConnectionError:
        return False
    finally:
        sock.settimeout(TIMEOUT_S)
    return False


def total(agent: Agent, name: str, **labels: str) -> float:
    """The sum of a metric's samples (by the full name of the sample) that have these labels."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(agent.metrics())
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


# What one of them keeps: three of them, and the node's ends of it, fit a descriptor table of 20,000.
MAX_HELD = 1000


class Holder(threading.Thread):
    """Connects again and again, reads nothing and keeps all."""

    def __init__(self, host: Host, address: str, port: int) -> None:
        super().__init__(daemon=True)
        self.socks: list[socket.socket] = []
        self.error: Exception | None = None
        self._where = (host, address, port)
        self._stopping = threading.Event()
        self.start()

    def run(self) -> None:
        host, address, port = self._where
        try:
            while not self._stopping.wait(0.001):
                if len(self.socks) >= MAX_HELD:
                    continue
                sock = opened(host, address)
                try:
                    sock.connect((address, port))
                except ConnectionResetError:  # refused so fast that connect() sees it
                    sock.close()
                    continue
                self.socks.append(sock)
        except Exception as error:  # noqa: BLE001 - told by `stop`, in the test's thread
            self.error = error

    def stop(self) -> list[socket.socket]:
        """The connections, for the caller to close."""
        self._stopping.set()
        self.join(TIMEOUT_S)
        if self.error is not None:
            raise self.error
        return self.socks


class Knocker(threading.Thread):
    """Connects again and again; `tries`: (begun, ended, who answered or None)."""

    def __init__(self, host: Host, address: str, port: int) -> None:
        super().__init__(daemon=True)
        self.tries: list[tuple[float, float, str | None]] = []
        self.error: Exception | None = None
        self._try: Callable[[], str | None] = lambda: answer(host, address, port)
        self._stopping = threading.Event()
        self.start()

    def run(self) -> None:
        try:
            while not self._stopping.is_set():
                begun = time.monotonic()
                who = self._try()
                self.tries.append((begun, time.monotonic(), who))
        except Exception as error:  # noqa: BLE001 - told by `stop`, in the test's thread
            self.error = error

    def tried_since(self, when: float) -> int:
        """How many tries began after `when` and have ended."""
        count = 0
        for begun, _, _ in reversed(self.tries):
            if begun <= when:
                break
            count += 1
        return count

    def stop(self) -> None:
        self._stopping.set()
        self.join(TIMEOUT_S)
        if self.error is not None:
            raise self.error


def start_fast(cluster: Cluster) -> Cluster:
    """Start the agents of a cluster that was populated."""
    with fast_edits():
        cluster.start()
    return cluster
