"""Listeners accept in turns, refuse when they can't, and never spin."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
from collections.abc import Iterator

import pytest

from nodeproxy.proxy.pods import Listener, Pod, Spare, plain_address
from tests.unit.proxy.conftest import Bench

Address = tuple[str, int]


class Door:
    """A listener with what came through it."""

    def __init__(self, bench: Bench, raises: bool = False) -> None:
        self.accepted: list[socket.socket] = []
        self.full: list[Address] = []
        self.raises = raises
        self.sock = socket.create_server(("127.0.0.1", 0), backlog=200)
        self.address = self.sock.getsockname()
        self.listener = Listener(
            bench.poller, bench.pod, self.sock, Spare(), self._accept, lambda pod, peer: self.full.append(peer)
        )

    def _accept(self, pod: Pod, sock: socket.socket, peer: Address) -> None:
        if self.raises:
            raise RuntimeError("a defect")
        assert peer == sock.getpeername()
        assert sock.gettimeout() == 0
        self.accepted.append(sock)

    def close(self) -> None:
        self.listener.close()
        for sock in self.accepted:
            sock.close()


@pytest.fixture
def door(bench: Bench) -> Iterator[Door]:
    made = Door(bench)
    yield made
    made.close()


@contextlib.contextmanager
def full_table() -> Iterator[None]:
    """No descriptor more than there are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open("/dev/null", os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    held = []
    try:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in held:
            os.close(fd)


def test_it_accepts_all_in_turns(bench: Bench, door: Door) -> None:
    with contextlib.ExitStack() as clients:
        for _ in range(100):
            clients.enter_context(socket.create_connection(door.address))
        bench.poller.run_once(0)
        assert len(door.accepted) == 64
        bench.poller.run_once(0)
        assert len(door.accepted) == 100


def test_with_a_full_table_it_refuses_instead_of_spinning(bench: Bench, door: Door) -> None:
    with contextlib.ExitStack() as clients:
        socks = [clients.enter_context(socket.create_connection(door.address)) for _ in range(10)]
        with full_table():
            bench.passes()
        assert door.accepted == []
        assert sorted(door.full) == sorted(sock.getsockname() for sock in socks)
        for sock in socks:
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
        with socket.create_connection(door.address):
            bench.until(lambda: door.accepted)


def test_a_spare_that_did_not_come_back_is_nobody_elses_descriptor() -> None:
    """ENFILE may keep it from being opened again: its number must not be closed a second time."""
    spare = Spare()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        number = spare._fd
        os.close(number)
        spare._fd = -1
        stranger = os.open("/dev/null", os.O_RDONLY)
        assert stranger == number
        with full_table():
            assert spare.refuse_one(listener) is None
        os.fstat(stranger)
        os.close(stranger)
        assert spare.refuse_one(listener) is None
        assert spare._fd >= 0
        os.close(spare._fd)


def test_a_defect_costs_the_one_connection(bench: Bench, door: Door) -> None:
    door.raises = True
    with socket.create_connection(door.address) as client:
        bench.poller.run_once(0)
        assert len(bench.errors) == 1
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    door.raises = False
    with socket.create_connection(door.address):
        bench.poller.run_once(0)
        assert len(door.accepted) == 1


def test_a_listener_that_cannot_go_on_rests(bench: Bench, door: Door) -> None:
    now = [0.0]
    bench.poller.clock = lambda: now[0]
    with socket.create_connection(door.address):
        door.listener.on_fault(OSError(errno.ENOMEM, "no memory"))
        bench.passes()
        assert door.accepted == []
        now[0] = 0.2
        bench.passes()
        assert len(door.accepted) == 1


def test_closed_while_it_rests_it_stays_closed(bench: Bench) -> None:
    now = [0.0]
    bench.poller.clock = lambda: now[0]
    door = Door(bench)
    door.listener.on_fault(OSError(errno.ENOMEM, "no memory"))
    door.close()
    now[0] = 1.0
    bench.passes()
    assert bench.errors == []


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        (("::ffff:10.0.0.1", 80, 0, 0), ("10.0.0.1", 80)),
        (("10.0.0.1", 80), ("10.0.0.1", 80)),
        (("fd00::1", 80, 0, 0), ("fd00::1", 80)),
        (("::ffff:0:1", 80, 0, 0), ("::ffff:0:1", 80)),
    ],
)
def test_mapped_addresses_are_ipv4(given: tuple[str, int], plain: Address) -> None:
    assert plain_address(given) == plain
