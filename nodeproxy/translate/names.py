"""The labels and annotations that say what a resource means to the mesh: Kubernetes' and Istio's names, written once."""

from __future__ import annotations

# ── labels: in the mesh, and how ──────────────────────────────────────────────────────────────────
DATAPLANE_MODE = "istio.io/dataplane-mode"  # of pods and namespaces: "ambient" or "none"
AMBIENT = "ambient"
NONE = "none"
TUNNEL = "networking.istio.io/tunnel"  # of pods that speak HBONE themselves: a list with "http"
NATIVE_TUNNEL = "http"
CANONICAL_NAMES = ("service.istio.io/canonical-name", "app.kubernetes.io/name", "app")  # the first that is there
CANONICAL_REVISIONS = ("service.istio.io/canonical-revision", "app.kubernetes.io/version", "version")
DEFAULT_REVISION = "latest"
WORKLOAD_NAME = "service.istio.io/workload-name"

# ── labels: waypoints ─────────────────────────────────────────────────────────────────────────────
USE_WAYPOINT = "istio.io/use-waypoint"
USE_WAYPOINT_NAMESPACE = "istio.io/use-waypoint-namespace"
USE_CANARY = "istio.io/use-waypoint-canary"
USE_CANARY_NAMESPACE = "istio.io/use-waypoint-canary-namespace"
WAYPOINT_FOR = "istio.io/waypoint-for"  # of gateways and their classes: "service", "workload", "all" or "none"
GATEWAY_NAME = "gateway.networking.k8s.io/gateway-name"  # of the pods and the service that a gateway is
GATEWAY_MANAGED = "gateway.istio.io/managed"
MANAGED_WAYPOINTS = frozenset({"istio.io-mesh-controller", "istio.io-eastwest-controller"})

# ── labels: places ────────────────────────────────────────────────────────────────────────────────
REGION = "topology.kubernetes.io/region"
ZONE = "topology.kubernetes.io/zone"
SUBZONE = "topology.istio.io/subzone"
NETWORK = "topology.istio.io/network"

# ── labels: Kubernetes' own ───────────────────────────────────────────────────────────────────────
SERVICE_NAME = "kubernetes.io/service-name"  # of an EndpointSlice
SLICE_MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
SLICE_CONTROLLER = "endpointslice-controller.k8s.io"  # makes the slices of services with a selector
POD_HASHES = ("pod-template-hash", "rollouts-pod-template-hash")  # of a ReplicaSet, of an Argo Rollout

# ── labels: service entries ───────────────────────────────────────────────────────────────────────
AUTOALLOCATE = "networking.istio.io/enable-autoallocate-ip"

# ── annotations ───────────────────────────────────────────────────────────────────────────────────
REDIRECTION = "ambient.istio.io/redirection"  # "enabled": a CNI plug-in has put this pod into the mesh
SIDECAR_STATUS = "sidecar.istio.io/status"  # this pod has a sidecar, which is another way to be in a mesh
INBOUND_BINDING = "ambient.istio.io/waypoint-inbound-binding"  # of gateways: PROTOCOL or PROTOCOL/PORT
TRAFFIC_DISTRIBUTION = "networking.istio.io/traffic-distribution"  # of services and namespaces
CONFIG_HASH = "kubernetes.io/config.hash"  # of a static pod: what the kubelet calls it
CONFIG_MIRROR = "kubernetes.io/config.mirror"  # of what stands for a static pod in the API server: the same
CANARY_WEIGHT = "istio.io/use-waypoint-canary-weight"  # percent
REGISTRATION_GROUP = "istio.io/autoRegistrationGroup"  # of a WorkloadEntry: the name of its kind of machine
