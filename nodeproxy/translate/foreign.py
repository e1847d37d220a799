"""What manifests may have that no workload, service or policy is made of: why, and what becomes of what they ask for.

Invariant: silence is only for what does not concern connections between pods.  A resource of an unknown kind is told.
"""

from __future__ import annotations

from typing import Any

from nodeproxy.translate.notes import Notes, member

_TEMPLATE = ("is what pods are made after", "no workload is made of it: workloads are Pods that have an address")
_WAYPOINT = ("is for waypoints, which see requests", "nodes do not enforce it")
_SIDECAR = ("is for sidecars", "it does nothing in an ambient mesh")

_ISTIO = {"networking.istio.io", "security.istio.io", "telemetry.istio.io", "extensions.istio.io"}
_GATEWAYS = "gateway.networking.k8s.io"
_TOLD: dict[tuple[str, str], tuple[str, str]] = {
    **dict.fromkeys((("apps", kind) for kind in ("Deployment", "ReplicaSet", "StatefulSet", "DaemonSet")), _TEMPLATE),
    **dict.fromkeys((("batch", kind) for kind in ("Job", "CronJob")), _TEMPLATE),
    **dict.fromkeys((("", kind) for kind in ("ReplicationController", "PodTemplate")), _TEMPLATE),
    ("", "Endpoints"): ("is an older form of EndpointSlice", "it is left out; Kubernetes mirrors it in EndpointSlices"),
    ("networking.k8s.io", "NetworkPolicy"): ("is enforced by the network plug-in", "nodes do not enforce it"),
    ("networking.k8s.io", "Ingress"): ("is for an ingress controller", "nodes do not enforce it"),
    ("networking.istio.io", "WorkloadGroup"): ("is what WorkloadEntries are made after", "no workload is made of it"),
    ("networking.istio.io", "Gateway"): ("is for Istio's gateways", "nodes do not enforce it"),
    ("networking.istio.io", "Sidecar"): _SIDECAR,
    ("networking.istio.io", "EnvoyFilter"): ("is for Envoy", "it does nothing in nodes"),
    ("networking.istio.io", "ProxyConfig"): _SIDECAR,
}
# They concern no connection, or the cluster's own affairs.
_SILENT_GROUPS = frozenset(
    {
        "",
        "admissionregistration.k8s.io",
        "apiextensions.k8s.io",
        "apiregistration.k8s.io",
        "autoscaling",
        "certificates.k8s.io",
        "coordination.k8s.io",
        "events.k8s.io",
        "flowcontrol.apiserver.k8s.io",
        "node.k8s.io",
        "policy",
        "rbac.authorization.k8s.io",
        "resource.k8s.io",
        "scheduling.k8s.io",
        "storage.k8s.io",
    }
)


def foreign(group: str, kind: str) -> tuple[str, str] | None:
    """(what a resource of a kind that is not read is, what becomes of it); None: it concerns no connection."""
    told = _TOLD.get((group, kind))
    if told is not None:
        return told
    if group in _ISTIO or group == _GATEWAYS:
        return _WAYPOINT
    if group in _SILENT_GROUPS:
        return None
    return "is of a kind that is not known", "it is left out"


_PORT = frozenset({"name", "number", "protocol", "targetPort"})
_ENTRY = frozenset({"address", "ports", "labels", "network", "locality", "weight", "serviceAccount"})
# Of kinds that are read: all fields that their definitions have, those too that mean nothing to a mesh.
_FIELDS: dict[str, dict[str, frozenset[str]]] = {
    "Service": {
        "spec": frozenset(
            (
                *("allocateLoadBalancerNodePorts", "clusterIP", "clusterIPs", "externalIPs", "externalName"),
                *("externalTrafficPolicy", "healthCheckNodePort", "internalTrafficPolicy", "ipFamilies", "ipFamilyPolicy"),
                *("loadBalancerClass", "loadBalancerIP", "loadBalancerSourceRanges", "ports", "publishNotReadyAddresses"),
                *("selector", "sessionAffinity", "sessionAffinityConfig", "trafficDistribution", "type"),
            )
        ),
        "spec.ports": frozenset({"appProtocol", "name", "nodePort", "port", "protocol", "targetPort"}),
    },
    "ServiceEntry": {
        "spec": frozenset(
            (
                *("hosts", "addresses", "ports", "location", "resolution", "endpoints", "workloadSelector"),
                *("exportTo", "subjectAltNames"),
            )
        ),
        "spec.ports": _PORT,
        "spec.endpoints": _ENTRY,
        "spec.workloadSelector": frozenset({"labels"}),
    },
    "WorkloadEntry": {"spec": _ENTRY},
    "Gateway": {
        "spec": frozenset(
            (
                *("gatewayClassName", "listeners", "addresses", "infrastructure", "backendTLS", "allowedListeners", "tls"),
                "defaultScope",
            )
        ),
        "spec.listeners": frozenset({"name", "hostname", "port", "protocol", "tls", "allowedRoutes"}),
    },
}


def note_unknown_fields(kind: str, raw: dict[str, Any], notes: Notes) -> None:
    """Note the fields of a resource that its definition does not have: misspelt, mostly."""
    for path, known in _FIELDS.get(kind, {}).items():
        value: Any = raw
        for name in path.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        items = (
            [(path, value)] if not isinstance(value, list) else [(f"{path}[{index}]", item) for index, item in enumerate(value)]
        )
        for where, item in items:
            for name in item if isinstance(item, dict) else ():
                if name not in known:
                    notes.add(member(where, name), "is not known", "it is left out")
