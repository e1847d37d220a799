"""No connection stands that policy, membership or identity of this moment would refuse, whatever has changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeproxy.decide.inbound import recheck
from nodeproxy.model.connection import Direction
from nodeproxy.model.delta import Delta
from nodeproxy.model.workload import Workload
from nodeproxy.policy.match import Subject
from nodeproxy.proxy.session import Session
from nodeproxy.state import view
from nodeproxy.state.store import StateWriter
from nodeproxy.state.view import View
from tests.fuzz.random_policies import ACCOUNTS, NAMESPACES, Chance
from tests.unit.proxy.conftest import Bench
from tests.unit.state.builders import pod

UIDS = tuple(f"w{number}" for number in range(12))


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


def workload(chance: Chance, uid: str) -> Workload:
    return pod(
        uid,
        "10.0.0.1",
        trust_domain="td",
        namespace=chance.random.choice(("ns", "other", *NAMESPACES)),
        service_account=chance.random.choice(ACCOUNTS),
        policies=tuple({policy.key: None for policy in chance.some(chance.policy, 2, none=0.6)}),
    )


def begin(bench: Bench, chance: Chance, state: View) -> None:
    """A connection, if policy lets it in."""
    destination, source = (state.workload(chance.random.choice(UIDS)) for _ in range(2))
    if destination is None or source is None:
        return
    is_local = chance.random.random() < 0.5
    subject = chance.subject()
    if is_local:
        subject = Subject(source.identity, subject.source_ip, subject.destination_ip, subject.destination_port)
    if recheck(state, destination, subject) is not None:
        return
    session = bench.session(Direction.OUTBOUND if is_local else Direction.INBOUND)
    session.pod = bench.pod_called(source.uid)
    session.pod.connections += 1
    bench.sessions.admitted(session, subject, destination.uid)


def is_refused(state: View, session: Session) -> bool:
    """By everything that counts, asked anew."""
    destination, subject = state.workload(session.destination_uid), session.subject
    assert subject is not None
    if session.record.direction is Direction.OUTBOUND:
        source = state.workload(session.pod.uid)
        if source is None:
            return True
        subject = Subject(source.identity, subject.source_ip, subject.destination_ip, subject.destination_port)
    return destination is None or recheck(state, destination, subject) is not None


@pytest.mark.parametrize("most_walked", [0, 16])
def test_none_stands_that_would_be_refused(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_walked: int
) -> None:
    monkeypatch.setattr(view, "MAX_WALKED", most_walked)
    chance = Chance(3)
    writer = StateWriter(tmp_path)
    writer.apply(Delta(workloads=tuple(workload(chance, uid) for uid in UIDS)))
    reader = writer.reader()
    ended = 0
    for _ in range(600):
        state = reader.view()
        for _ in range(4):
            begin(bench, chance, state)
        before = list(bench.sessions)
        for _ in range(chance.random.choice((1, 1, 1, 3, 20))):  # changes that are seen as one
            writer.apply(
                Delta(
                    workloads=tuple(workload(chance, uid) for uid in chance.random.sample(UIDS, chance.random.choice((0, 0, 1)))),
                    policies=chance.some(chance.policy, 1, none=0.4),
                    removed_workloads=tuple(uid for uid in UIDS if chance.random.random() < 0.005),
                    removed_policies=tuple(policy.key for policy in chance.some(chance.policy, 3)),
                )
            )
        state = reader.view()
        due = {session for session in before if is_refused(state, session)}
        bench.sessions.recheck(state, reader.take_touched())
        assert {session for session in before if session.ended} == due
        ended += len(due)
    assert ended > 200
    assert bench.errors == []
    reader.close()
    writer.close()
