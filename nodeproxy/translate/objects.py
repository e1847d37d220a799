"""What is read of each Kubernetes and Istio resource, and where the API server has it.

Only the fields that translation uses stand here; what else a resource has is skipped as it is decoded, which is most of a Pod.
The specs of policies stay raw, so that a field that is not understood can be found and told, and never widens access unseen.
Lists that Go may write as null are `| None`.  Knows nothing of what the fields mean to a mesh (`translator`, `policies`).
"""

from __future__ import annotations

from typing import Any

import msgspec

from nodeproxy.translate import names


class _Object(msgspec.Struct, frozen=True, rename="camel", gc=False, kw_only=True):
    """JSON's names are camelCase.  No object refers back to its parent, so that the collector need not look for cycles."""


# ── what every resource has ───────────────────────────────────────────────────────────────────────


class OwnerReference(_Object, frozen=True):
    """What made this resource; `controller`: it is the one that manages it."""

    kind: str = ""
    name: str = ""
    controller: bool = False


class Metadata(_Object, frozen=True):
    """The part of `metadata` that is used.  Timestamps are RFC 3339 text in UTC, which sorts as time does."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    generate_name: str = ""
    generation: int = 0
    resource_version: str = ""
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    owner_references: tuple[OwnerReference, ...] = ()


class Resource(_Object, frozen=True):
    """Any resource."""

    metadata: Metadata = Metadata()

    @property
    def key(self) -> str:
        """ "namespace/name", or "name" where there is no namespace."""
        metadata = self.metadata
        return f"{metadata.namespace}/{metadata.name}" if metadata.namespace else metadata.name


# ── core, discovery.k8s.io ────────────────────────────────────────────────────────────────────────


class ContainerPort(_Object, frozen=True):
    """A port that a container says it has."""

    name: str = ""
    container_port: int = 0
    protocol: str = "TCP"


class HandlerPort(_Object, frozen=True):
    """Where the kubelet connects; `host`: elsewhere than to the pod.  A port may be a name of the container's."""

    port: int | str = 0
    host: str = ""


class Handler(_Object, frozen=True):
    """A probe, or what is called at a container's start or end."""

    http_get: HandlerPort | None = None
    tcp_socket: HandlerPort | None = None
    grpc: HandlerPort | None = None


class Lifecycle(_Object, frozen=True):
    """What is called at a container's start and end."""

    post_start: Handler | None = None
    pre_stop: Handler | None = None


class Container(_Object, frozen=True):
    """A container; `restart_policy` "Always" makes an init container a sidecar."""

    ports: tuple[ContainerPort, ...] = ()
    restart_policy: str = ""
    liveness_probe: Handler | None = None
    readiness_probe: Handler | None = None
    startup_probe: Handler | None = None
    lifecycle: Lifecycle | None = None


class PodSpec(_Object, frozen=True):
    """What was asked for."""

    node_name: str = ""
    service_account_name: str = ""
    host_network: bool = False
    containers: tuple[Container, ...] = ()
    init_containers: tuple[Container, ...] = ()


class PodIP(_Object, frozen=True):
    """One of a pod's addresses."""

    ip: str = ""


class Condition(_Object, frozen=True):
    """A condition of a status: "True", "False" or "Unknown"."""

    type: str = ""
    status: str = ""


class PodStatus(_Object, frozen=True):
    """What is."""

    phase: str = ""
    pod_ip: str = msgspec.field(default="", name="podIP")
    pod_ips: tuple[PodIP, ...] = msgspec.field(default=(), name="podIPs")
    conditions: tuple[Condition, ...] = ()


class Pod(Resource, frozen=True):
    """A pod."""

    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()


class Node(Resource, frozen=True):
    """A node: its labels say where it stands."""


class Namespace(Resource, frozen=True):
    """A namespace: its labels say whether it is in the mesh, and its waypoint."""


class ServiceAccount(Resource, frozen=True):
    """A service account: that there is one is all that is read of it."""


class ServicePort(_Object, frozen=True):
    """A port of a service; `target_port`: a number, or the name of a container's port."""

    port: int
    name: str = ""
    protocol: str = "TCP"
    target_port: int | str = 0
    app_protocol: str = ""


class ServiceSpec(_Object, frozen=True):
    """What a service is."""

    type: str = "ClusterIP"
    selector: dict[str, str] = {}
    ports: tuple[ServicePort, ...] = ()
    cluster_ip: str = msgspec.field(default="", name="clusterIP")
    cluster_ips: tuple[str, ...] = msgspec.field(default=(), name="clusterIPs")
    ip_families: tuple[str, ...] = ()
    external_name: str = ""
    publish_not_ready_addresses: bool = False
    internal_traffic_policy: str = ""
    traffic_distribution: str = ""


class Service(Resource, frozen=True):
    """A Kubernetes service."""

    spec: ServiceSpec = ServiceSpec()


class TargetRef(_Object, frozen=True):
    """The resource that an endpoint is."""

    kind: str = ""
    namespace: str = ""
    name: str = ""
    uid: str = ""


class EndpointConditions(_Object, frozen=True):
    """None means yes, as Kubernetes says of `ready`."""

    ready: bool | None = None


class Endpoint(_Object, frozen=True):
    """One endpoint; Kubernetes writes one address."""

    addresses: tuple[str, ...] | None = ()
    conditions: EndpointConditions = EndpointConditions()
    target_ref: TargetRef | None = None


class EndpointPort(_Object, frozen=True):
    """A port of all endpoints of a slice; `name` is that of the service's port."""

    name: str | None = None
    port: int | None = None
    protocol: str | None = None


class EndpointSlice(Resource, frozen=True):
    """Some endpoints of the service that the label `kubernetes.io/service-name` names."""

    address_type: str = ""
    endpoints: tuple[Endpoint, ...] | None = ()
    ports: tuple[EndpointPort, ...] | None = ()


# ── security.istio.io ─────────────────────────────────────────────────────────────────────────────


class PolicyResource(Resource, frozen=True):
    """The spec is as it was written, and may be anything: what can't be read of a policy must not be lost."""

    spec: Any = None


class AuthorizationPolicy(PolicyResource, frozen=True):
    """Who may connect."""


class PeerAuthentication(PolicyResource, frozen=True):
    """Whether plain text is taken."""


# ── networking.istio.io ───────────────────────────────────────────────────────────────────────────


class WorkloadEntrySpec(_Object, frozen=True):
    """An endpoint that is no pod; `address` may be a hostname, `ports` are by name."""

    address: str = ""
    ports: dict[str, int] = {}
    labels: dict[str, str] = {}
    network: str = ""
    locality: str = ""
    weight: int = 0
    service_account: str = ""


class WorkloadEntry(Resource, frozen=True):
    """A machine outside Kubernetes."""

    spec: WorkloadEntrySpec = WorkloadEntrySpec()


class ServiceEntryPort(_Object, frozen=True):
    """A port of a service entry; `target_port` 0: the same."""

    number: int
    name: str = ""
    protocol: str = ""
    target_port: int = 0


class Labels(_Object, frozen=True):
    """A selector by labels."""

    labels: dict[str, str] = {}


class ServiceEntrySpec(_Object, frozen=True):
    """A service that Kubernetes has none for."""

    hosts: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    ports: tuple[ServiceEntryPort, ...] = ()
    location: str = "MESH_EXTERNAL"
    resolution: str = "NONE"
    endpoints: tuple[WorkloadEntrySpec, ...] = ()
    workload_selector: Labels | None = None
    export_to: tuple[str, ...] = ()
    subject_alt_names: tuple[str, ...] = ()


class HostAddress(_Object, frozen=True):
    """An address that a controller gave to a host of a service entry."""

    value: str = ""
    host: str = ""


class ServiceEntryStatus(_Object, frozen=True):
    """What a controller says of a service entry."""

    addresses: tuple[HostAddress, ...] = ()


class ServiceEntry(Resource, frozen=True):
    """A service that Kubernetes has none for."""

    spec: ServiceEntrySpec = ServiceEntrySpec()
    status: ServiceEntryStatus = ServiceEntryStatus()


# ── gateway.networking.k8s.io ─────────────────────────────────────────────────────────────────────


class SelectorRequirement(_Object, frozen=True):
    """One of a label selector's expressions: In, NotIn, Exists or DoesNotExist."""

    key: str = ""
    operator: str = ""
    values: tuple[str, ...] = ()


class LabelSelector(_Object, frozen=True):
    """Kubernetes' label selector: all of it must hold."""

    match_labels: dict[str, str] = {}
    match_expressions: tuple[SelectorRequirement, ...] = ()


class AllowedNamespaces(_Object, frozen=True):
    """From which namespaces something may attach: "Same", "All" or "Selector"."""

    from_: str = msgspec.field(default="Same", name="from")
    selector: LabelSelector | None = None


class AllowedRoutes(_Object, frozen=True):
    """What may attach to a listener."""

    namespaces: AllowedNamespaces | None = None


class Listener(_Object, frozen=True):
    """One of a gateway's listeners."""

    name: str = ""
    port: int = 0
    protocol: str = ""
    allowed_routes: AllowedRoutes | None = None


class GatewaySpec(_Object, frozen=True):
    """What a gateway is."""

    gateway_class_name: str = ""
    listeners: tuple[Listener, ...] = ()


class GatewayAddress(_Object, frozen=True):
    """Where a gateway is reached: `type` is "IPAddress" or "Hostname"."""

    type: str | None = None
    value: str = ""


class GatewayStatus(_Object, frozen=True):
    """Empty until the gateway's own controller has made it."""

    addresses: tuple[GatewayAddress, ...] = ()


class Gateway(Resource, frozen=True):
    """A gateway: with an address and used as one, a waypoint."""

    spec: GatewaySpec = GatewaySpec()
    status: GatewayStatus = GatewayStatus()


class GatewayClass(Resource, frozen=True):
    """A class of gateways: its labels and annotations are the defaults of theirs."""


# ── where they are ────────────────────────────────────────────────────────────────────────────────


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of resource.

    group: "" for the core.  versions: those whose form `type` reads, best first.
    optional: defined by a CustomResourceDefinition, which a cluster need not have.
    label_selector: of those that mean something; the others need not be listed and watched.
    """

    name: str
    group: str
    versions: tuple[str, ...]
    plural: str
    type: type[Resource]
    namespaced: bool = True
    optional: bool = False
    label_selector: str = ""

    def path(self, version: str, namespace: str = "") -> str:
        """The API server's path of the collection: of one namespace, or of all."""
        root = f"/apis/{self.group}/{version}" if self.group else f"/api/{version}"
        return f"{root}/namespaces/{namespace}/{self.plural}" if namespace else f"{root}/{self.plural}"


def _kind(type_: type[Resource], group: str, *versions: str, plural: str, **more: Any) -> Kind:
    return Kind(name=type_.__name__, group=group, versions=versions, plural=plural, type=type_, **more)


# Slices that Kubernetes makes of a service's selector change with each pod, and say nothing that pods and the selector do not.
_UNMANAGED = f"{names.SERVICE_NAME},{names.SLICE_MANAGED_BY}!={names.SLICE_CONTROLLER}"
_SECURITY, _NETWORKING, _GATEWAYS = "security.istio.io", "networking.istio.io", "gateway.networking.k8s.io"

# By name.  Those that others refer to come first, which saves work where all are read in this order; any order gives the same.
KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        _kind(Namespace, "", "v1", plural="namespaces", namespaced=False),
        _kind(Node, "", "v1", plural="nodes", namespaced=False),
        _kind(ServiceAccount, "", "v1", plural="serviceaccounts"),
        _kind(GatewayClass, _GATEWAYS, "v1", "v1beta1", plural="gatewayclasses", namespaced=False, optional=True),
        _kind(Gateway, _GATEWAYS, "v1", "v1beta1", plural="gateways", optional=True),
        _kind(AuthorizationPolicy, _SECURITY, "v1", "v1beta1", plural="authorizationpolicies", optional=True),
        _kind(PeerAuthentication, _SECURITY, "v1", "v1beta1", plural="peerauthentications", optional=True),
        _kind(Service, "", "v1", plural="services"),
        _kind(ServiceEntry, _NETWORKING, "v1", "v1beta1", "v1alpha3", plural="serviceentries", optional=True),
        _kind(WorkloadEntry, _NETWORKING, "v1", "v1beta1", "v1alpha3", plural="workloadentries", optional=True),
        _kind(Pod, "", "v1", plural="pods"),
        _kind(EndpointSlice, "discovery.k8s.io", "v1", plural="endpointslices", label_selector=_UNMANAGED),
    )
}
