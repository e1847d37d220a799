from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nodeproxy.agent.sources import xds_apply
from nodeproxy.agent.sources.change import Change
from nodeproxy.agent.sources.xds_apply import Applier, Outcome
from nodeproxy.agent.sources.xds_rejected import MAX_LISTED, RejectedResources
from nodeproxy.errors import StateError, UnstorableError
from nodeproxy.model.policy import PolicyScope
from nodeproxy.proto import authorization_pb2, discovery_pb2, workload_pb2
from nodeproxy.state.view import View
from nodeproxy.xds import message
from nodeproxy.xds.delta_client import MAX_NAMED, Rejected
from nodeproxy.xds.message import Response
from nodeproxy.xds.names import ADDRESS, AUTHORIZATION
from tests.unit.agent.sources.xds_agent import StoreAgent
from tests.xds_server import pod, policy

UID = "Kubernetes//Pod/ns/"


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[StoreAgent]:
    made = StoreAgent(tmp_path / "s")
    yield made
    made.close()


def response(*messages: Any, removed: tuple[str, ...] = (), named: dict[str, bytes] | None = None, kind: str = "") -> Response:
    is_policy = kind == AUTHORIZATION or any(isinstance(each, authorization_pb2.Authorization) for each in messages)
    type_url = AUTHORIZATION if is_policy else ADDRESS
    made = discovery_pb2.DeltaDiscoveryResponse(type_url=type_url, nonce="n", removed_resources=removed)
    entries = dict(named or {})
    for each in messages:
        if isinstance(each, workload_pb2.Workload):
            entries[each.uid] = workload_pb2.Address(workload=each).SerializeToString()
        else:
            entries[f"{each.namespace}/{each.name}"] = each.SerializeToString()
    for name, raw in entries.items():
        resource = made.resources.add(name=name, version="1")
        resource.resource.type_url, resource.resource.value = type_url, raw
    return Response(made.SerializeToString())


def apply(agent: StoreAgent, *responses: Response) -> list[Outcome]:
    async def scenario() -> list[Outcome]:
        applier = Applier(agent, RejectedResources())
        outcomes = [await applier.apply(each) for each in responses]
        await applier.let_go()
        return outcomes

    return asyncio.run(scenario())


def test_pieces_of_addresses_and_policies_at_once(agent: StoreAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xds_apply, "MAX_BATCH", 10)
    apply(agent, response(*(pod(f"p{number}", f"10.0.0.{number}") for number in range(35))))
    assert agent.writes == 4
    apply(agent, response(*(policy(f"p{number}") for number in range(35))))
    assert agent.writes == 5  # at once, for there are workloads
    assert agent.view().counts() == {"workloads": 35, "services": 0, "policies": 35}


def test_policies_of_nobody_come_in_pieces(agent: StoreAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xds_apply, "MAX_BATCH", 10)
    apply(agent, response(*(policy(f"p{number}") for number in range(35))))
    assert agent.writes == 4


def test_what_comes_is_there_before_what_goes_is_gone(agent: StoreAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xds_apply, "MAX_BATCH", 1)
    apply(agent, response(pod("old", "10.0.0.1")))
    owners: list[str] = []
    real = agent.apply

    async def watching(change: Change) -> None:
        await real(change)
        owner = agent.view().workload_at("", "10.0.0.1")
        owners.append(owner.name if owner else "nobody")

    monkeypatch.setattr(agent, "apply", watching)
    apply(agent, response(pod("new", "10.0.0.1"), removed=(f"{UID}old",)))
    assert "nobody" not in owners
    assert owners[-1] == "new"


def test_a_policy_that_has_gone_stays_until_workloads_are_told_of(agent: StoreAgent) -> None:
    async def scenario() -> None:
        applier = Applier(agent, RejectedResources())
        await applier.apply(response(policy("a"), policy("b"), policy("c")))
        await applier.apply(response(policy("d"), removed=("ns/a", "ns/b", "ns/c"), kind=AUTHORIZATION))
        assert agent.view().counts()["policies"] == 4
        # b is back, and c in a form that is not understood: the one before is no last good one of it.
        await applier.apply(response(policy("b"), policy("c", extensions=[{"name": "x"}])))
        assert applier.holds
        await applier.let_go()
        assert not applier.holds

    asyncio.run(scenario())
    assert [(each.name, bool(each.stands_in)) for each in agent.view().policies()] == [("b", False), ("c", True), ("d", False)]


def test_a_policy_holds_for_all_until_those_are_told_of_that_list_it(agent: StoreAgent) -> None:
    async def scenario() -> None:
        applier = Applier(agent, RejectedResources())
        await applier.apply(response(policy("a"), policy("b"), policy("c"), policy("d", scope="WORKLOAD_SELECTOR")))
        assert not applier.holds
        narrow = [policy(name, scope="WORKLOAD_SELECTOR", action="ALLOW") for name in "abcd"]
        await applier.apply(response(*narrow))
        scopes = {each.name: each.scope for each in agent.view().policies()}
        assert scopes == dict.fromkeys("abc", PolicyScope.NAMESPACE) | {"d": PolicyScope.WORKLOAD_SELECTOR}
        await applier.apply(response(policy("b"), removed=("ns/c",)))
        await applier.apply(response(policy("a", extensions=[{"name": "x"}])))
        same_name = workload_pb2.Service(name="a", namespace="ns", hostname="a")
        await applier.apply(response(named={"ns/a": workload_pb2.Address(service=same_name).SerializeToString()}))
        assert applier.holds
        await applier.let_go()

    asyncio.run(scenario())
    found = {each.name: (each.scope, each.action) for each in agent.view().policies()}
    narrowed = (PolicyScope.WORKLOAD_SELECTOR, "ALLOW")
    assert found == {"a": narrowed, "b": (PolicyScope.NAMESPACE, "DENY"), "d": narrowed}


def test_what_is_given_and_removed_stays(agent: StoreAgent) -> None:
    apply(agent, response(pod("a", "10.0.0.1"), removed=(f"{UID}a", "", "x" * 1000)))
    assert agent.view().counts()["workloads"] == 1


def test_a_name_that_is_anothers(agent: StoreAgent) -> None:
    (outcome,) = apply(agent, response(named={"other": workload_pb2.Address(workload=pod("a")).SerializeToString()}))
    assert [(each.name, each.reason) for each in outcome.rejected] == [("other", "name_mismatch")]
    assert agent.view().counts()["workloads"] == 0


def test_few_are_named_and_all_are_counted(agent: StoreAgent) -> None:
    (outcome,) = apply(agent, response(named={f"n{number}": b"\xff" for number in range(50)}))
    assert (len(outcome.rejected), outcome.count) == (MAX_NAMED, 50)


def test_a_stand_in_holds_for_all_only_in_the_root_namespace(agent: StoreAgent) -> None:
    garbage = {"istio-system/a": b"\xff", "ns/b": b"\xff", "mesh-root/c": b"\xff", "no policy's name": b"\xff", "a/b/c": b"\xff"}
    known = policy("global", namespace="mesh-root", scope="GLOBAL")
    apply(agent, response(known), response(named=garbage, kind=AUTHORIZATION))
    scopes = {each.key: each.scope for each in agent.view().policies() if each.stands_in}
    assert scopes == {
        "istio-system/a": PolicyScope.GLOBAL,
        "mesh-root/c": PolicyScope.GLOBAL,
        "ns/b": PolicyScope.NAMESPACE,
    }
    apply(agent, response(removed=("ns/b",), kind=AUTHORIZATION))
    assert agent.view().policy("ns/b") is None


def test_a_policy_too_large_to_be_read_denies(agent: StoreAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message, "MAX_RESOURCE_BYTES", 200)
    large = policy("large", action="ALLOW", rules=[{"clauses": [{"matches": [{"destination_ports": range(1, 200)}]}]}])
    (outcome,) = apply(agent, response(large, policy("small")))
    assert [(each.name, each.reason) for each in outcome.rejected] == [("ns/large", "too_large")]
    kept = agent.view().policy("ns/large")
    assert kept is not None
    assert (kept.action, kept.rules, kept.scope) == ("DENY", ((),), PolicyScope.NAMESPACE)  # it may have been one that denies
    assert agent.view().policy("ns/small") is not None


def test_where_a_policy_does_not_fit_the_one_that_it_follows_stays(agent: StoreAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    apply(agent, response(policy("before", action="ALLOW")))
    real = agent.apply

    async def small(change: Any) -> None:
        if change._delta.policies:
            raise StateError("full")
        await real(change)

    monkeypatch.setattr(agent, "apply", small)
    with pytest.raises(StateError, match="full"):
        apply(agent, response(policy("after", action="ALLOW"), removed=("ns/before",)))
    assert agent.view().policy("ns/before") is not None


def test_global_policies_are_looked_at_once_a_response(agent: StoreAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0
    real = View.global_namespaces

    def counting(view: View) -> frozenset[str]:
        nonlocal asked
        asked += 1
        return real(view)

    monkeypatch.setattr(View, "global_namespaces", counting)
    apply(agent, response(named={f"ns/p{number}": b"\xff" for number in range(50)}, kind=AUTHORIZATION))
    assert (asked, agent.view().counts()["policies"]) == (1, 50)


def test_one_that_cannot_be_stored_keeps_nobody_out(agent: StoreAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    real = agent.apply

    async def picky(change: Any) -> None:
        if any(each.name == "bad" for each in change._delta.workloads):
            raise UnstorableError("no place for it")
        await real(change)

    monkeypatch.setattr(agent, "apply", picky)
    (outcome,) = apply(agent, response(pod("a"), pod("bad"), pod("b")))
    assert [(each.name, each.reason, each.why) for each in outcome.rejected] == [(f"{UID}bad", "state", "no place for it")]
    assert [each.name for each in agent.view().workloads()] == ["a", "b"]


def test_a_store_that_takes_nothing_is_told(agent: StoreAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(change: Change) -> None:
        raise StateError("full")

    monkeypatch.setattr(agent, "apply", full)
    for pods in ((pod("a"),), (pod("a"), pod("b"))):
        with pytest.raises(StateError, match="full"):
            apply(agent, response(*pods))


def test_what_is_rejected_again_is_not_logged_again(caplog: pytest.LogCaptureFixture) -> None:
    rejected = RejectedResources()
    for number in range(100):
        rejected.add(ADDRESS, Rejected("n", "r", f"at byte {number}"), 0)
    assert len(caplog.records) == 1
    rejected.add(ADDRESS, Rejected("n", "another", "w"), 0)
    rejected.clear(ADDRESS, "n")
    rejected.add(ADDRESS, Rejected("n", "another", "w"), 0)
    assert len(caplog.records) == 3
    assert rejected.totals == {(ADDRESS, "r"): 100, (ADDRESS, "another"): 2}


def test_rejected_ones_are_bounded_and_forgotten() -> None:
    rejected = RejectedResources()
    for number in range(12_000):
        rejected.add(ADDRESS, Rejected(f"n{number}", "r", "w"), number)
    assert rejected.totals == {(ADDRESS, "r"): 12_000}
    assert rejected.now() == {ADDRESS: 10_000}
    assert len(rejected.listed()) == MAX_LISTED
    assert rejected.listed()[0] == {"type": "Address", "name": "n0", "reason": "r", "why": "w"}
    rejected.clear(ADDRESS, "n0")
    assert rejected.listed()[0]["name"] == "n1"
