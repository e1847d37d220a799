"""Resources of the API server, as few words each as the tests need, and what a translator makes of them."""

from __future__ import annotations

from typing import Any

import msgspec

from nodeproxy.model.delta import Delta
from nodeproxy.model.node_pod import MeshNamespace, NodePod
from nodeproxy.model.policy import Policy
from nodeproxy.model.workload import Service, Workload
from nodeproxy.translate.objects import KINDS, Resource
from nodeproxy.translate.settings import MeshSettings
from nodeproxy.translate.translator import Translator


def resource(kind: str, key: str, **fields: Any) -> Resource:
    """labels, annotations and created go into the metadata; the rest is as the API has it."""
    namespace, slash, name = key.partition("/")
    metadata: dict[str, Any] = {"name": name, "namespace": namespace} if slash else {"name": key}
    for theirs in ("labels", "annotations", "uid", "generateName", "ownerReferences", "deletionTimestamp"):
        if theirs in fields:
            metadata[theirs] = fields.pop(theirs)
    metadata["creationTimestamp"] = fields.pop("created", None)
    return msgspec.convert({"metadata": metadata, **fields}, KINDS[kind].type)


def pod(key: str, *ips: str, ready: bool = True, ports: dict[str, int] | None = None, phase: str = "Running", **fields: Any):
    spec: dict[str, Any] = {"nodeName": "node-a", "serviceAccountName": "default", **fields.pop("spec", {})}
    spec["containers"] = [{"ports": [{"name": name, "containerPort": port} for name, port in (ports or {}).items()]}]
    status = {
        "phase": phase,
        "podIPs": [{"ip": ip} for ip in ips],
        "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
    }
    return resource("Pod", key, spec=spec, status=status, **fields)


def service(key: str, selector: dict[str, str] | None = None, ports: Any = ((80, 8080),), vip: str = "10.96.0.1", **fields: Any):
    spec: dict[str, Any] = {"selector": selector or {}, "clusterIP": vip, **fields.pop("spec", {})}
    spec["ports"] = [
        {"port": port, "targetPort": target, "name": f"p{port}"} if not isinstance(port, dict) else port
        for port, target in (item if not isinstance(item, dict) else (item, 0) for item in ports)
    ]
    return resource("Service", key, spec=spec, **fields)


def gateway(key: str, address: str = "10.96.9.9", **fields: Any):
    kind = "IPAddress" if address[:1].isdigit() else "Hostname"
    status = {"addresses": [{"type": kind, "value": address}]} if address else {}
    spec = {"gatewayClassName": "istio-waypoint", **fields.pop("spec", {})}
    return resource("Gateway", key, spec=spec, status=status, **fields)


def slice_of(key: str, name: str, endpoints: list[object], labels: dict[str, str] | None = None, **fields):
    ports = [{"name": "p80", "port": 9090, "protocol": "TCP"}, {"name": "other", "port": 1, "protocol": "TCP"}]
    known = {"kubernetes.io/service-name": name, **(labels or {})}
    return resource(
        "EndpointSlice", key, labels=known, **{"addressType": "IPv4", "endpoints": endpoints, "ports": ports, **fields}
    )


def entry(key: str, hosts: list[str], created: str | None = None, **spec):
    labels, status = spec.pop("labels", {}), spec.pop("status", {})
    spec.setdefault("ports", [{"number": 443, "name": "https", "protocol": "TCP"}])
    spec.setdefault("resolution", "STATIC")
    return resource("ServiceEntry", key, labels=labels, created=created, spec={"hosts": hosts, **spec}, status=status)


def policy(key: str, labels: dict[str, str] | None = None, **spec):
    selector = {"selector": {"matchLabels": labels}} if labels else {}
    return resource("AuthorizationPolicy", key, spec={**selector, "rules": [{}], **spec})


class State:
    """What all deltas of a translator came to."""

    def __init__(self, settings: MeshSettings | None = None) -> None:
        self.translator = Translator(settings or MeshSettings())
        self.workloads: dict[str, Workload] = {}
        self.services: dict[str, Service] = {}
        self.policies: dict[str, Policy] = {}
        self.node_pods: dict[tuple[str, str], NodePod] = {}
        self.namespaces: dict[str, MeshNamespace] = {}

    def apply(self, *resources: Resource) -> Delta:
        for item in resources:
            self.translator.apply(type(item).__name__, item.key, item)
        return self.take()

    def remove(self, kind: str, *keys: str) -> Delta:
        for key in keys:
            self.translator.apply(kind, key, None)
        return self.take()

    def take(self, limit: int | None = None) -> Delta:
        delta = self.translator.take(limit)
        self.workloads.update((item.uid, item) for item in delta.workloads)
        self.services.update((item.key, item) for item in delta.services)
        self.policies.update((item.key, item) for item in delta.policies)
        self.node_pods.update(((node, item.key), item) for node, item in delta.node_pods)
        self.namespaces.update((item.name, item) for item in delta.mesh_namespaces)
        for known, removed in (
            (self.node_pods, delta.removed_node_pods),
            (self.namespaces, delta.removed_mesh_namespaces),
            (self.workloads, delta.removed_workloads),
            (self.services, delta.removed_services),
            (self.policies, delta.removed_policies),
        ):
            for key in removed:
                del known[key]  # type: ignore[attr-defined]
        return delta

    def pod(self, key: str) -> Workload:
        return self.workloads[f"Kubernetes//Pod/{key}"]

    def service(self, key: str) -> Service:
        namespace, _, name = key.partition("/")
        return self.services[f"{namespace}/{name}.{namespace}.svc.cluster.local"]

    @property
    def everything(self) -> tuple[dict[str, Workload], dict[str, Service], dict[str, Policy]]:
        return self.workloads, self.services, self.policies
