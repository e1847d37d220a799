"""Whatever comes in whatever order, what a translator told adds up to what the resources mean that are there in the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeproxy.agent.sources.mesh_file import parse_mesh
from nodeproxy.model.delta import Everything
from nodeproxy.model.node_pod import Membership, MeshNamespace, NodePod
from nodeproxy.model.workload import Workload
from nodeproxy.translate.mesh_writer import mesh_tree, mesh_yaml
from nodeproxy.translate.objects import PodIP, PodStatus, Resource
from nodeproxy.translate.pods import is_healthy
from tests.unit.translate.resources import State, gateway, pod, resource, service

pytestmark = pytest.mark.fuzz

LABELS = st.fixed_dictionaries(
    {},
    optional={
        "app": st.sampled_from(["web", "db"]),
        "istio.io/dataplane-mode": st.sampled_from(["ambient", "none", "other", ""]),
        "istio.io/use-waypoint": st.sampled_from(["wp", "other", "none"]),
        "istio.io/use-waypoint-namespace": st.sampled_from(["a", "b"]),
        "istio.io/use-waypoint-canary": st.sampled_from(["wp", "other"]),
        "gateway.networking.k8s.io/gateway-name": st.sampled_from(["wp", "other"]),
        "istio.io/waypoint-for": st.sampled_from(["all", "workload"]),
        "networking.istio.io/tunnel": st.just("http"),
        "pod-template-hash": st.sampled_from(["1", "2"]),
    },
)
ANNOTATIONS = st.fixed_dictionaries(
    {},
    optional={
        "istio.io/use-waypoint-canary-weight": st.sampled_from(["10", "x"]),
        "ambient.istio.io/redirection": st.just("enabled"),
        "sidecar.istio.io/status": st.just("{}"),
        "networking.istio.io/traffic-distribution": st.just("PreferClose"),
        "ambient.istio.io/waypoint-inbound-binding": st.sampled_from(["PROXY", "NONE/15088"]),
    },
)
SELECTOR = st.sampled_from([{}, {"app": "web"}, {"app": "db"}, {"app": "web", "pod-template-hash": "1"}])
ADDRESS = st.sampled_from(["10.0.0.1", "10.0.0.2", "fd00::1"])
_WITH_ADDRESS = PodStatus(phase="Running", pod_ips=(PodIP("10.0.0.1"),))
KEYS = st.sampled_from(["a/x", "a/y", "b/x"])
CREATED = st.sampled_from([None, "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"])
FROM = st.sampled_from([None, {"from": "All"}, {"from": "Selector", "selector": {"matchLabels": {"app": "web"}}}])


def _pod(key: str, draw: Callable[[Any], Any]) -> Resource:
    return pod(
        key,
        *draw(st.lists(ADDRESS, max_size=2, unique=True)),
        ready=draw(st.booleans()),
        ports=draw(st.sampled_from([{}, {"http": 81}])),
        phase=draw(st.sampled_from(["Running", "Failed"])),
        labels=draw(LABELS),
        annotations=draw(ANNOTATIONS),
        uid=draw(st.sampled_from(["u1", "u2"])),
        spec={"nodeName": draw(st.sampled_from(["", "n1", "n2"])), "hostNetwork": draw(st.booleans())},
    )


def _service(key: str, draw: Callable[[Any], Any]) -> Resource:
    ports = draw(st.sampled_from([((80, 8080),), ((80, "http"), (81, 0)), ()]))
    spec = {"type": draw(st.sampled_from(["ClusterIP", "ExternalName"]))}
    return service(key, draw(SELECTOR), ports, labels=draw(LABELS), annotations=draw(ANNOTATIONS), spec=spec)


def _slice(key: str, draw: Callable[[Any], Any]) -> Resource:
    reference = {"kind": "Pod", "name": draw(st.sampled_from(["x", "y"])), "namespace": draw(st.sampled_from(["", "a", "b"]))}
    endpoint = {"addresses": [draw(ADDRESS)], "targetRef": draw(st.sampled_from([None, reference, {**reference, "uid": "u1"}]))}
    name = {"kubernetes.io/service-name": draw(st.sampled_from(["x", "y"]))}
    ports = [{"name": "p80", "port": 9090, "protocol": "TCP"}]
    return resource("EndpointSlice", key, labels=name, addressType="IPv4", endpoints=[endpoint], ports=ports)


def _entry(key: str, draw: Callable[[Any], Any]) -> Resource:
    endpoint = {"address": draw(ADDRESS), "labels": draw(LABELS)}
    spec = {
        "hosts": draw(st.sampled_from([["e.com"], ["e.com", "x.a.svc.cluster.local"], ["x.b.svc.cluster.local"]])),
        "ports": [{"number": 80, "name": "http"}],
        "resolution": draw(st.sampled_from(["STATIC", "DNS", "NONE"])),
        "endpoints": draw(st.sampled_from([[], [endpoint]])),
        "workloadSelector": draw(st.sampled_from([None, {"labels": {"app": "web"}}])),
    }
    return resource("ServiceEntry", key, labels=draw(LABELS), created=draw(CREATED), spec=spec)


def _machine(key: str, draw: Callable[[Any], Any]) -> Resource:
    spec = {"address": draw(ADDRESS), "ports": draw(st.sampled_from([{}, {"http": 82}]))}
    return resource("WorkloadEntry", key, labels=draw(LABELS), annotations=draw(ANNOTATIONS), spec=spec)


def _gateway(key: str, draw: Callable[[Any], Any]) -> Resource:
    listener = {"port": 15008, "protocol": "HBONE", "allowedRoutes": {"namespaces": draw(FROM)}}
    spec = {"gatewayClassName": draw(st.sampled_from(["k1", "k2"])), "listeners": [listener]}
    address = draw(st.sampled_from(["", "10.96.9.9", "w.a.svc"]))
    return gateway(key, address, labels=draw(LABELS), annotations=draw(ANNOTATIONS), spec=spec)


def _policy(key: str, draw: Callable[[Any], Any]) -> Resource:
    spec = {"selector": {"matchLabels": draw(SELECTOR)}, "rules": [{}], "action": draw(st.sampled_from(["ALLOW", "DENY"]))}
    return resource("AuthorizationPolicy", key, spec=spec)


def _peers(key: str, draw: Callable[[Any], Any]) -> Resource:
    spec: dict[str, Any] = {"mtls": {"mode": draw(st.sampled_from(["STRICT", "PERMISSIVE", "UNSET"]))}}
    if draw(st.booleans()):
        spec["selector"] = {"matchLabels": {"app": "web"}}
    return resource("PeerAuthentication", key, spec=spec, created=draw(CREATED))


def _labelled(kind: str) -> Callable[[str, Callable[[Any], Any]], Resource]:
    return lambda key, draw: resource(kind, key, labels=draw(LABELS), annotations=draw(ANNOTATIONS))


def _node(key: str, draw: Callable[[Any], Any]) -> Resource:
    return resource("Node", key, labels={"topology.kubernetes.io/region": draw(st.sampled_from(["", "r1"]))})


MAKERS = {
    "Pod": (KEYS, _pod),
    "Service": (KEYS, _service),
    "EndpointSlice": (KEYS, _slice),
    "ServiceEntry": (KEYS, _entry),
    "WorkloadEntry": (KEYS, _machine),
    "Gateway": (st.sampled_from(["a/wp", "a/other", "b/wp"]), _gateway),
    "GatewayClass": (st.sampled_from(["k1", "k2"]), _labelled("GatewayClass")),
    "Namespace": (st.sampled_from(["a", "b"]), _labelled("Namespace")),
    "Node": (st.sampled_from(["n1", "n2"]), _node),
    "AuthorizationPolicy": (st.sampled_from(["a/p", "b/p", "istio-system/p"]), _policy),
    "PeerAuthentication": (st.sampled_from(["a/p", "a/q", "istio-system/p"]), _peers),
}


@st.composite
def _change(draw: Callable[[Any], Any]) -> tuple[str, str, Resource | None]:
    kind = draw(st.sampled_from(sorted(MAKERS)))
    keys, make = MAKERS[kind]
    key = draw(keys)
    return kind, key, make(key, draw) if draw(st.integers(0, 3)) else None


# None: take everything.  A number: at most about so many workloads.
STEPS = st.lists(st.one_of(_change(), _change(), _change(), st.none(), st.integers(1, 3)), max_size=40)


def _mode(resource: Any) -> str:
    return "" if resource is None else resource.metadata.labels.get("istio.io/dataplane-mode", "")


def _membership(there: dict[tuple[str, str], Any], found: Any) -> Membership:
    if found.spec.host_network:
        return Membership.HOST_NETWORK
    if "sidecar.istio.io/status" in found.metadata.annotations:
        return Membership.SIDECAR
    return {
        "ambient": Membership.POD_LABEL,
        "": Membership.NAMESPACE_LABEL
        if _mode(there.get(("Namespace", found.metadata.namespace))) == "ambient"
        else Membership.UNLABELLED,
    }.get(_mode(found), Membership.OPTED_OUT)


def _pods(there: dict[tuple[str, str], Any]) -> Iterator[Any]:
    for (kind, _), found in there.items():
        if kind == "Pod" and found is not None and found.status.phase == "Running":
            yield found


def _node_pods(there: dict[tuple[str, str], Any], workloads: dict[str, Workload]) -> dict[tuple[str, str], NodePod]:
    """What nodes must have been told, in plain words.  Of a pod with an address its workload is the one that all are told."""
    result = {}
    for found in _pods(there):
        node, key, membership = found.spec.node_name, found.key, _membership(there, found)
        if node:
            state = State()  # a pod without an address: what its workload would be, but for the address
            for (kind, name), resource in there.items():
                state.translator.apply(kind, name, resource)
            state.translator.apply("Pod", key, msgspec.structs.replace(found, status=_WITH_ADDRESS))
            state.take()
            workload = workloads.get(f"Kubernetes//Pod/{key}") or state.pod(key)
            if not found.status.pod_ips:
                workload = msgspec.structs.replace(workload, addresses=(), healthy=is_healthy(found))
            told = workload if membership.in_mesh else None
            namespace, name, uid = found.metadata.namespace, found.metadata.name, found.metadata.uid
            ports = () if membership.in_mesh else None  # these have no probes
            result[node, key] = NodePod(
                namespace=namespace, name=name, pod_uid=uid, membership=membership, workload=told, probe_ports=ports
            )
    return result


def _namespaces(there: dict[tuple[str, str], Any]) -> dict[str, MeshNamespace]:
    labelled = {key for (kind, key), found in there.items() if kind == "Namespace" and _mode(found) == "ambient"}
    asked = {found.metadata.namespace for found in _pods(there) if _membership(there, found) is Membership.POD_LABEL}
    return {name: MeshNamespace(name=name, labelled=name in labelled) for name in labelled | asked}


FEW = settings(max_examples=40, deadline=None, derandomize=True, database=None)


@FEW
@given(changes=st.lists(_change(), max_size=20))
def test_what_resources_mean_can_be_written_as_a_mesh_file_and_read(changes):
    state = State()
    for kind, key, item in changes:
        state.translator.apply(kind, key, item)
    state.take()
    everything = Everything(*(tuple(found[key] for key in sorted(found)) for found in state.everything))
    mesh = parse_mesh("mesh.yaml", mesh_yaml(mesh_tree(everything)).encode())
    assert mesh.everything == everything


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(steps=STEPS, order=st.randoms(use_true_random=False))
def test_deltas_add_up_to_what_the_resources_mean(steps, order):
    state, there = State(), {}
    for step in steps:
        if not isinstance(step, tuple):
            state.take(step)
            continue
        kind, key, item = step
        state.translator.apply(kind, key, item)
        there[kind, key] = item
    state.take()
    fresh = State()
    remaining = [(kind, key, item) for (kind, key), item in there.items() if item is not None]
    order.shuffle(remaining)
    for kind, key, item in remaining:
        fresh.translator.apply(kind, key, item)
    fresh.take()
    assert state.everything == fresh.everything
    assert state.node_pods == fresh.node_pods == _node_pods(there, state.workloads)
    assert state.namespaces == fresh.namespaces == _namespaces(there)
    assert sorted(state.translator.notes()) == sorted(fresh.translator.notes())
    for kind, key in there:
        state.translator.apply(kind, key, None)
    state.take()
    assert state.everything == ({}, {}, {})
    assert not state.node_pods
    assert not state.namespaces
    assert not state.translator._cluster.homes  # nothing is kept of what is gone
    assert not state.translator._cluster._users
    assert not state.translator._cluster.nodes
