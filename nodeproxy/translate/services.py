"""From a Service or ServiceEntry to its hosts, and from a host to the service of the model.

Invariant: only TCP.  What a service says that this leaves out is a note, never a guess.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from nodeproxy.model.workload import Balancing, LoadBalancer, Scope, Service
from nodeproxy.policy.address import canonical_ip
from nodeproxy.translate import names, objects
from nodeproxy.translate.hosts import Host, HostPort
from nodeproxy.translate.settings import MeshSettings
from nodeproxy.translate.waypoints import Waypoints

_ZONE = (Scope.NETWORK, Scope.REGION, Scope.ZONE)
_NODE = (*_ZONE, Scope.SUBZONE, Scope.NODE)
_PREFERENCES = {"preferclose": _ZONE, "prefersamezone": _ZONE, "prefersamenode": _NODE}
_LABELS = (names.USE_WAYPOINT, names.USE_WAYPOINT_NAMESPACE, names.USE_CANARY, names.USE_CANARY_NAMESPACE, names.GATEWAY_MANAGED)
_ANNOTATIONS = (names.TRAFFIC_DISTRIBUTION, names.CANARY_WEIGHT)
_NOT_TCP = frozenset({"UDP", "SCTP"})
# RFC 1035, section 2.3.4: names have 255 octets at most, which leaves 253 characters.
_HOST = re.compile(r"[A-Za-z0-9*_.-]{1,253}")


def hosts_of_service(service: objects.Service, settings: MeshSettings) -> list[Host]:
    """The host of a Kubernetes Service; none for an ExternalName, which is DNS's alone."""
    metadata, spec = service.metadata, service.spec
    if spec.type == "ExternalName":
        return []
    balancer = LoadBalancer(allow_unhealthy=spec.publish_not_ready_addresses)
    if spec.internal_traffic_policy == "Local":
        balancer = LoadBalancer((Scope.NODE,), Balancing.STRICT, spec.publish_not_ready_addresses)
    return [
        Host(
            source=("Service", service.key),
            namespace=metadata.namespace,
            name=metadata.name,
            hostname=settings.hostname(metadata.namespace, metadata.name),
            created=metadata.creation_timestamp or "",
            selector=spec.selector,
            ports=tuple(_service_port(port) for port in spec.ports if port.protocol not in _NOT_TCP),
            vips=_addresses(spec.cluster_ips or (spec.cluster_ip,), settings),
            labels=_only(metadata.labels, _LABELS),
            annotations=_only(metadata.annotations, _ANNOTATIONS),
            distribution=spec.traffic_distribution.lower(),
            balancer=balancer,
        )
    ]


def is_host(text: str) -> bool:
    """Whether a service may be called so.  "/Pod/ns/name" in the namespace "c" would be called as a pod of the cluster "c"."""
    return _HOST.fullmatch(text) is not None


def hosts_of_entry(entry: objects.ServiceEntry, settings: MeshSettings) -> list[Host]:
    """The hosts of a ServiceEntry, in its order."""
    metadata, spec = entry.metadata, entry.spec
    passthrough = spec.resolution == "NONE"
    own = _addresses(spec.addresses, settings)
    given: dict[str, list[str]] = {}
    if not spec.addresses and not passthrough and metadata.labels.get(names.AUTOALLOCATE, "").lower() != "false":
        for item in entry.status.addresses:
            given.setdefault(item.host, []).append(item.value)
    found = []
    for hostname in dict.fromkeys(filter(is_host, spec.hosts)):
        usable = not hostname.startswith("*") or spec.resolution == "DYNAMIC_DNS"
        found.append(
            Host(
                source=("ServiceEntry", entry.key),
                namespace=metadata.namespace,
                name=metadata.name,
                hostname=hostname,
                created=metadata.creation_timestamp or "",
                selector={} if spec.workload_selector is None else spec.workload_selector.labels,
                ports=tuple(
                    HostPort(number=port.number, target=port.target_port or port.number, name=port.name)
                    for port in spec.ports
                    if port.protocol.upper() not in _NOT_TCP
                ),
                vips=own or (_addresses(given.get(hostname, ()), settings) if usable else ()),
                labels=_only(metadata.labels, _LABELS),
                annotations=_only(metadata.annotations, _ANNOTATIONS),
                subject_alt_names=tuple(name for name in spec.subject_alt_names if name.startswith("spiffe://")),
                balancer=LoadBalancer(mode=Balancing.PASSTHROUGH, allow_unhealthy=True) if passthrough else LoadBalancer(),
            )
        )
    return found


def service_of(host: Host, canonical: bool, home: tuple[Mapping[str, str], Mapping[str, str]], waypoints: Waypoints) -> Service:
    """The model's service; home: its namespace's labels and annotations."""
    waypoint = waypoints.for_service(host.namespace, host.labels, home[0])
    weighted = () if waypoint is None else waypoints.shared(waypoint, host.namespace, host.labels, host.annotations, home)
    return Service(
        name=host.name,
        namespace=host.namespace,
        hostname=host.hostname,
        vips=host.vips,
        ports={port.number: port.target for port in host.ports},
        subject_alt_names=host.subject_alt_names,
        waypoint=None if waypoint is None else waypoint.gateway,
        weighted_waypoints=weighted,
        load_balancer=_balancer(host, home[1]),
        canonical=canonical,
    )


def _service_port(port: objects.ServicePort) -> HostPort:
    if isinstance(port.target_port, str):
        return HostPort(number=port.port, target=0, name=port.name, target_name=port.target_port)
    return HostPort(number=port.port, target=port.target_port or port.port, name=port.name)


def _balancer(host: Host, annotations: Mapping[str, str]) -> LoadBalancer:
    """With the preference that the spec, else the resource's annotation, else its namespace's says."""
    if host.balancer.mode is not Balancing.UNSPECIFIED:
        return host.balancer
    scopes = _PREFERENCES.get(host.distribution)
    if scopes is None:
        wanted = host.annotations.get(names.TRAFFIC_DISTRIBUTION) or annotations.get(names.TRAFFIC_DISTRIBUTION, "")
        scopes = _PREFERENCES.get(wanted.lower())
    if scopes is None:
        return host.balancer
    return LoadBalancer(scopes, Balancing.FAILOVER, host.balancer.allow_unhealthy)


def _addresses(texts: Iterable[str], settings: MeshSettings) -> tuple[str, ...]:
    """Network addresses; "", "None" (headless) and ranges are none."""
    found: dict[str, None] = {}
    for text in texts:
        address, _, bits = text.partition("/")
        if bits in ("", "32" if ":" not in address else "128"):
            try:
                found[f"{settings.network}/{canonical_ip(address)}"] = None
            except ValueError:
                continue  # no address: told by a note
    return tuple(found)


def _only(labels: Mapping[str, str], keys: Iterable[str]) -> dict[str, str]:
    return {key: labels[key] for key in keys if key in labels}
