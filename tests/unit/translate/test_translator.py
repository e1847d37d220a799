from __future__ import annotations

import pytest

from nodeproxy.model.delta import Delta
from nodeproxy.model.workload import (
    Locality,
    Protocol,
)
from nodeproxy.translate.settings import MeshSettings
from tests.unit.translate.resources import State, entry, gateway, pod, policy, resource, service, slice_of

pytestmark = pytest.mark.unit

WEB = {"app": "web"}
WEB_HOST = "shop/web.shop.svc.cluster.local"


def test_a_pod_becomes_a_workload_with_all_that_it_says():
    state = State(MeshSettings(trust_domain="td", cluster_id="c1", network="n1"))
    state.apply(
        resource("Node", "node-a", labels={"topology.kubernetes.io/region": "r", "topology.kubernetes.io/zone": "z"}),
        resource("Namespace", "shop", labels={"istio.io/dataplane-mode": "ambient"}),
        pod(
            "shop/web-1-x",
            "10.0.0.1",
            "FD00::1",
            spec={"serviceAccountName": "web"},
            labels={"app": "web", "version": "v2", "pod-template-hash": "1"},
            generateName="web-1-",
            ownerReferences=[{"kind": "ReplicaSet", "name": "web-1", "controller": True}],
        ),
    )
    (found,) = state.workloads.values()
    assert found.uid == "c1//Pod/shop/web-1-x"
    assert (found.name, found.namespace, found.addresses) == ("web-1-x", "shop", ("10.0.0.1", "fd00::1"))
    assert (found.network, found.trust_domain, found.cluster) == ("n1", "td", "c1")
    assert (found.protocol, found.service_account, found.node) == (Protocol.HBONE, "web", "node-a")
    assert (found.canonical_name, found.canonical_revision) == ("web", "v2")
    assert (found.workload_type, found.workload_name) == ("deployment", "web")
    assert found.locality == Locality("r", "z")
    assert found.healthy


@pytest.mark.parametrize(
    ("change", "there"),
    [
        ({"phase": "Succeeded"}, False),
        ({"phase": "Failed"}, False),
        ({"phase": "Pending"}, True),  # its init containers run, and may be spoken to
    ],
)
def test_a_pod_is_a_workload_while_it_lives(change, there):
    state = State()
    state.apply(pod("shop/a", "10.0.0.1"))
    state.apply(pod("shop/a", "10.0.0.1", **change))
    assert bool(state.workloads) is there


def test_a_pod_without_an_address_is_no_workload():
    state = State()
    assert not state.apply(pod("shop/a")).workloads
    assert state.apply(pod("shop/a", "10.0.0.1")).workloads
    assert state.apply(pod("shop/a")).removed_workloads == ("Kubernetes//Pod/shop/a",)


def test_a_pod_that_is_not_ready_or_about_to_go_is_unhealthy():
    state = State()
    state.apply(
        pod("shop/a", "10.0.0.1", ready=False),
        pod("shop/b", "10.0.0.2", deletionTimestamp="2026-01-01T00:00:00Z"),
        pod("shop/c", "10.0.0.3"),
    )
    assert [state.pod(f"shop/{name}").healthy for name in "abc"] == [False, False, True]


@pytest.mark.parametrize(
    ("namespace", "own", "more", "protocol"),
    [
        ("", "", {}, Protocol.TCP),
        ("ambient", "", {}, Protocol.HBONE),
        ("", "ambient", {}, Protocol.HBONE),
        ("ambient", "none", {}, Protocol.TCP),
        ("ambient", "", {"spec": {"hostNetwork": True}}, Protocol.TCP),
        ("ambient", "", {"annotations": {"sidecar.istio.io/status": "{}"}}, Protocol.TCP),
        ("", "", {"annotations": {"ambient.istio.io/redirection": "enabled"}}, Protocol.HBONE),
    ],
)
def test_a_pod_speaks_hbone_if_it_is_labelled_into_the_mesh(namespace, own, more, protocol):
    state = State()
    labels = {"istio.io/dataplane-mode": own} if own else {}
    home = resource("Namespace", "shop", labels={"istio.io/dataplane-mode": namespace} if namespace else {})
    state.apply(home, pod("shop/a", "10.0.0.1", labels=labels, **more))
    assert state.pod("shop/a").protocol is protocol


def test_a_pod_that_speaks_hbone_itself_says_so():
    state = State()
    state.apply(pod("shop/a", "10.0.0.1", labels={"networking.istio.io/tunnel": "x,http"}))
    assert (state.pod("shop/a").protocol, state.pod("shop/a").native_tunnel) == (Protocol.HBONE, True)


@pytest.mark.parametrize(
    ("owner", "labels", "expected"),
    [
        ({"kind": "ReplicaSet", "name": "web-abc"}, {"pod-template-hash": "abc"}, ("deployment", "web")),
        ({"kind": "ReplicaSet", "name": "web-abc"}, {}, ("pod", "web-abc")),
        ({"kind": "ReplicaSet", "name": "web-abc"}, {"rollouts-pod-template-hash": "abc"}, ("deployment", "web")),
        ({"kind": "StatefulSet", "name": "db"}, {}, ("pod", "db")),
        ({"kind": "Job", "name": "report-28912345"}, {}, ("cronjob", "report")),
        ({"kind": "Job", "name": "report"}, {}, ("job", "report")),
        ({"kind": "Job", "name": "report"}, {"service.istio.io/workload-name": "mine"}, ("job", "mine")),
    ],
)
def test_a_workload_is_named_after_what_made_its_pod(owner, labels, expected):
    state = State()
    owners = [{"kind": "Other", "name": "x"}, {**owner, "controller": True}]
    state.apply(pod("shop/a", "10.0.0.1", labels=labels, generateName="a-", ownerReferences=owners))
    assert (state.pod("shop/a").workload_type, state.pod("shop/a").workload_name) == expected


def test_a_pod_that_nothing_made_is_its_own_workload():
    state = State()
    state.apply(pod("shop/a", "10.0.0.1"))
    found = state.pod("shop/a")
    assert (found.workload_type, found.workload_name, found.canonical_name, found.canonical_revision) == (
        "pod",
        "a",
        "a",
        "latest",
    )


def test_pods_that_share_an_address_are_all_there():
    state = State()
    state.apply(*(pod(f"shop/{name}", "10.0.0.1", spec={"hostNetwork": True}) for name in "ab"))
    assert len(state.workloads) == 2
    assert all(item.host_network for item in state.workloads.values())


def test_a_pod_that_went_and_came_back_in_between_is_not_removed():
    state = State()
    state.apply(pod("shop/a", "10.0.0.1"))
    state.translator.apply("Pod", "shop/a", None)
    delta = state.apply(pod("shop/a", "10.0.0.2", uid="other"))
    assert [item.addresses for item in delta.workloads] == [("10.0.0.2",)]
    assert not delta.removed_workloads


def test_policies_reach_the_workloads_that_they_select():
    state = State()
    state.apply(pod("shop/a", "10.0.0.1", labels=WEB), pod("shop/b", "10.0.0.2"), policy("shop/p", WEB), policy("shop/all"))
    assert state.pod("shop/a").policies == ("shop/p",)
    assert state.pod("shop/b").policies == ()
    assert set(state.policies) == {"shop/p", "shop/all"}
    delta = state.remove("AuthorizationPolicy", "shop/p")
    assert [item.name for item in delta.workloads] == ["a"]
    assert set(state.policies) == {"shop/all"}


def test_a_policy_that_is_strict_everywhere_reaches_every_workload():
    state = State()
    state.apply(pod("shop/a", "10.0.0.1"), resource("WorkloadEntry", "vms/vm", spec={"address": "192.0.2.9"}))
    state.apply(resource("PeerAuthentication", "istio-system/default", spec={"mtls": {"mode": "STRICT"}}))
    assert all(item.policies for item in state.workloads.values())
    state.remove("PeerAuthentication", "istio-system/default")
    assert not any(item.policies for item in state.workloads.values())


def test_notes_of_policies_and_other_resources_are_told_until_they_go():
    state = State()
    state.apply(policy("shop/p", action="CUSTOM"), gateway("shop/wp", ""))
    assert {note.kind for note in state.translator.notes()} == {"AuthorizationPolicy", "Gateway"}
    state.remove("AuthorizationPolicy", "shop/p")
    state.remove("Gateway", "shop/wp")
    assert state.translator.notes() == []


def test_what_says_the_same_as_before_is_not_told_again():
    state = State()
    resources = [
        resource("Node", "node-a", labels={"topology.kubernetes.io/region": "r"}),
        resource("Namespace", "shop", labels={"istio.io/use-waypoint": "wp"}),
        gateway("shop/wp"),
        service("shop/web", WEB),
        pod("shop/a", "10.0.0.1", labels=WEB),
        entry("shop/ext", ["a.example.com"], endpoints=[{"address": "192.0.2.1"}]),
        slice_of("shop/web-1", "web", [{"addresses": ["192.0.2.1"]}]),
        resource("WorkloadEntry", "shop/vm", spec={"address": "192.0.2.9"}),
        policy("shop/p", WEB),
    ]
    assert state.apply(*resources) != Delta()
    assert state.apply(*resources) == Delta()
    assert state.take() == Delta()


def test_a_large_cluster_is_taken_in_parts():
    state, whole = State(), State()
    resources = [pod(f"shop/p{number}", f"10.0.0.{number}", labels=WEB) for number in range(20)]
    whole.apply(service("shop/web", WEB), *resources)
    for item in (service("shop/web", WEB), *resources):
        state.translator.apply(type(item).__name__, item.key, item)
    state.translator.apply("Pod", "shop/p3", None)
    parts = [len(state.take(limit=6).workloads) for _ in range(5)]
    assert parts == [6, 6, 6, 1, 0]
    whole.remove("Pod", "shop/p3")
    assert state.everything == whole.everything
