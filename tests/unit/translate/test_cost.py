"""What a change costs, counted: it is worked out again what follows from it, and nothing else of the cluster."""

from __future__ import annotations

from collections import Counter

import pytest

from nodeproxy.translate.translator import Translator
from tests.unit.translate.resources import State, entry, gateway, pod, policy, resource, service

pytestmark = pytest.mark.unit

NAMESPACES, SERVICES, PODS, NODES = 4, 5, 6, 10  # services a namespace, pods a service


@pytest.fixture
def state(monkeypatch):
    """A cluster of 120 pods in 20 services; `state.cost()`: templates and pods worked out since it was asked last."""
    counts: Counter[str] = Counter()
    for name in ("_derive", "_workload"):
        original = getattr(Translator, name)

        def counting(self, thing, original=original, name=name):
            counts[name] += 1
            return original(self, thing)

        monkeypatch.setattr(Translator, name, counting)
    state = State()
    resources = [resource("Namespace", f"n{number}") for number in range(NAMESPACES)]
    number = 0
    for namespace in range(NAMESPACES):
        for app in range(SERVICES):
            resources.append(service(f"n{namespace}/s{app}", {"app": f"s{app}"}))
            for replica in range(PODS):
                number += 1
                resources.append(_pod(namespace, app, replica, number))
    state.apply(*resources)

    def cost() -> tuple[int, int]:
        found = counts["_derive"], counts["_workload"]
        counts.clear()
        return found

    assert cost() == (NAMESPACES * SERVICES, NAMESPACES * SERVICES * PODS)
    state.cost = cost
    return state


def _pod(namespace: int, app: int, replica: int, number: int, **more):
    labels = {"app": f"s{app}", "team": "a"}
    return pod(
        f"n{namespace}/s{app}-{replica}", f"10.0.0.{number}", labels=labels, spec={"nodeName": f"node-{number % NODES}"}, **more
    )


@pytest.mark.parametrize(
    ("change", "templates", "pods", "told"),
    [
        pytest.param(_pod(1, 2, 3, 46, ready=False), 0, 1, 1, id="a pod's health"),
        pytest.param(_pod(1, 2, 3, 46), 0, 0, 0, id="nothing"),
        pytest.param(pod("n1/new", "10.0.1.1", labels={"app": "s2", "team": "b"}), 1, 1, 1, id="a pod of a new template"),
        pytest.param(resource("Node", "node-3", labels={"topology.kubernetes.io/zone": "z"}), 0, 12, 12, id="a node's zone"),
        pytest.param(resource("Node", "node-3", labels={"other": "z"}), 0, 0, 0, id="a node's other labels"),
        pytest.param(service("n1/s2", {"app": "s2"}, ((80, 9090),)), 1, 6, 6, id="a service's target port"),
        pytest.param(service("n1/s2", {"app": "s2"}, vip="10.96.0.2"), 0, 0, 0, id="a service's address"),
        pytest.param(service("n1/new", {"app": "s2", "team": "a"}), 1, 6, 6, id="a new service"),
        pytest.param(resource("Namespace", "n1", labels={"istio.io/dataplane-mode": "ambient"}), 5, 30, 30, id="a namespace"),
        pytest.param(resource("Namespace", "n1", labels={"other": "x"}), 5, 0, 0, id="a namespace's other labels"),
        pytest.param(policy("n1/p", {"app": "s2"}), 5, 6, 6, id="a policy"),
        pytest.param(policy("n1/p"), 0, 0, 0, id="a policy for a namespace"),
        pytest.param(gateway("n1/wp"), 0, 0, 0, id="a gateway that nobody names"),
        pytest.param(entry("n1/e", ["e.com"], endpoints=[{"address": "192.0.2.1"}]), 0, 0, 1, id="a service entry"),
    ],
)  # fmt: skip
def test_a_change_costs_what_follows_from_it(state, change, templates, pods, told):
    delta = state.apply(change)
    assert (*state.cost(), len(delta.workloads)) == (templates, pods, told)


def test_a_waypoint_costs_its_users(state):
    state.apply(service("n2/s1", {"app": "s1"}, labels={"istio.io/use-waypoint": "wp"}))
    state.cost()
    delta = state.apply(gateway("n2/wp"))
    assert (state.cost(), len(delta.services), len(delta.workloads)) == ((0, 0), 1, 0)


def test_many_changes_of_a_pod_cost_one(state):
    for ready in (False, True, False):
        state.translator.apply("Pod", "n0/s0-0", _pod(0, 0, 0, 1, ready=ready))
    state.take()
    assert state.cost() == (0, 1)


def test_pods_of_a_template_share_what_they_have_in_common(state):
    first, second = state.pod("n0/s0-0"), state.pod("n0/s0-1")
    assert first.services is second.services
    assert first.policies is second.policies
