"""Connections that wait for the source of state: parked, asked for once, bounded, and never open."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeproxy.kernel.original_destination import OriginalDestination
from nodeproxy.model.delta import Delta
from nodeproxy.model.reason import Reason
from nodeproxy.proxy import waiting
from nodeproxy.proxy.outbound import SERVED_WITHIN_S, Outbound
from nodeproxy.proxy.pods import Pod
from nodeproxy.proxy.session import Session
from nodeproxy.proxy.waiting import MAX_ROUNDS, Parked, Waiting
from tests.unit.proxy.conftest import Bench
from tests.unit.proxy.mesh_state import SERVER, State

UNKNOWN = "192.0.2.1"


class Bay:
    """A `Waiting`, what it asked, and connections to park."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.asked: list[tuple[str, tuple[str, ...]]] = []
        self.decided: list[Session] = []
        self.waiting = Waiting(bench.poller, lambda owner, names: self.asked.append((owner, names)))

    def park(self, *names: str, owner: str = "pod") -> Session:
        session = self.bench.session()
        self.waiting.park(session, owner, names, lambda parked: self.decided.append(parked.session))
        return session

    def reasons(self) -> list[Reason | None]:
        return [record.reason for record in self.bench.ended]


@pytest.fixture
def bay(bench: Bench) -> Bay:
    return Bay(bench)


def test_many_for_one_name_ask_once(bay: Bay) -> None:
    sessions = [bay.park("/192.0.2.1") for _ in range(1000)]
    assert bay.asked == [("pod", ("/192.0.2.1",))]
    bay.waiting.answered(("/192.0.2.2",))
    assert not bay.decided
    bay.waiting.answered(("/192.0.2.1",))
    assert bay.decided == sessions
    assert len(bay.waiting) == 0


def test_each_pod_asks_on_its_own_account(bay: Bay) -> None:
    one, two = bay.park("/192.0.2.1", owner="one"), bay.park("/192.0.2.1", owner="two")
    assert bay.asked == [("one", ("/192.0.2.1",)), ("two", ("/192.0.2.1",))]
    bay.waiting.refused(("/192.0.2.1",), "one", "too many")
    assert (one.ended, two.ended) == (True, False)
    assert (one.record.reason, one.record.detail) == (Reason.STATE_UNAVAILABLE, "too many")
    assert bay.park("/192.0.2.1", owner="one").ended, "it is not asked for again at once"
    assert not bay.park("/192.0.2.1", owner="two").ended
    assert bay.asked[2:] == []
    bay.bench.until(lambda: not bay.park("/192.0.2.1", owner="one").ended)
    assert bay.asked[2:] == [("one", ("/192.0.2.1",))], "but later"
    bay.waiting.refused(("/192.0.2.1",), "", "nobody answers")
    assert two.ended
    assert len(bay.waiting) == 0


def test_the_answer_comes_too_late(bay: Bay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "WAIT_S", 0.01)
    session = bay.park("/192.0.2.1", "/192.0.2.2")
    bay.bench.until(lambda: session.ended)
    assert session.record.reason is Reason.STATE_UNAVAILABLE
    assert session.record.detail.startswith("the source of state has not said within 0.01 s who has /192.0.2.1, /192.0.2.2")
    bay.waiting.answered(("/192.0.2.1",))
    assert not bay.decided
    assert len(bay.waiting) == 0


def test_who_waits_again_has_what_is_left_of_its_time(bay: Bay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "WAIT_S", 0.05)
    session = bay.bench.session()
    rounds: list[Parked] = []

    def again(parked: Parked) -> None:
        rounds.append(parked)
        bay.waiting.park_again(parked, ("ns/wp.svc",))

    bay.waiting.park(session, "pod", ("/192.0.2.1",), again)
    bay.waiting.answered(("/192.0.2.1",))
    assert bay.asked == [("pod", ("/192.0.2.1",)), ("pod", ("ns/wp.svc",))]
    assert len(bay.waiting) == 1
    bay.bench.until(lambda: session.ended)
    assert rounds[0].due - bay.bench.poller.clock() < 0.05


def test_answers_that_do_not_fit_are_borne_a_few_times(bay: Bay) -> None:
    session = bay.bench.session()
    bay.waiting.park(session, "pod", ("/192.0.2.1",), lambda parked: bay.waiting.park_again(parked, ("/192.0.2.1",)))
    for _ in range(MAX_ROUNDS):
        assert not session.ended
        bay.waiting.answered(("/192.0.2.1",))
    assert session.ended
    assert session.record.reason is Reason.STATE_UNAVAILABLE


def test_who_ends_meanwhile_is_forgotten(bay: Bay) -> None:
    session = bay.park("/192.0.2.1")
    session.refuse(waiting.Refusal(Reason.POD_LEFT, "gone"))
    assert len(bay.waiting) == 0
    bay.waiting.answered(("/192.0.2.1",))
    assert not bay.decided


def test_a_defect_ends_one_connection(bay: Bay, caplog: pytest.LogCaptureFixture) -> None:
    def fail(parked: Parked) -> None:
        raise RuntimeError("a defect")

    bad = bay.bench.session()
    bay.waiting.park(bad, "pod", ("/192.0.2.1",), fail)
    good = bay.park("/192.0.2.1")
    bay.waiting.answered(("/192.0.2.1",))
    assert bad.record.reason is Reason.INTERNAL
    assert bay.decided == [good]
    assert "a defect" in caplog.text


def test_a_pod_has_a_bound_and_harms_no_other(bay: Bay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "MAX_PARKED_OF_POD", 8)
    monkeypatch.setattr(waiting, "MAX_PARKED", 10)
    mine = bay.park("/10.0.0.2", owner="mine")
    scanning = [bay.park(f"/192.0.2.{number}", owner="scanner") for number in range(20)]
    assert [session.ended for session in scanning] == [False] * 8 + [True] * 12
    assert not mine.ended
    also = [bay.park(f"/10.0.0.{number}", owner="mine") for number in range(3, 6)]
    assert not any(session.ended for session in (mine, *also))
    assert [session.ended for session in scanning[:8]] == [True, True] + [False] * 6, "its oldest made room"
    assert set(bay.reasons()) == {Reason.STATE_UNAVAILABLE}
    assert len(bay.waiting) == 10


# ── outbound ──


@pytest.fixture
def state(bench: Bench, tmp_path: Path) -> Iterator[State]:
    made = State(bench, tmp_path)
    made.context.names = set()
    made.context.pods["uid"] = bench.pod
    yield made
    made.close()


@pytest.fixture
def outbound(state: State) -> Outbound:
    return Outbound(state.context, OriginalDestination(-1))


def connect(bench: Bench, outbound: Outbound, ip: str, pod: Pod | None = None) -> None:
    _, ours = bench.pair()
    outbound.serve(pod or bench.pod, ours, ("10.0.0.1", 4000), (ip, 80))


def serve(bench: Bench, outbound: Outbound, ip: str, pod: Pod | None = None) -> Session:
    """A connection that waits."""
    connect(bench, outbound, ip, pod)
    return list(bench.sessions)[-1]


def test_a_connection_waits_and_goes_where_the_answer_says(bench: Bench, state: State, outbound: Outbound) -> None:
    session = serve(bench, outbound, "10.0.0.4")
    assert state.asked == [("uid", ("/10.0.0.4",))]
    assert not session.ended
    state.writer.apply(Delta(workloads=(waiting_server(),)))
    state.context.waiting.answered(("/10.0.0.4",))
    assert session.record.hbone_address == "10.0.0.4:15008"
    assert session.record.destination.workload == waiting_server()
    # It went on to the pool of tunnels, which has no certificate here: it waits for one, and is decided on anew.
    assert not session.ended
    state.writer.apply(Delta(removed_workloads=("late",)))
    bench.until(lambda: len(state.asked) == 2)
    assert state.asked[1] == ("uid", ("/10.0.0.4",))
    assert not session.ended


def waiting_server() -> object:
    return SERVER.__class__(
        uid="late", name="late", namespace="ns", addresses=("10.0.0.4",), protocol=SERVER.protocol, service_account="server"
    )


def test_its_own_workload_is_waited_for(bench: Bench, state: State, outbound: Outbound) -> None:
    stranger = bench.pod_called("stranger")
    session = serve(bench, outbound, UNKNOWN, stranger)
    assert state.asked == [("stranger", ("stranger",))]
    state.writer.apply(Delta(absent=("stranger",)))
    state.context.waiting.answered(("stranger",))
    assert session.record.reason is Reason.UNKNOWN_WORKLOAD


def test_a_pod_that_leaves_takes_what_waits_along(bench: Bench, state: State, outbound: Outbound) -> None:
    session = serve(bench, outbound, UNKNOWN)
    bench.pod.leaving = True
    state.writer.apply(Delta(absent=(f"/{UNKNOWN}",)))
    state.context.waiting.answered((f"/{UNKNOWN}",))
    assert session.record.reason is Reason.POD_LEFT
    bench.pod.leaving = False


def test_what_it_has_waited_for_its_peers_node_counts_also_after_it_was_parked(
    bench: Bench, state: State, outbound: Outbound
) -> None:
    session = serve(bench, outbound, "10.0.0.4")
    state.writer.apply(Delta(workloads=(waiting_server(),)))
    state.context.waiting.answered(("/10.0.0.4",))
    state.writer.apply(Delta(removed_workloads=("late",)))
    bench.until(lambda: len(state.asked) == 2)
    bench.poller.clock = lambda: time.monotonic() + SERVED_WITHIN_S
    state.writer.apply(Delta(workloads=(waiting_server(),)))
    state.context.waiting.answered(("/10.0.0.4",))
    assert session.record.reason is Reason.NO_CERTIFICATE


def test_a_pod_that_leaves_takes_along_what_waits_for_a_certificate(bench: Bench, outbound: Outbound) -> None:
    session = serve(bench, outbound, "10.0.0.2")
    assert not session.ended
    bench.pod.leaving = True
    bench.until(lambda: session.ended)
    assert session.record.reason is Reason.POD_LEFT
    bench.pod.leaving = False


def test_a_defect_as_it_is_decided_anew_ends_the_connection(
    bench: Bench, state: State, outbound: Outbound, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = serve(bench, outbound, "10.0.0.2")
    bench.passes(1)
    assert not session.ended
    monkeypatch.setattr(state.reader, "view", None)
    bench.until(lambda: session.ended)
    assert session.record.reason is Reason.INTERNAL


def test_what_decisions_hung_on_is_told_once(bench: Bench, state: State, outbound: Outbound) -> None:
    connect(bench, outbound, "10.0.0.2")
    assert state.context.take_names() == {"/10.0.0.2"}
    assert state.context.take_names() == set()
    connect(bench, outbound, "10.0.0.2")
    assert state.context.take_names() == set(), "a remembered decision"
    outbound.forget()
    connect(bench, outbound, "10.0.0.2")
    assert state.context.take_names() == {"/10.0.0.2"}
