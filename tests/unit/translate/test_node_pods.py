from __future__ import annotations

import pytest

from nodeproxy.model.node_pod import Membership, MeshNamespace
from nodeproxy.model.workload import Protocol
from tests.unit.translate.resources import State, pod, policy, resource

pytestmark = pytest.mark.unit

HASH = "0123456789abcdef0123456789abcdef"
UID = "11111111-2222-3333-4444-555555555555"
AMBIENT = {"istio.io/dataplane-mode": "ambient"}
NONE = {"istio.io/dataplane-mode": "none"}


def namespace(labels: dict[str, str] | None = None):
    return resource("Namespace", "shop", labels=labels or {})


@pytest.mark.parametrize(
    ("home", "own", "more", "membership"),
    [
        ({}, {}, {}, Membership.UNLABELLED),
        (AMBIENT, {}, {}, Membership.NAMESPACE_LABEL),
        ({}, AMBIENT, {}, Membership.POD_LABEL),
        (NONE, AMBIENT, {}, Membership.POD_LABEL),
        (AMBIENT, AMBIENT, {}, Membership.POD_LABEL),
        (AMBIENT, NONE, {}, Membership.OPTED_OUT),
        (NONE, {}, {}, Membership.UNLABELLED),
        (AMBIENT, {"istio.io/dataplane-mode": ""}, {}, Membership.NAMESPACE_LABEL),
        (AMBIENT, {}, {"spec": {"hostNetwork": True}}, Membership.HOST_NETWORK),
        ({}, AMBIENT, {"spec": {"hostNetwork": True}}, Membership.HOST_NETWORK),
        (AMBIENT, AMBIENT, {"annotations": {"sidecar.istio.io/status": "{}"}}, Membership.SIDECAR),
        # A waypoint's pod speaks HBONE itself, and is in the mesh or not as any other.
        ({}, {"networking.istio.io/tunnel": "http"}, {}, Membership.UNLABELLED),
    ],
)
def test_the_label_says_who_is_in_the_mesh_and_the_pods_own_wins(home, own, more, membership):
    state = State()
    delta = state.apply(namespace(home), pod("shop/a", labels=own, uid=UID, **more))
    ((node, found),) = delta.node_pods
    assert (node, found.namespace, found.name, found.pod_uid, found.membership) == ("node-a", "shop", "a", UID, membership)
    assert (found.workload is not None) is membership.in_mesh
    if found.workload is not None:
        assert (found.workload.protocol, found.workload.addresses) == (Protocol.HBONE, ())


def test_a_pod_is_told_its_node_before_it_has_an_address_and_then_as_all_are_told():
    state = State()
    state.apply(namespace(AMBIENT), policy("shop/p", {"app": "web"}))
    labels = {"app": "web"}
    first = state.apply(pod("shop/a", ready=False, labels=labels, phase="Pending", uid=UID))
    assert not first.workloads
    assert first.node_pods[0][1].workload.policies == ("shop/p",)
    second = state.apply(pod("shop/a", "10.0.0.1", labels=labels, uid=UID))
    assert second.node_pods[0][1].workload == second.workloads[0]


def test_a_pod_without_a_node_is_told_nobody():
    state = State()
    delta = state.apply(namespace(AMBIENT), pod("shop/a", spec={"nodeName": ""}))
    assert (delta.node_pods, delta.workloads) == ((), ())


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_pod_that_ended_is_gone(phase):
    state = State()
    state.apply(pod("shop/a", "10.0.0.1"))
    delta = state.apply(pod("shop/a", "10.0.0.1", phase=phase))
    assert (delta.removed_node_pods, delta.node_pods) == ((("node-a", "shop/a"),), ())
    assert state.apply(pod("shop/a", "10.0.0.1", phase=phase)).removed_node_pods == ()


def test_a_pod_of_a_name_that_was_on_another_node_is_taken_from_that():
    state = State()
    state.apply(pod("shop/a", "10.0.0.1", uid="1"))
    delta = state.apply(pod("shop/a", "10.0.0.2", uid="2", spec={"nodeName": "node-b"}))
    assert [(node, found.pod_uid) for node, found in delta.node_pods] == [("node-b", "2")]
    assert delta.removed_node_pods == (("node-a", "shop/a"),)


def test_a_pod_that_comes_back_to_its_node_is_not_taken_from_it():
    state = State()
    state.apply(pod("shop/a", "10.0.0.1", uid="1"))
    state.translator.apply("Pod", "shop/a", None)
    delta = state.apply(pod("shop/a", "10.0.0.1", uid="2"))
    assert [found.pod_uid for _, found in delta.node_pods] == ["2"]
    assert delta.removed_node_pods == ()


def test_what_is_no_matter_to_a_pod_outside_the_mesh_is_not_told():
    state = State()
    state.apply(pod("shop/a", "10.0.0.1", ready=False))
    delta = state.apply(pod("shop/a", "10.0.0.1"))
    assert (len(delta.workloads), delta.node_pods) == (1, ())


@pytest.mark.parametrize(
    ("annotations", "uid"),
    [
        ({"config.hash": HASH, "config.mirror": HASH}, HASH),
        ({"config.hash": HASH}, UID),  # anybody's pod may say so
        ({"config.hash": HASH, "config.mirror": HASH[::-1]}, UID),
        ({"config.hash": "66666666-2222-3333-4444-555555555555", "config.mirror": "66666666-2222-3333-4444-555555555555"}, UID),
        ({"config.hash": "", "config.mirror": ""}, UID),
    ],
)
def test_a_static_pod_has_the_uid_that_the_kubelet_gave_it_and_nobody_gets_anothers(annotations, uid):
    state = State()
    given = {f"kubernetes.io/{name}": value for name, value in annotations.items()}
    state.apply(pod("shop/a", uid=UID, annotations=given))
    assert state.node_pods["node-a", "shop/a"].pod_uid == uid


def test_a_namespace_is_told_while_pods_of_it_may_be_in_the_mesh():
    state = State()
    assert state.apply(namespace(), pod("shop/a")).mesh_namespaces == ()
    labelled, by_pods = MeshNamespace(name="shop", labelled=True), MeshNamespace(name="shop", labelled=False)
    assert state.apply(namespace(AMBIENT)).mesh_namespaces == (labelled,)
    # A pod that nobody has placed yet asks as well: its node must know in time.
    assert state.apply(pod("shop/b", labels=AMBIENT, spec={"nodeName": ""})).mesh_namespaces == ()
    assert state.apply(namespace(NONE)).mesh_namespaces == (by_pods,)
    assert state.apply(pod("shop/c", labels=AMBIENT, spec={"hostNetwork": True})).mesh_namespaces == ()
    assert state.remove("Pod", "shop/b").removed_mesh_namespaces == ("shop",)
    assert state.remove("Namespace", "shop").removed_mesh_namespaces == ()


def test_in_pieces_a_pod_is_told_its_node_no_later_than_all():
    state = State()
    for number in range(20):
        state.translator.apply("Pod", f"shop/p{number}", pod(f"shop/p{number}", f"10.0.0.{number}"))
        state.translator.apply("Pod", f"shop/q{number}", pod(f"shop/q{number}"))
    while state.translator._cluster.stale_pods:
        delta = state.take(3)
        assert len(delta.node_pods) <= 3
        assert {found.name for found in delta.workloads} <= {name.partition("/")[2] for _, name in state.node_pods}
    assert len(state.node_pods) == 40


def test_a_node_is_told_which_ports_the_kubelet_connects_to():
    """Those that probes and hooks name of the pod's own; a name is a port's of the same container (core/v1, Probe)."""
    containers = [
        {
            "ports": [{"name": "web", "containerPort": 8080}, {"name": "ops", "containerPort": 9090, "protocol": "TCP"}],
            "livenessProbe": {"httpGet": {"port": "web", "path": "/live"}},
            "readinessProbe": {"tcpSocket": {"port": 5432}},
            "startupProbe": {"grpc": {"port": 50051, "service": "health"}},
            "lifecycle": {"postStart": {"httpGet": {"port": "ops"}}, "preStop": {"exec": {"command": ["true"]}}},
        },
        {"livenessProbe": {"httpGet": {"port": 80, "host": "10.0.0.9"}}, "readinessProbe": {"exec": {"command": ["true"]}}},
        {"livenessProbe": {"httpGet": {"port": "web"}}, "readinessProbe": {"httpGet": {"port": "8081"}}},
        {"livenessProbe": {"httpGet": {"port": 99999}}, "readinessProbe": None},
    ]
    sidecar = {"restartPolicy": "Always", "startupProbe": {"httpGet": {"port": 7000}}}
    spec = {"nodeName": "n", "containers": containers, "initContainers": [sidecar]}
    state = State()
    delta = state.apply(namespace(AMBIENT), resource("Pod", "shop/a", uid=UID, spec=spec))
    assert delta.node_pods[0][1].probe_ports == (5432, 7000, 8080, 8081, 9090, 50051)
    outside = State().apply(namespace(), resource("Pod", "shop/a", uid=UID, spec=spec))
    assert outside.node_pods[0][1].probe_ports is None
