"""What a large cluster holds, as the controllers and kubelets of a real one leave it: sizes in, objects out, nothing random.

Workload number N is pod `N` of its service; a service has as many pods as come to it evenly, on nodes far from one another.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tests.cluster.kinds import Object, ambient, make, node, pod, service

# What a namespace holds; a cluster of one size class has some hundreds.
SERVICES_A_NAMESPACE = 100
PORT = 8080
SERVICE_PORT = 80
REVISION = "version"
"""The label that changes of the bench set: a node agent is told it, as the workload's canonical revision."""
FIRST_REVISION = "v1"
_ZONES = ("zone-a", "zone-b", "zone-c")
# 10.64.0.0/12: beside the API server's range for services, 10.96.0.0/12.
_MAX_PODS = 1 << 20


@dataclass(frozen=True)
class Size:
    """How large a cluster is."""

    nodes: int = 1000
    pods: int = 100_000
    services: int = 10_000

    def __post_init__(self) -> None:
        if not (self.nodes > 0 and 0 < self.services <= self.pods <= _MAX_PODS):
            raise ValueError(f"a cluster has nodes, at least a pod a service, and at most {_MAX_PODS} pods: {self}")

    @property
    def resources(self) -> int:
        """How many resources a wildcard subscriber gets for it: each pod and each service."""
        return self.pods + self.services

    def __str__(self) -> str:
        return f"{self.nodes:,} nodes, {self.pods:,} pods, {self.services:,} services"


def node_name(number: int) -> str:
    return f"node{number}"


def service_of(size: Size, number: int) -> int:
    """The number of the service that pod `number` belongs to."""
    return number % size.services


def namespace_of(service_number: int) -> str:
    return f"team-{service_number // SERVICES_A_NAMESPACE}"


def pod_place(size: Size, number: int) -> tuple[str, str]:
    """Namespace and name of a pod."""
    of = service_of(size, number)
    return namespace_of(of), f"app-{of}-{number // size.services}"


def _address(number: int) -> str:
    return f"10.{64 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"


def _service_address(number: int) -> str:
    """Within 10.96.0.0/12, and beyond what it gives to those that come without one as long as it is nearly empty."""
    return f"10.{100 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"


def first(size: Size) -> Iterator[Object]:
    """What others lie in or refer to: to be written before `rest`."""
    for number in range(size.nodes):
        yield node(node_name(number), _zone(number))
    for number in range(-(-size.services // SERVICES_A_NAMESPACE)):
        yield ambient(f"team-{number}")


def rest(size: Size) -> Iterator[Object]:
    """What lies in namespaces, but for services and pods; in any order."""
    for number in range(0, size.services, SERVICES_A_NAMESPACE):
        yield _policy(number)
    for number in range(size.services):
        name, space = f"app-{number}", namespace_of(number)
        yield make("ServiceAccount", name, space)
        yield _slice(size, number)


def services(size: Size) -> Iterator[Object]:
    """All services, each with an address."""
    for number in range(size.services):
        name, address = f"app-{number}", _service_address(number)
        addresses = {"clusterIP": address, "clusterIPs": [address]}
        yield service(name, namespace_of(number), {"app": name}, {SERVICE_PORT: PORT}, **addresses)


def service_addresses(size: Size) -> Iterator[Object]:
    """The API server's own record that an address is taken by a service."""
    labels = {"ipaddress.kubernetes.io/ip-family": "IPv4", "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"}
    for number in range(size.services):
        parent = {"group": "", "resource": "services", "namespace": namespace_of(number), "name": f"app-{number}"}
        yield make("IPAddress", _service_address(number), labels=labels, spec={"parentRef": parent})


def pods(size: Size) -> Iterator[Object]:
    """All pods, those of a service not beside one another."""
    return (_pod(size, number) for number in range(size.pods))


def _policy(service_number: int) -> Object:
    """Who of its own namespace may talk to a namespace's first application."""
    space = namespace_of(service_number)
    source = {"principals": [f"cluster.local/ns/{space}/sa/app-{service_number + other}" for other in range(5)]}
    selector = {"matchLabels": {"app": f"app-{service_number}"}}
    spec = {"selector": selector, "action": "ALLOW", "rules": [{"from": [{"source": source}]}]}
    return make("AuthorizationPolicy", "callers", space, spec=spec)


def _slice(size: Size, number: int) -> Object:
    """The endpoints of a service."""
    endpoints = [
        {
            "addresses": [_address(each)],
            "conditions": {"ready": True, "serving": True, "terminating": False},
            "nodeName": node_name(_node_of(size, each)),
            "targetRef": {"kind": "Pod", "namespace": namespace_of(number), "name": pod_place(size, each)[1]},
        }
        for each in range(number, size.pods, size.services)
    ]
    labels = {
        "kubernetes.io/service-name": f"app-{number}",
        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
    }
    ports = [{"name": f"p{SERVICE_PORT}", "port": PORT, "protocol": "TCP"}]
    made = make("EndpointSlice", f"app-{number}-1", namespace_of(number), labels=labels, ports=ports, endpoints=endpoints)
    return {**made, "addressType": "IPv4"}


def _node_of(size: Size, number: int) -> int:
    return (number // size.services * 7 + number) % size.nodes


def _zone(node_number: int) -> str:
    return _ZONES[node_number % len(_ZONES)]


def _pod(size: Size, number: int) -> Object:
    """As large as pods are: one container with what charts give it, and a status as the kubelet writes it."""
    space, name = pod_place(size, number)
    app = f"app-{service_of(size, number)}"
    replica_set, of = f"{app}-{service_of(size, number):08x}", _node_of(size, number)
    labels = {"app": app, REVISION: FIRST_REVISION, "pod-template-hash": replica_set.removeprefix(f"{app}-")}
    labels |= node(node_name(of), _zone(of))["metadata"]["labels"]  # as the API server gives them to a pod
    made = pod(name, space, node=node_name(of), ips=[_address(number)], account=app, labels=labels, ports={"http": PORT})
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": replica_set, "uid": "replica-set", "controller": True}
    made["metadata"]["ownerReferences"] = [owner]
    made["spec"]["serviceAccount"] = app  # the former name of the field, which is always there as well
    container = made["spec"]["containers"][0]
    container |= {
        "image": f"registry.example/{space}/{app}:1.27.3",
        "env": [{"name": f"SETTING_{index}", "value": f"{app}-{index}"} for index in range(8)],
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
        "readinessProbe": {"httpGet": {"path": "/ready", "port": PORT}, "periodSeconds": 10},
        "livenessProbe": {"httpGet": {"path": "/live", "port": PORT}, "periodSeconds": 10},
        "volumeMounts": [{"name": "settings", "mountPath": "/etc/app"}],
    }
    made["spec"]["volumes"] = [{"name": "settings", "configMap": {"name": app}}]
    made["status"]["startTime"] = "2026-01-01T00:00:00Z"
    made["status"]["containerStatuses"] = [
        {
            "name": "app",
            "image": container["image"],
            "imageID": f"sha256:{number:064x}",
            "containerID": f"containerd://{number:064x}",
            "ready": True,
            "started": True,
            "restartCount": 0,
            "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
        }
    ]
    return made
