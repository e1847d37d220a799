"""Real programs of this machine's kernel: each module has its own network, cgroup and pins."""

from __future__ import annotations

import itertools
import json
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

from nodeproxy.kernel.abi import IN_USE, MAX_SLOTS, Role
from nodeproxy.kernel.original_destination import OriginalDestination
from nodeproxy.kernel.steering import PodSteering, Steering
from nodeproxy.lab.topology import Host, Lab
from nodeproxy.linux import cgroup
from nodeproxy.linux.addresses import pod_addresses
from nodeproxy.linux.bpffs import ensure_bpffs
from nodeproxy.linux.netns import netns_cookie
from nodeproxy.linux.routes import disable_last_leg, enable_last_leg
from nodeproxy.linux.sockets import PodListeners, open_listeners

_numbers = itertools.count()
PEER = Path(__file__).with_name("peer.py")


@pytest.fixture(scope="session", autouse=True)
def _root() -> None:
    if os.geteuid() != 0:
        pytest.skip("kernel tests need root")
    ensure_bpffs()


def unique(kind: str) -> str:
    return f"np{kind}-{os.getpid()}-{next(_numbers)}"


class Program:
    """peer.py in a pod."""

    def __init__(self, host: Host, group: Path | None) -> None:
        self.host = host
        self._process = host.popen(self.argv(), cgroup=group, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.pid = int(self._answer()["pid"])

    def argv(self) -> list[str]:
        return [sys.executable, "-I", "-S", str(PEER)]

    def _answer(self) -> dict[str, Any]:
        stdout = self._process.stdout
        assert stdout is not None
        line = stdout.readline()
        assert line, "the program in the pod has ended"
        return dict(json.loads(line))

    def start(self, do: str, **order: Any) -> Callable[[], dict[str, Any]]:
        """Send an order; what is returned waits for the answer."""
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write(json.dumps({"do": do, **order}).encode() + b"\n")
        stdin.flush()
        return self._answer

    def __call__(self, do: str, **order: Any) -> dict[str, Any]:
        return self.start(do, **order)()

    def connect(self, address: str, port: int, **order: Any) -> dict[str, Any]:
        return self("connect", address=address, port=port, **order)

    def serve(self, address: str, port: int, **order: Any) -> None:
        answer = self("serve", address=address, port=port, **order)
        assert answer == {}, answer


def text(address: str) -> str:
    return address.removeprefix("::ffff:")


class Worker:
    """Plays the workers of an instance: accepts on every listener and answers with what it sees of the connection."""

    def __init__(self, steering: Steering) -> None:
        self.steering = steering
        self._map = -1
        # A descriptor's number that was closed may be another file's at once, so nothing is read while it is exchanged.
        self._reading = threading.Lock()
        self.read_originals_of(steering)
        self._poll = select.epoll()
        self._listeners: dict[int, tuple[socket.socket, Role, int]] = {}
        self._accepted: dict[int, socket.socket] = {}
        self._wake, self._waker = socket.socketpair()
        self._poll.register(self._wake, select.EPOLLIN)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def read_originals_of(self, steering: Steering) -> None:
        """As a worker does: by a descriptor of its own, which outlives the agent's."""
        with self._reading:
            if self._map >= 0:
                os.close(self._map)
            self._map = os.dup(steering.original_destination_fd)
            self._original = OriginalDestination(self._map)

    def add(self, listeners: PodListeners, slot: int) -> None:
        for role in Role:
            listener = listeners[role]
            self._listeners[listener.fileno()] = (listener, role, slot)
            self._poll.register(listener, select.EPOLLIN)

    def close_listeners(self, slots: Collection[int] = range(MAX_SLOTS)) -> None:
        for descriptor, (listener, _, slot) in list(self._listeners.items()):
            if slot in slots:
                self._poll.unregister(descriptor)
                listener.close()
                del self._listeners[descriptor]

    def close(self) -> None:
        self._waker.send(b".")
        self._thread.join()
        self.close_listeners()
        for accepted in self._accepted.values():
            accepted.close()
        self._poll.close()
        self._wake.close()
        self._waker.close()
        os.close(self._map)

    def _run(self) -> None:
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor == self._wake.fileno():
                    return
                if descriptor in self._listeners:
                    self._answer(*self._listeners[descriptor])
                elif descriptor in self._accepted:
                    self._read(descriptor)

    def _read(self, descriptor: int) -> None:
        """To the client's end: closing before would reset the connection if it had said anything."""
        try:
            if self._accepted[descriptor].recv(65536):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._accepted.pop(descriptor).close()

    def _answer(self, listener: socket.socket, role: Role, slot: int) -> None:
        try:
            accepted, peer = listener.accept()
        except OSError:
            return
        sockname = accepted.getsockname()
        with self._reading:
            original, direct = self._original.get(accepted.fileno()), self._original.direct(accepted.fileno())
        seen = {
            "role": role.name,
            "slot": slot,
            "original": original,
            "direct": direct,
            "seen_peer": [text(peer[0]), peer[1]],
            "seen_sockname": [text(sockname[0]), sockname[1]],
        }
        try:
            accepted.sendall(json.dumps(seen).encode())
            accepted.shutdown(socket.SHUT_WR)
        except OSError:
            accepted.close()
            return
        accepted.setblocking(False)
        self._accepted[accepted.fileno()] = accepted
        self._poll.register(accepted, select.EPOLLIN)


class Node:
    """An instance with its cgroup; the tests' own process is in the proxy's cgroup meanwhile."""

    def __init__(self, group: Path, workers: int = 2, instance: str = "") -> None:
        self.group = group
        self.instance = instance or unique("t")
        self.workers = workers
        self.own = cgroup.instance_cgroup(group, self.instance)
        self.own_id = cgroup.enter(self.own)
        self.open()
        self._enrolled: dict[int, Host] = {}

    def open(self) -> None:
        self.steering = Steering.open(self.instance, self.group, own_cgroup_id=self.own_id, workers=self.workers)
        self.worker = Worker(self.steering)

    def set_listeners(self, host: Host) -> None:
        for slot in range(self.workers):
            listeners = open_listeners(host.netns_fd)
            self.worker.add(listeners, slot)
            for role in Role:
                for address in pod_addresses(host.netns_fd):
                    self.steering.set_listener(address, role, slot, listeners[role].fileno())

    def enrol(self, host: Host) -> int:
        cookie = netns_cookie(host.netns_fd)
        enable_last_leg(host.netns_fd)
        self.set_listeners(host)
        self.steering.enrol(PodSteering(host.netns_fd, cookie, pod_addresses(host.netns_fd)))
        self._enrolled[cookie] = host
        return cookie

    def in_progress(self) -> tuple[int, int]:
        """Connections that are being made now: steered ones, and last legs."""
        steered, last_legs, _ = IN_USE.unpack(self.steering._maps["in_use"].get(bytes(4)) or b"")
        return steered, last_legs

    def leave(self, cookie: int) -> None:
        self.steering.leave(cookie)
        disable_last_leg(self._enrolled.pop(cookie).netns_fd)

    def reopen_if_closed(self) -> None:
        """After a test that played the agent's death."""
        if self.steering.original_destination_fd < 0:
            self.worker.close()
            self.open()

    def close(self) -> None:
        self.worker.close()
        self.steering.close()

    def remove(self) -> None:
        self.close()
        Steering.uninstall(self.instance)
        cgroup.leave_and_remove(self.own)


@pytest.fixture(scope="module")
def group() -> Iterator[Path]:
    """A cgroup root of this module's own; what the pods' programs run in is below it."""
    root = cgroup.cgroup2_mount() / unique("cg")
    (root / "pods").mkdir(parents=True)
    home = cgroup.cgroup2_mount() / Path("/proc/self/cgroup").read_text(encoding="utf-8").split("0::", 1)[1].split("\n")[
        0
    ].lstrip("/")
    yield root
    (home / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
    for directory in sorted(root.rglob("*"), reverse=True):
        if directory.is_dir():
            directory.rmdir()
    root.rmdir()


@pytest.fixture(scope="module")
def lab(group: Path) -> Iterator[Lab]:
    with Lab(unique("lab")) as made:
        yield made


@pytest.fixture(scope="module")
def node(group: Path, lab: Lab) -> Iterator[Node]:
    made = Node(group)
    yield made
    made.remove()


@pytest.fixture
def program(lab: Lab, group: Path) -> Callable[[Host], Program]:
    return lambda host: Program(host, group / "pods")
