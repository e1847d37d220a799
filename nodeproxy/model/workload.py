"""Workloads, services and the gateways they name: the shape of istio.workload (protocols of Istio ambient), source-neutral.

Addresses are text in canonical form (`ipaddress`'s; an IPv4-mapped IPv6 address is written as IPv4).  A *network address* is
"network/address", with an empty network for the default one: "/10.0.0.1".  A *service key* is "namespace/hostname", a *policy
key* "namespace/name".
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

DEFAULT_TRUST_DOMAIN = "cluster.local"
HBONE_PORT = 15008
OUTBOUND_PORT = 15001
PLAINTEXT_PORT = 15006
OWN_PORTS = frozenset({HBONE_PORT, OUTBOUND_PORT, PLAINTEXT_PORT})


class Protocol(StrEnum):
    """What a workload accepts from other nodes."""

    TCP = "TCP"
    HBONE = "HBONE"


class Gateway(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a waypoint or a network's gateway is: "network/address" or, with `is_hostname`, a service key."""

    destination: str
    hbone_port: int = HBONE_PORT
    is_hostname: bool = False


class WeightedGateway(msgspec.Struct, frozen=True, omit_defaults=True):
    """One of several waypoints that share a service's connections by weight."""

    gateway: Gateway
    weight: int = 1


class ApplicationTunnel(msgspec.Struct, frozen=True, omit_defaults=True):
    """A pod (a waypoint, say) that wants what is tunnelled to it at `port`, behind a PROXY protocol v2 header if `proxy`."""

    port: int = 0
    proxy: bool = False


class Locality(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a workload runs, for choosing near endpoints."""

    region: str = ""
    zone: str = ""
    subzone: str = ""


class Workload(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One pod, VM or external endpoint.

    services: service key → {service port: target port}; membership in a service as endpoint.
    policies: keys of the WORKLOAD_SELECTOR policies that hold here, beside the global ones and the namespace's.
    capacity: weight among a service's endpoints.
    """

    uid: str
    name: str
    namespace: str
    addresses: tuple[str, ...] = ()
    network: str = ""
    protocol: Protocol = Protocol.TCP
    trust_domain: str = DEFAULT_TRUST_DOMAIN
    service_account: str = "default"
    node: str = ""
    cluster: str = "Kubernetes"
    hostname: str = ""
    canonical_name: str = ""
    canonical_revision: str = ""
    workload_type: str = "pod"
    workload_name: str = ""
    waypoint: Gateway | None = None
    network_gateway: Gateway | None = None
    application_tunnel: ApplicationTunnel | None = None
    native_tunnel: bool = False
    host_network: bool = False
    healthy: bool = True
    capacity: int = 1
    locality: Locality = Locality()
    services: dict[str, dict[int, int]] = {}
    policies: tuple[str, ...] = ()

    @property
    def identity(self) -> str:
        """The SPIFFE ID, `spiffe://trust-domain/ns/namespace/sa/service-account`."""
        return f"spiffe://{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"


class Balancing(StrEnum):
    """How a service's routing preferences bind."""

    UNSPECIFIED = "UNSPECIFIED_MODE"
    STRICT = "STRICT"
    FAILOVER = "FAILOVER"
    PASSTHROUGH = "PASSTHROUGH"


class Scope(StrEnum):
    """What two workloads may have in common, for `LoadBalancer.routing_preferences`."""

    REGION = "REGION"
    ZONE = "ZONE"
    SUBZONE = "SUBZONE"
    NODE = "NODE"
    CLUSTER = "CLUSTER"
    NETWORK = "NETWORK"


class LoadBalancer(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a service's endpoints are chosen from."""

    routing_preferences: tuple[Scope, ...] = ()
    mode: Balancing = Balancing.UNSPECIFIED
    allow_unhealthy: bool = False


class Service(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A name with virtual addresses and ports; its endpoints are the workloads that list it.

    vips: network addresses ("network/address").
    ports: service port → target port (0: the same; an endpoint's own map wins).
    subject_alt_names: identities that endpoints may also show.
    """

    name: str
    namespace: str
    hostname: str
    vips: tuple[str, ...] = ()
    ports: dict[int, int] = {}
    subject_alt_names: tuple[str, ...] = ()
    waypoint: Gateway | None = None
    weighted_waypoints: tuple[WeightedGateway, ...] = ()
    load_balancer: LoadBalancer = LoadBalancer()
    canonical: bool = False
    namespace_only: bool = False

    @property
    def key(self) -> str:
        """The service key, "namespace/hostname"."""
        return f"{self.namespace}/{self.hostname}"
