"""After a change of the state, whatever policy would refuse now has ended, and hardly anything else was looked at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nodeproxy.model.connection import Direction
from nodeproxy.model.delta import Delta
from nodeproxy.model.policy import Action, Match, Policy, PolicyScope, StringMatch
from nodeproxy.model.reason import Reason, Refusal
from nodeproxy.policy.match import Subject
from nodeproxy.proxy import sessions
from nodeproxy.proxy.session import Session
from nodeproxy.state.store import StateWriter
from nodeproxy.state.view import View
from tests.unit.proxy.conftest import Bench
from tests.unit.state.builders import pod

PODS = [pod(f"w{n}", f"10.0.0.{n}", namespace=f"ns{n % 2}", service_account=f"a{n}") for n in range(8)]


class Node:
    """A worker's sessions beside a state that changes."""

    def __init__(self, bench: Bench, writer: StateWriter, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bench, self.writer = bench, writer
        self.reader = writer.reader()
        self.looked_at: list[str] = []
        self.asked = 0  # questions to policy
        look, ask = sessions._recheck, sessions.recheck

        def looking(view: View, session: Session, *rest: Any) -> None:
            self.looked_at.append(session.destination_uid)
            look(view, session, *rest)

        def asking(*arguments: Any) -> Refusal | None:
            self.asked += 1
            return ask(*arguments)

        monkeypatch.setattr(sessions, "_recheck", looking)
        monkeypatch.setattr(sessions, "recheck", asking)

    def inbound(self, destination: str, identity: str = "spiffe://cluster.local/ns/clients/sa/c") -> Session:
        session = self.bench.session(Direction.INBOUND)
        self.bench.sessions.admitted(session, Subject(identity, "10.9.0.1", "10.0.0.1", 80), destination)
        return session

    def local(self, source: str, destination: str) -> Session:
        session = self.bench.session()
        session.pod = self.bench.pod_called(source)
        session.pod.connections += 1
        workload = self.reader.view().workload(source)
        assert workload is not None
        self.bench.sessions.admitted(session, Subject(workload.identity, workload.addresses[0], "10.0.0.1", 80), destination)
        return session

    def change(self, delta: Delta) -> list[str]:
        """Apply it; the destinations of the sessions that were looked at."""
        self.writer.apply(delta)
        view = self.reader.view()
        self.bench.sessions.recheck(view, self.reader.take_touched())
        looked_at, self.looked_at = self.looked_at, []
        return sorted(looked_at)


@pytest.fixture
def node(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    writer = StateWriter(tmp_path)
    writer.apply(Delta(workloads=tuple(PODS)))
    made = Node(bench, writer, monkeypatch)
    made.reader.view()
    yield made
    made.reader.close()
    writer.close()


def denial(namespace: str, scope: PolicyScope, source: str = "clients") -> Policy:
    rule = ((Match(namespaces=(StringMatch(exact=source),)),),)
    return Policy(name="deny", namespace=namespace, scope=scope, action=Action.DENY, rules=(rule,))


def reasons(found: list[Session]) -> list[Reason | None]:
    return [session.record.reason for session in found]


def test_a_change_of_one_workload_looks_at_its_own(node: Node) -> None:
    for number in range(8):
        for _ in range(10):
            node.inbound(f"w{number}")
    assert node.change(Delta(workloads=(msgspec.structs.replace(PODS[3], node="elsewhere"),))) == ["w3"] * 10
    assert node.change(Delta(workloads=(pod("new", "10.0.1.1"),))) == []


def test_a_policy_of_a_namespace_looks_at_that(node: Node) -> None:
    found = [node.inbound(f"w{number}") for number in range(8)]
    assert node.change(Delta(policies=(denial("ns1", PolicyScope.NAMESPACE),))) == ["w1", "w3", "w5", "w7"]
    assert reasons(found) == [None, Reason.POLICY_DENY] * 4


def test_a_policy_for_all_looks_at_all(node: Node) -> None:
    found = [node.inbound(f"w{number}") for number in range(8)]
    spared = node.inbound("w0", "spiffe://cluster.local/ns/others/sa/c")
    assert len(node.change(Delta(policies=(denial("root", PolicyScope.GLOBAL),)))) == 9
    assert reasons(found) == [Reason.POLICY_DENY] * 8
    assert not spared.ended


def test_a_clients_connections_are_one_question(node: Node) -> None:
    many = [node.inbound("w0") for _ in range(50)]
    spared = [node.inbound("w0", "spiffe://cluster.local/ns/others/sa/c") for _ in range(50)]
    assert len(node.change(Delta(policies=(denial("root", PolicyScope.GLOBAL),)))) == 100
    assert node.asked == 2
    assert reasons(many) == [Reason.POLICY_DENY] * 50
    assert reasons(spared) == [None] * 50


def test_a_policy_that_a_workload_lists_looks_at_that(node: Node) -> None:
    found = [node.inbound(f"w{number}") for number in range(8)]
    listing = msgspec.structs.replace(PODS[2], policies=("ns0/deny",))
    assert node.change(Delta(workloads=(listing,))) == ["w2"]
    assert node.change(Delta(policies=(denial("ns0", PolicyScope.WORKLOAD_SELECTOR),))) == ["w2"]
    assert [session.ended for session in found] == [number == 2 for number in range(8)]


def test_a_workload_that_begins_to_list_a_policy_or_changes_its_namespace(node: Node) -> None:
    policies = (denial("ns0", PolicyScope.WORKLOAD_SELECTOR), denial("other", PolicyScope.NAMESPACE))
    listing, moving = node.inbound("w2"), node.inbound("w4")
    assert node.change(Delta(policies=policies)) == []
    changed = (
        msgspec.structs.replace(PODS[2], policies=("ns0/deny",)),
        msgspec.structs.replace(PODS[4], namespace="other"),
    )
    assert node.change(Delta(workloads=changed)) == ["w2", "w4"]
    assert reasons([listing, moving]) == [Reason.POLICY_DENY] * 2


def test_an_allow_policy_that_goes(node: Node) -> None:
    rule = ((Match(namespaces=(StringMatch(exact="clients"),)),),)
    allow = Policy(name="allow", namespace="ns1", scope=PolicyScope.NAMESPACE, action=Action.ALLOW, rules=(rule,))
    nobody = msgspec.structs.replace(allow, name="nobody", rules=())
    node.change(Delta(policies=(allow, nobody)))
    session = node.inbound("w1")
    assert node.change(Delta(removed_policies=("ns1/allow",))) == ["w1"]
    assert session.record.reason is Reason.POLICY_NO_ALLOW


def test_of_two_pods_of_this_node_the_source_is_who_the_state_says(node: Node) -> None:
    node.change(Delta(policies=(denial("root", PolicyScope.GLOBAL, source="bad"),)))
    session, other = node.local("w0", "w1"), node.local("w2", "w1")
    assert node.change(Delta(workloads=(msgspec.structs.replace(PODS[0], node="elsewhere"),))) == ["w1"]
    assert not session.ended
    assert node.change(Delta(workloads=(msgspec.structs.replace(PODS[0], namespace="bad"),))) == ["w1"]
    assert reasons([session, other]) == [Reason.POLICY_DENY, None]
    node.change(Delta(removed_workloads=("w2",)))
    assert (other.record.reason, other.record.detail) == (
        Reason.UNKNOWN_WORKLOAD,
        "the source's workload was removed from the state",
    )


def test_a_destination_that_goes_takes_its_connections(node: Node) -> None:
    session, other = node.inbound("w0"), node.inbound("w1")
    assert node.change(Delta(removed_workloads=("w0",))) == ["w0"]
    assert reasons([session, other]) == [Reason.UNKNOWN_WORKLOAD, None]


def test_who_has_lost_count_looks_at_all(node: Node) -> None:
    found = [node.inbound(f"w{number}") for number in range(8)]
    local = node.local("w0", "w1")
    for turn in range(40):
        node.writer.apply(Delta(workloads=(pod("w9", f"10.0.9.{turn}"),)))
    assert len(node.change(Delta(workloads=(msgspec.structs.replace(PODS[0], namespace="x"),)))) == 9
    assert not any(session.ended for session in [*found, local])


def test_what_has_ended_is_forgotten(node: Node) -> None:
    sessions = [node.inbound("w0"), node.local("w0", "w1")]
    towards = node.bench.pod_called("w1")
    assert node.bench.sessions.involve(towards)
    for session in sessions:
        session.reset_by(None)  # type: ignore[arg-type]  # whichever half
    assert not node.bench.sessions.involve(towards)
    assert node.change(Delta(policies=(denial("root", PolicyScope.GLOBAL),))) == []
    judged = node.bench.sessions._judged
    assert (judged._towards, judged._from) == ({}, {})
