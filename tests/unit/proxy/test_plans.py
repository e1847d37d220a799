"""A remembered decision is the decision of the moment: it ends with the state and the membership that it was made from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeproxy.decide.outbound import RouteKind
from nodeproxy.model.connection import Security
from nodeproxy.model.reason import Reason
from nodeproxy.proxy import plans as module
from nodeproxy.proxy.plans import MAX_PLANS, Plans
from tests.unit.proxy.conftest import Bench
from tests.unit.proxy.mesh_state import CLIENT, SERVER, State, deny

SERVER_80 = ("10.0.0.2", 80)


@pytest.fixture
def state(bench: Bench, tmp_path: Path) -> Iterator[State]:
    made = State(bench, tmp_path)
    yield made
    made.close()


@pytest.fixture
def plans(state: State) -> Plans:
    return Plans(state.context)


def enrol_server(bench: Bench, state: State, *addresses: str) -> None:
    pod = state.context.pods["server"] = bench.pod_called("server")
    pod.addresses = addresses or SERVER.addresses


def test_the_second_connection_has_the_plan_of_the_first(bench: Bench, plans: Plans) -> None:
    plan = plans.get(bench.pod, "10.0.0.1", SERVER_80)
    assert plans.get(bench.pod, "10.0.0.1", SERVER_80) is plan
    assert (plan.refusal, plan.security, plan.hbone_address) == (None, Security.MUTUAL_TLS, "10.0.0.2:15008")
    assert plan.key is not None
    assert plan.key.identities == {SERVER.identity}
    assert plan.party("10.0.0.1:4000").workload == CLIENT
    assert plans.get(bench.pod, "10.0.0.1", ("10.0.0.2", 81)) is not plan
    assert plans.get(bench.pod, "10.0.0.9", SERVER_80) is not plan


def test_it_ends_with_the_state(bench: Bench, state: State, plans: Plans) -> None:
    plan = plans.get(bench.pod, "10.0.0.1", SERVER_80)
    state.put(workloads=(CLIENT,))
    changed = plans.get(bench.pod, "10.0.0.1", SERVER_80)
    assert changed is not plan, "though the pass is not over"
    assert changed.route is not None
    assert changed.route.kind is RouteKind.PASSTHROUGH
    state.put(workloads=(SERVER,))
    state.context.renewed_view()
    gone = plans.get(bench.pod, "10.0.0.1", SERVER_80)
    assert gone.refusal is not None
    assert gone.refusal.reason is Reason.UNKNOWN_WORKLOAD


def test_policy_of_a_local_pod_is_the_one_of_the_moment(bench: Bench, state: State, plans: Plans) -> None:
    enrol_server(bench, state)
    allowed = plans.get(bench.pod, "10.0.0.1", SERVER_80)
    assert allowed.admission is not None
    for _ in range(3):
        state.put(deny(80))
        bench.passes(1)
        refusal = plans.get(bench.pod, "10.0.0.1", SERVER_80).refusal
        assert refusal is not None
        assert refusal.reason is Reason.POLICY_DENY
        state.put()
        bench.passes(1)
        assert plans.get(bench.pod, "10.0.0.1", SERVER_80).refusal is None


def test_membership_is_no_state_and_must_be_told(bench: Bench, state: State, plans: Plans) -> None:
    assert plans.get(bench.pod, "10.0.0.1", SERVER_80).key is not None
    enrol_server(bench, state)
    plans.forget()
    local = plans.get(bench.pod, "10.0.0.1", SERVER_80)
    assert (local.key, local.admission is not None) == (None, True)


def test_a_local_pod_whose_address_it_is_not(bench: Bench, state: State, plans: Plans) -> None:
    enrol_server(bench, state, "10.0.0.77")
    refusal = plans.get(bench.pod, "10.0.0.1", SERVER_80).refusal
    assert refusal is not None
    assert refusal.reason is Reason.CONNECT_UNREACHABLE
    assert refusal.detail == "the state gives 10.0.0.2 to server, whose namespace has 10.0.0.77"


def test_a_service_is_balanced_for_each_connection(bench: Bench, plans: Plans) -> None:
    found = [plans.get(bench.pod, "10.0.0.1", ("10.96.0.1", 80)) for _ in range(10)]
    addresses = [plan.destination.address for plan in found]
    assert sorted(set(addresses)) == ["10.0.0.2:8080", "10.0.0.3:8080"]
    assert addresses.count("10.0.0.2:8080") == 5
    assert len({id(plan) for plan in found}) == 2, "what follows from the choice is remembered"


def test_who_was_not_steered_is_refused(bench: Bench, plans: Plans) -> None:
    refusal = plans.get(bench.pod, "10.0.0.1", None).refusal
    assert refusal is not None
    assert refusal.reason is Reason.NO_ORIGINAL_DESTINATION


def test_plans_are_bounded(bench: Bench, plans: Plans) -> None:
    for port in range(1, MAX_PLANS + 100):
        plans.get(bench.pod, "10.0.0.1", ("192.0.2.1", port))
    assert len(plans._plans) <= MAX_PLANS


def test_a_defect_is_a_refusal_and_not_remembered(
    bench: Bench, plans: Plans, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("a defect")

    with monkeypatch.context() as patched:
        patched.setattr(module, "outbound", fail)
        refusal = plans.get(bench.pod, "10.0.0.1", SERVER_80).refusal
    assert refusal is not None
    assert refusal.reason is Reason.INTERNAL
    assert "a defect" in caplog.text
    assert plans.get(bench.pod, "10.0.0.1", SERVER_80).refusal is None
