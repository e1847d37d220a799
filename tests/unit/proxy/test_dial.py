"""A connect ends once: with a socket, or with a refusal that has a name."""

from __future__ import annotations

import errno
import socket

import pytest

from nodeproxy.model.reason import Reason, Refusal
from nodeproxy.proxy.dial import Dial, connect_refusal, dial
from tests.unit.proxy.conftest import Bench


class Done:
    def __init__(self, fails: int = 0) -> None:
        self.results: list[tuple[socket.socket | None, Refusal | None]] = []
        self._fails = fails

    def __call__(self, sock: socket.socket | None, refusal: Refusal | None) -> None:
        self.results.append((sock, refusal))
        if len(self.results) <= self._fails:
            raise RuntimeError("a defect")

    def refusal(self) -> Refusal:
        assert len(self.results) == 1
        sock, refusal = self.results[0]
        assert sock is None
        assert refusal is not None
        return refusal


def tcp() -> socket.socket:
    sock = socket.socket()
    sock.setblocking(False)
    return sock


@pytest.fixture
def listener() -> socket.socket:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as made:
        return int(made.getsockname()[1])


def test_it_connects(bench: Bench, listener: socket.socket) -> None:
    done = Done()
    assert dial(bench.poller, tcp(), listener.getsockname(), done) is not None
    assert done.results == []
    bench.until(lambda: done.results)
    sock, refusal = done.results[0]
    assert refusal is None
    assert sock is not None
    with sock:
        assert sock.getpeername() == listener.getsockname()


def test_nobody_listens(bench: Bench) -> None:
    done, sock = Done(), tcp()
    dial(bench.poller, sock, ("127.0.0.1", free_port()), done)
    bench.until(lambda: done.results)
    assert done.refusal().reason is Reason.CONNECT_REFUSED
    assert sock.fileno() < 0


def test_an_error_at_once_is_told_at_once(bench: Bench) -> None:
    done, sock = Done(), tcp()
    sock.bind(("127.0.0.1", 0))
    assert dial(bench.poller, sock, ("240.0.0.1", 1), done) is None  # from loopback there is no way to it
    assert done.refusal().reason in (Reason.CONNECT_UNREACHABLE, Reason.CONNECT_TIMEOUT)
    assert sock.fileno() < 0


def test_who_does_not_answer_is_given_up(bench: Bench) -> None:
    """An accept queue that is full, and the clock ten seconds later."""
    now = [0.0]
    bench.poller.clock = lambda: now[0]
    full = socket.socket()
    full.bind(("127.0.0.1", 0))
    full.listen(0)
    with full, socket.create_connection(full.getsockname()):
        done, sock = Done(), tcp()
        dial(bench.poller, sock, full.getsockname(), done)
        bench.passes()
        assert done.results == []
        now[0] = 10.1
        bench.passes(1)
        assert done.refusal().reason is Reason.CONNECT_TIMEOUT
        assert sock.fileno() < 0


def test_cancelled_it_calls_nobody(bench: Bench, listener: socket.socket) -> None:
    done, sock = Done(), tcp()
    waiting = dial(bench.poller, sock, listener.getsockname(), done)
    assert isinstance(waiting, Dial)
    waiting.cancel()
    waiting.cancel()
    bench.passes()
    assert done.results == []
    assert sock.fileno() < 0


def test_a_near_one_is_done_at_once(bench: Bench, listener: socket.socket) -> None:
    done = Done()
    assert dial(bench.poller, tcp(), listener.getsockname(), done, near=True) is None
    sock, refusal = done.results[0]
    assert refusal is None
    assert sock is not None
    with sock:
        assert sock.getpeername() == listener.getsockname()


def test_a_near_one_where_nobody_listens_is_refused_at_once(bench: Bench) -> None:
    done, sock = Done(), tcp()
    assert dial(bench.poller, sock, ("127.0.0.1", free_port()), done, near=True) is None
    assert done.refusal().reason is Reason.CONNECT_REFUSED
    assert sock.fileno() < 0


def test_a_near_one_that_must_wait_waits(bench: Bench) -> None:
    full = socket.socket()
    full.bind(("127.0.0.1", 0))
    full.listen(0)
    with full, socket.create_connection(full.getsockname()) as first:
        done = Done()
        assert dial(bench.poller, tcp(), full.getsockname(), done, near=True) is not None
        bench.passes()
        assert done.results == []
        first.close()
        full.accept()[0].close()
        bench.until(lambda: done.results)
        sock, _ = done.results[0]
        assert sock is not None
        sock.close()


def test_a_defect_at_once_is_the_callers_and_the_socket_closed(bench: Bench, listener: socket.socket) -> None:
    done, sock = Done(fails=1), tcp()
    with pytest.raises(RuntimeError, match="a defect"):
        dial(bench.poller, sock, listener.getsockname(), done, near=True)
    assert sock.fileno() < 0


@pytest.mark.parametrize("works", [True, False])
def test_a_defect_in_who_waits_is_a_refusal_to_it(bench: Bench, listener: socket.socket, works: bool) -> None:
    """Else its session would stay for ever."""
    done, sock = Done(fails=1), tcp()
    dial(bench.poller, sock, listener.getsockname() if works else ("127.0.0.1", free_port()), done)
    bench.until(lambda: len(done.results) == 2)
    _, refusal = done.results[1]
    assert refusal is not None
    assert refusal.reason is Reason.INTERNAL
    assert sock.fileno() < 0
    assert len(bench.errors) == 1


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ECONNREFUSED, Reason.CONNECT_REFUSED),
        (errno.ETIMEDOUT, Reason.CONNECT_TIMEOUT),
        (errno.EHOSTUNREACH, Reason.CONNECT_UNREACHABLE),
        (errno.EADDRNOTAVAIL, Reason.CONNECT_UNREACHABLE),
        (errno.EMFILE, Reason.NO_DESCRIPTORS),
        (errno.EIO, Reason.CONNECT_UNREACHABLE),
        (0, Reason.CONNECT_UNREACHABLE),
    ],
)
def test_each_error_has_a_name(number: int, reason: Reason) -> None:
    refusal = connect_refusal(number, ("10.0.0.1", 80))
    assert refusal.reason is reason
