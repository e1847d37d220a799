"""A relay of two plain sockets: every byte, every end, in both directions, with back-pressure."""

from __future__ import annotations

import os
import socket
import struct

import pytest

from nodeproxy.model.reason import Reason
from nodeproxy.proxy.app_socket import AppSocket
from nodeproxy.proxy.buffers import Budget
from tests.unit.proxy.conftest import Bench

_LINGER_RESET = struct.pack("ii", 1, 0)


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    sock.close()


def fill(bench: Bench, sock: socket.socket) -> int:
    """Write until nobody takes more."""
    total, idle = 0, 0
    while idle < 5:
        try:
            total += sock.send(b"x" * (1 << 20))
            idle = 0
        except BlockingIOError:
            idle += 1
        bench.passes(2)
    return total


def test_bytes_pass_both_ways(bench: Bench) -> None:
    source, destination, session = bench.relayed()
    source.send(b"question")
    assert bench.read(destination, 8) == b"question"
    destination.send(b"yes")
    assert bench.read(source, 3) == b"yes"
    assert session.transferred() == (8, 3)
    assert bench.pod.connections == 1


def test_each_end_is_passed_on_and_both_end_the_session(bench: Bench) -> None:
    source, destination, session = bench.relayed()
    source.send(b"all")
    source.shutdown(socket.SHUT_WR)
    assert bench.read(destination, 10) == b"all"
    destination.send(b"answer")
    assert bench.read(source, 6) == b"answer"
    assert not session.ended
    destination.shutdown(socket.SHUT_WR)
    assert bench.read(source, 10) == b""
    bench.until(lambda: session.ended)
    (record,) = bench.ended
    assert record.reason is None
    assert (record.received_bytes, record.sent_bytes) == (3, 6)
    assert bench.pod.connections == 0
    assert len(bench.sessions) == 0


@pytest.mark.parametrize("who", [0, 1])
def test_a_reset_is_passed_on(bench: Bench, who: int) -> None:
    *ends, session = bench.relayed()
    reset(ends[who])
    bench.until(lambda: session.ended)
    with pytest.raises(ConnectionResetError):
        bench.read(ends[1 - who], 1)
    assert bench.ended[0].reason is (Reason.RESET_BY_SOURCE, Reason.RESET_BY_DESTINATION)[who]


def test_a_reader_that_stands_still_stops_its_writer_and_loses_nothing(bench: Bench) -> None:
    source, destination, session = bench.relayed()
    total = fill(bench, source)
    assert total < 32 << 20
    assert len(bench.read(destination, total)) == total
    source.send(b"still alive")
    assert bench.read(destination, 11) == b"still alive"
    assert not session.ended


def test_an_end_behind_unsent_bytes_comes_after_them(bench: Bench) -> None:
    source, destination, session = bench.relayed()
    total = fill(bench, source)
    source.shutdown(socket.SHUT_WR)
    bench.passes()
    assert len(bench.read(destination, total + 1)) == total, "and then the end"
    destination.close()
    bench.until(lambda: session.ended)
    assert bench.ended[0].reason is None


def test_a_reset_behind_unsent_bytes_ends_it(bench: Bench) -> None:
    """The half that waits to send must notice that its reader has gone, and not spin."""
    source, destination, session = bench.relayed()
    fill(bench, source)
    reset(destination)
    bench.until(lambda: session.ended)
    assert bench.ended[0].reason is Reason.RESET_BY_DESTINATION


def test_a_blocked_source_that_ends_both_ways_does_not_spin(bench: Bench) -> None:
    """HUP can't be masked: such a socket is not watched until its bytes can go on."""
    source, destination, session = bench.relayed()
    destination.shutdown(socket.SHUT_WR)
    assert bench.read(source, 1) == b""
    total = fill(bench, source)
    source.close()
    half = session.source
    assert isinstance(half, AppSocket)
    bench.passes(20)
    calls = 0
    original = AppSocket.on_event

    def counted(self: AppSocket, events: int) -> None:
        nonlocal calls
        calls += 1
        original(self, events)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AppSocket, "on_event", counted)
        bench.passes(50)
    assert calls < 5
    assert len(bench.read(destination, total + 1)) == total
    bench.until(lambda: session.ended)
    assert bench.ended[0].reason is None


def test_descriptors_are_given_back(bench: Bench) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for how in range(6):
        source, destination, session = bench.relayed()
        if how % 3 == 0:
            reset(source)
        elif how % 3 == 1:
            source.close()
            destination.close()
        else:
            session.fault(RuntimeError("a defect"))
        bench.until(lambda session=session: session.ended)
        source.close()
        destination.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert bench.errors == []


def test_with_an_exhausted_budget_a_connection_holds_little(bench: Bench) -> None:
    """Thousands of readers that stand still must not cost a MiB each."""
    bench.sessions.budget = budget = Budget(0, 1)  # the first one exhausts it, however the kernel cuts what it reads
    held = []
    for _ in range(3):
        source, _, session = bench.relayed()
        fill(bench, source)
        assert isinstance(session.destination, AppSocket)
        held.append(session.destination.unsent_bytes)
    assert held[0] > 0
    assert max(held[1:]) <= 4096
    assert budget.exhausted
    for session in bench.sessions:
        session.fault(RuntimeError("enough"))
    assert budget._unowed == 1


def test_what_was_owed_is_settled_as_it_leaves(bench: Bench) -> None:
    source, destination, _ = bench.relayed()
    total = fill(bench, source)
    assert bench.sessions.budget._unowed < Budget()._unowed
    bench.read(destination, total)
    assert bench.sessions.budget._unowed == Budget()._unowed
