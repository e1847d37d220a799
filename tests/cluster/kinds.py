"""Where each kind of object lives in the Kubernetes API, and short ways to write the objects that tests need."""

from __future__ import annotations

from typing import Any

Object = dict[str, Any]

# kind → (API path, plural, namespaced)
_KINDS = {
    "Namespace": ("/api/v1", "namespaces", False),
    "Node": ("/api/v1", "nodes", False),
    "Pod": ("/api/v1", "pods", True),
    "Service": ("/api/v1", "services", True),
    "ServiceAccount": ("/api/v1", "serviceaccounts", True),
    "Secret": ("/api/v1", "secrets", True),
    "ConfigMap": ("/api/v1", "configmaps", True),
    "Event": ("/api/v1", "events", True),
    "EndpointSlice": ("/apis/discovery.k8s.io/v1", "endpointslices", True),
    "IPAddress": ("/apis/networking.k8s.io/v1", "ipaddresses", False),
    "Lease": ("/apis/coordination.k8s.io/v1", "leases", True),
    "Deployment": ("/apis/apps/v1", "deployments", True),
    "DaemonSet": ("/apis/apps/v1", "daemonsets", True),
    "PodDisruptionBudget": ("/apis/policy/v1", "poddisruptionbudgets", True),
    "ClusterRole": ("/apis/rbac.authorization.k8s.io/v1", "clusterroles", False),
    "ClusterRoleBinding": ("/apis/rbac.authorization.k8s.io/v1", "clusterrolebindings", False),
    "Role": ("/apis/rbac.authorization.k8s.io/v1", "roles", True),
    "RoleBinding": ("/apis/rbac.authorization.k8s.io/v1", "rolebindings", True),
    "CustomResourceDefinition": ("/apis/apiextensions.k8s.io/v1", "customresourcedefinitions", False),
    "AuthorizationPolicy": ("/apis/security.istio.io/v1", "authorizationpolicies", True),
    "PeerAuthentication": ("/apis/security.istio.io/v1", "peerauthentications", True),
    "ServiceEntry": ("/apis/networking.istio.io/v1", "serviceentries", True),
    "WorkloadEntry": ("/apis/networking.istio.io/v1", "workloadentries", True),
    "Gateway": ("/apis/gateway.networking.k8s.io/v1", "gateways", True),
    "GatewayClass": ("/apis/gateway.networking.k8s.io/v1", "gatewayclasses", False),
    "ValidatingWebhookConfiguration": (
        "/apis/admissionregistration.k8s.io/v1",
        "validatingwebhookconfigurations",
        False,
    ),
}


def list_path(kind: str, namespace: str = "") -> str:
    """Where objects of a kind are listed and created; of all namespaces without one."""
    base, plural, namespaced = _KINDS[kind]
    return f"{base}/namespaces/{namespace}/{plural}" if namespaced and namespace else f"{base}/{plural}"


def item_path(kind: str, name: str, namespace: str = "") -> str:
    return f"{list_path(kind, namespace)}/{name}"


def make(kind: str, name: str, namespace: str = "", **fields: Any) -> Object:
    """An object of a kind; `labels` and `annotations` go to its metadata."""
    base, _, _ = _KINDS[kind]
    metadata: Object = {"name": name}
    if namespace:
        metadata["namespace"] = namespace
    for key in ("labels", "annotations"):
        if key in fields:
            metadata[key] = fields.pop(key)
    version = base.removeprefix("/apis/").removeprefix("/api/")
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **fields}


def namespace(name: str, **labels: str) -> Object:
    return make("Namespace", name, labels={key.replace("__", "/").replace("_", "-"): value for key, value in labels.items()})


def ambient(name: str) -> Object:
    """A namespace that is in the mesh."""
    return make("Namespace", name, labels={"istio.io/dataplane-mode": "ambient"})


def node(name: str, zone: str = "zone-a") -> Object:
    labels = {"topology.kubernetes.io/region": "region-1", "topology.kubernetes.io/zone": zone}
    return make("Node", name, labels=labels)


def pod(
    name: str, namespace: str, *, node: str, ips: list[str], account: str = "default", ready: bool = True, **more: Any
) -> Object:
    """A running pod.  annotations: as istio-cni writes them for a pod that is captured, unless given."""
    more.setdefault("annotations", {"ambient.istio.io/redirection": "enabled"})
    ports = [{"containerPort": port, "name": port_name} for port_name, port in more.pop("ports", {}).items()]
    container = {"name": "app", "image": "app", **({"ports": ports} if ports else {})}
    spec = {"nodeName": node, "serviceAccountName": account, "containers": [container], **more.pop("spec", {})}
    conditions = [{"type": kind, "status": "True" if ready else "False"} for kind in ("Ready", "ContainersReady")]
    status = {
        "phase": "Running",
        "podIP": ips[0],
        "podIPs": [{"ip": ip} for ip in ips],
        "hostIP": "10.0.0.1",
        "conditions": conditions,
    }
    return make("Pod", name, namespace, spec=spec, status=status, **more)


def service(name: str, namespace: str, selector: dict[str, str], ports: dict[int, int | str], **spec: Any) -> Object:
    listed = [{"name": f"p{port}", "port": port, "targetPort": target} for port, target in ports.items()]
    more = {key: spec.pop(key) for key in ("labels", "annotations") if key in spec}
    return make("Service", name, namespace, spec={"selector": selector, "ports": listed, **spec}, **more)


def endpoint_slice(service: str, namespace: str, pods: dict[str, str], ports: dict[str, int]) -> Object:
    """What the endpoint slice controller writes for a service: its pods, name → address, and their ports."""
    endpoints = [
        {"addresses": [ip], "conditions": {"ready": True}, "targetRef": {"kind": "Pod", "name": name, "namespace": namespace}}
        for name, ip in pods.items()
    ]
    listed = [{"name": name, "port": port} for name, port in ports.items()]
    labels = {"kubernetes.io/service-name": service}
    return make("EndpointSlice", f"{service}-1", namespace, labels=labels, addressType="IPv4", endpoints=endpoints, ports=listed)
