"""One end for each session, whatever happens on the way: the record, the counts, the halves and what was pending."""

from __future__ import annotations

import gc
import socket

import pytest

from nodeproxy.model.reason import Reason, Refusal
from nodeproxy.observe.counters import Totals
from nodeproxy.proxy.app_socket import AppSocket
from nodeproxy.proxy.dial import dial
from nodeproxy.proxy.session import Session
from tests.unit.proxy.conftest import Bench

NO = Refusal(Reason.POLICY_DENY, "policy says no", "ns/policy")


class Pending:
    def __init__(self) -> None:
        self.cancelled = 0

    def cancel(self) -> None:
        self.cancelled += 1


def connecting(bench: Bench) -> tuple[socket.socket, Session]:
    """A client, and a session that has nothing but him."""
    client, ours = bench.pair()
    session = bench.session()
    session.source = AppSocket(bench.poller, ours, session)
    return client, session


def test_refused_its_client_sees_a_reset_once(bench: Bench) -> None:
    client, session = connecting(bench)
    session.refuse(NO)
    session.refuse(Refusal(Reason.INTERNAL, "too late"))
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    (record,) = bench.ended
    assert (record.reason, record.detail) == (Reason.POLICY_DENY, "policy says no")
    assert record.ended >= record.started
    assert bench.pod.connections == 0


def test_what_is_pending_is_cancelled_with_it(bench: Bench) -> None:
    _, session = connecting(bench)
    session.pending = pending = Pending()
    session.refuse(NO)
    assert pending.cancelled == 1


def test_a_connect_of_an_ended_session_is_let_go(bench: Bench) -> None:
    """Else who opens and resets quickly could have any number of them on their way."""
    _, session = connecting(bench)
    called: list[object] = []
    full = socket.socket()
    full.bind(("127.0.0.1", 0))
    full.listen(0)
    with full, socket.create_connection(full.getsockname()):
        sock = socket.socket()
        sock.setblocking(False)
        session.pending = dial(bench.poller, sock, full.getsockname(), lambda *result: called.append(result))
        bench.passes()
        session.refuse(NO)
        assert sock.fileno() < 0
    bench.passes()
    assert called == []


def test_a_defect_in_a_step_ends_it_by_name(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    client, session = connecting(bench)

    def step() -> None:
        raise RuntimeError("a defect")

    session.guard(step)
    assert bench.ended[0].reason is Reason.INTERNAL
    assert "a defect" in caplog.text
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_a_log_that_fails_does_not_keep_its_sockets(bench: Bench) -> None:
    def fail(connection: object, kind: object) -> None:
        raise OSError("no log")

    client, session = connecting(bench)
    bench.sessions._write_log = fail
    with pytest.raises(OSError, match="no log"):
        session.refuse(NO)
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert bench.pod.connections == 0


def test_bytes_are_counted_once(bench: Bench) -> None:
    totals = Totals()

    def take() -> tuple[int, ...]:
        for page in bench.sessions.take_counters():
            totals.merge(page, 0)
        return tuple(map(sum, zip(*totals.series.values(), strict=True)))

    source, destination, session = bench.relayed()
    source.send(b"x" * 10)
    bench.read(destination, 10)
    assert take() == (1, 0, 0, 10, 0)
    assert take() == (1, 0, 0, 10, 0)
    destination.send(b"y" * 5)
    bench.read(source, 5)
    source.close()
    destination.close()
    bench.until(lambda: session.ended)
    assert take() == (1, 1, 0, 10, 5)
    assert totals.sockets_open() == {"source": 0}


def test_live_ones_are_listed_with_their_bytes_and_gone_ones_not(bench: Bench) -> None:
    source, destination, session = bench.relayed()
    source.send(b"abc")
    bench.read(destination, 3)
    (record,) = bench.sessions.snapshot()
    assert record.received_bytes == 3
    session.refuse(NO)
    assert bench.sessions.snapshot() == []


def test_a_pod_that_has_gone_takes_its_connections_with_it(bench: Bench) -> None:
    _, ours = connecting(bench)
    _, towards = connecting(bench)
    towards.destination_uid = "other"
    bench.sessions.end_pod("other")
    assert (ours.ended, towards.ended) == (False, True)
    bench.sessions.end_pod("uid")
    assert ours.ended
    assert {record.reason for record in bench.ended} == {Reason.POD_LEFT}


def test_an_ended_connection_is_gone_without_a_collection(bench: Bench) -> None:
    """Garbage in circles cost an eighth of the CPU, and pauses of 50 ms."""

    def parts() -> int:
        return sum(isinstance(each, (Session, AppSocket)) for each in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = parts()
        for _ in range(3):
            source, destination, session = bench.relayed()
            ended = len(bench.ended)
            source.close()
            destination.close()
            bench.until(lambda ended=ended: len(bench.ended) > ended)
            bench.passes()
        assert parts() == before + 3  # the last one, which is unlinked when another begins
        del session
        bench.sessions.take_counters()
        assert parts() == before
    finally:
        gc.enable()
