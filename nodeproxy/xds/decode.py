"""From a resource of the wire to the model: `istio.workload.Address`, `istio.security.Authorization`, and what nodeproxy's own
controller tells a node of its pods.

Invariants: a resource is understood whole or is a ResourceError; nothing of a policy is left out, also no field that this version
does not know, for without it the policy would say something else.  What is left out on purpose: extensions of workloads and
services, which say nothing to a layer-4 proxy; a service's `ip_families` and `ingress_use_waypoint`; virtual addresses that are
whole blocks, which the model has no place for.
Knows nothing of streams, versions or the store.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from google.protobuf.message import DecodeError, Message

from nodeproxy.errors import ConfigError, ResourceError
from nodeproxy.model.node_pod import Membership, MeshNamespace, NodePod
from nodeproxy.model.policy import Action, Clause, Match, Policy, PolicyScope, Rule, ServiceAccountMatch, StringMatch
from nodeproxy.model.workload import (
    DEFAULT_TRUST_DOMAIN,
    HBONE_PORT,
    ApplicationTunnel,
    Balancing,
    Gateway,
    LoadBalancer,
    Locality,
    Protocol,
    Scope,
    Service,
    WeightedGateway,
    Workload,
)
from nodeproxy.policy.authorize import check_policy
from nodeproxy.proto import authorization_pb2, node_pb2, workload_pb2
from nodeproxy.xds.fields import MAX_PORT, bounded, choice, cidr_text, ip_text, name, port, segment
from nodeproxy.xds.names import MAX_NAMESPACE_BYTES

# Of a pod: more than its containers have probes, and few enough that no pod fills the kernel's table.
MAX_PROBE_PORTS = 64

# LEGACY_ISTIO_MTLS (2) is missing: nodeproxy does not speak it, and plain TCP in its place would be a surprise.
_PROTOCOLS = {0: Protocol.TCP, 1: Protocol.HBONE}
_HEALTHY = {0: True, 1: False}
_TYPES = {0: "deployment", 1: "cronjob", 2: "pod", 3: "job"}
_HOST_NETWORK = {0: False, 1: True}
_PROXY = {0: False, 1: True}
_SCOPES = {1: Scope.REGION, 2: Scope.ZONE, 3: Scope.SUBZONE, 4: Scope.NODE, 5: Scope.CLUSTER, 6: Scope.NETWORK}
_MODES = {0: Balancing.UNSPECIFIED, 1: Balancing.STRICT, 2: Balancing.FAILOVER, 3: Balancing.PASSTHROUGH}
_ALLOW_UNHEALTHY = {0: False, 1: True}
_NAMESPACE_ONLY = {0: False, 1: True}
_POLICY_SCOPES = {0: PolicyScope.GLOBAL, 1: PolicyScope.NAMESPACE, 2: PolicyScope.WORKLOAD_SELECTOR}
_ACTIONS = {0: Action.ALLOW, 1: Action.DENY}
_MEMBERSHIPS = {
    0: Membership.UNLABELLED,
    1: Membership.NAMESPACE_LABEL,
    2: Membership.POD_LABEL,
    3: Membership.OPTED_OUT,
    4: Membership.HOST_NETWORK,
    5: Membership.SIDECAR,
}
_LONGEST_ADDRESS = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
_NO_LOCALITY = Locality()
_NO_BALANCER = LoadBalancer()


def decode_address(raw: bytes) -> Workload | Service:
    """An `istio.workload.Address`.  Raises ResourceError."""
    message = workload_pb2.Address()
    _parse(message, raw)
    kind = message.WhichOneof("type")
    if kind == "workload":
        return _workload(message.workload)
    if kind == "service":
        return _service(message.service)
    raise ResourceError("unknown_value", "an address is neither a workload nor a service")


def decode_policy(raw: bytes) -> Policy:
    """An `istio.security.Authorization`.  Raises ResourceError."""
    message = authorization_pb2.Authorization()
    _parse(message, raw)
    size = message.ByteSize()
    message.DiscardUnknownFields()  # also those within
    if message.ByteSize() != size:
        raise ResourceError("unknown_field", "it has fields that this version does not know")
    _no_extension("a policy", message.extensions)
    namespace = segment("a policy's namespace", message.namespace)
    policy = Policy(
        name=name("a policy's name", segment("a policy's name", message.name)),
        namespace=namespace,
        scope=choice("a policy's scope", message.scope, _POLICY_SCOPES),
        action=choice("a policy's action", message.action, _ACTIONS),
        rules=tuple(_rule(rule) for rule in message.rules),
        dry_run=message.dry_run,
    )
    bounded("a policy's key", policy.key)
    bounded("a policy's namespace", namespace, MAX_NAMESPACE_BYTES)
    try:
        check_policy(policy)
    except ConfigError as exc:
        raise ResourceError("address", str(exc)) from exc
    return policy


def decode_node_pod(raw: bytes) -> NodePod:
    """A `nodeproxy.v1.NodePod`.  Raises ResourceError."""
    message = node_pb2.NodePod()
    _parse(message, raw)
    pod = NodePod(
        namespace=name("a pod's namespace", segment("a pod's namespace", message.namespace)),
        name=name("a pod's name", segment("a pod's name", message.name)),
        pod_uid=name("a pod's uid", segment("a pod's uid", message.pod_uid)),
        membership=choice("a pod's membership", message.membership, _MEMBERSHIPS),
        workload=_workload(message.workload) if message.HasField("workload") else None,
        probe_ports=_probe_ports(message.probe_ports.ports) if message.HasField("probe_ports") else None,
    )
    if pod.membership.in_mesh is not (pod.workload is not None):
        raise ResourceError("unknown_value", f"a pod has the membership {pod.membership}, and its workload does not agree")
    return pod


def _probe_ports(ports: Sequence[int]) -> tuple[int, ...]:
    """Those that are none are left out, which lets nobody in."""
    return tuple(each for each in ports[:MAX_PROBE_PORTS] if 1 <= each <= MAX_PORT)


def decode_mesh_namespace(raw: bytes) -> MeshNamespace:
    """A `nodeproxy.v1.MeshNamespace`.  Raises ResourceError."""
    message = node_pb2.MeshNamespace()
    _parse(message, raw)
    return MeshNamespace(name=name("a namespace", segment("a namespace", message.name)), labelled=message.labelled)


def stand_in(key: str, raw: bytes | None, error: ResourceError, *, is_root: bool) -> Policy:
    """What holds in place of a policy that can't be understood, so that nobody is let in for want of it.

    An ALLOW policy becomes one that allows nothing; any other, or one of which not even the action can be read, becomes a DENY
    of everything.  It holds for whom the policy holds.  If that can't be read it holds for its namespace, or for all if that is
    the mesh's root namespace (is_root).  A dry-run policy stays one.  key: the resource's name, "namespace/name".
    raw: None if nothing of it could be taken in.
    """
    message = authorization_pb2.Authorization()
    scope, action = None, Action.DENY
    if raw is not None:
        try:
            message.ParseFromString(raw)
            scope, action = _POLICY_SCOPES.get(message.scope), _ACTIONS.get(message.action, Action.DENY)
        except DecodeError:
            message.Clear()
    namespace, _, policy_name = key.partition("/")
    return Policy(
        name=policy_name,
        namespace=namespace,
        scope=scope or (PolicyScope.GLOBAL if is_root else PolicyScope.NAMESPACE),
        action=action,
        rules=() if action is Action.ALLOW else ((),),  # no rule never matches; a rule without clauses always does
        dry_run=message.dry_run,
        stands_in=str(error),
    )


def _parse(message: Message, raw: bytes) -> None:
    try:
        message.ParseFromString(raw)
    except DecodeError as exc:
        raise ResourceError("malformed", f"it is no {message.DESCRIPTOR.full_name}: {exc}") from exc


# ── workloads and services ──


def _workload(message: workload_pb2.Workload) -> Workload:
    uid = name("a workload's uid", message.uid)
    locality, network = message.locality, message.network
    bounded("a workload's network", f"{network}/{_LONGEST_ADDRESS}")
    return Workload(
        uid=uid,
        name=message.name or uid,
        namespace=segment("a workload's namespace", message.namespace),
        addresses=tuple([ip_text(raw) for raw in message.addresses]),
        network=network,
        protocol=choice("a workload's tunnel protocol", message.tunnel_protocol, _PROTOCOLS),
        trust_domain=segment("a workload's trust domain", message.trust_domain) or DEFAULT_TRUST_DOMAIN,
        service_account=segment("a workload's service account", message.service_account) or "default",
        node=message.node,
        cluster=message.cluster_id or "Kubernetes",
        hostname=message.hostname,
        canonical_name=message.canonical_name,
        canonical_revision=message.canonical_revision,
        workload_type=choice("a workload's type", message.workload_type, _TYPES),
        workload_name=message.workload_name,
        waypoint=_gateway(message.waypoint) if message.HasField("waypoint") else None,
        network_gateway=_gateway(message.network_gateway) if message.HasField("network_gateway") else None,
        application_tunnel=_tunnel(message.application_tunnel) if message.HasField("application_tunnel") else None,
        native_tunnel=message.native_tunnel,
        host_network=choice("a workload's network mode", message.network_mode, _HOST_NETWORK),
        healthy=choice("a workload's status", message.status, _HEALTHY),
        capacity=message.capacity.value if message.HasField("capacity") else 1,
        locality=Locality(locality.region, locality.zone, locality.subzone) if message.HasField("locality") else _NO_LOCALITY,
        services={name("a service's key", key): _ports(message.services[key].ports) for key in message.services},
        policies=tuple([name("a policy's key", key) for key in message.authorization_policies]),
    )


def _service(message: workload_pb2.Service) -> Service:
    found = Service(
        name=message.name,
        namespace=segment("a service's namespace", message.namespace),
        hostname=name("a service's hostname", segment("a service's hostname", message.hostname)),
        vips=tuple([_network_address(vip) for vip in message.addresses if not _is_block(vip)]),
        ports=_ports(message.ports),
        subject_alt_names=tuple(message.subject_alt_names),
        waypoint=_gateway(message.waypoint) if message.HasField("waypoint") else None,
        weighted_waypoints=tuple(
            [WeightedGateway(_gateway(each.destination), each.weight) for each in message.weighted_waypoints]
        ),
        load_balancer=_balancer(message.load_balancing) if message.HasField("load_balancing") else _NO_BALANCER,
        canonical=message.canonical,
        namespace_only=choice("a service's visibility", message.visibility, _NAMESPACE_ONLY),
    )
    bounded("a service's key", found.key)
    bounded("a service's hostname", found.hostname.lower())  # which may be longer, and is what it is looked up by
    return found


def _balancer(message: workload_pb2.LoadBalancing) -> LoadBalancer:
    return LoadBalancer(
        routing_preferences=tuple([choice("a routing preference", scope, _SCOPES) for scope in message.routing_preference]),
        mode=choice("a load balancing's mode", message.mode, _MODES),
        allow_unhealthy=choice("a load balancing's health policy", message.health_policy, _ALLOW_UNHEALTHY),
    )


def _tunnel(message: workload_pb2.ApplicationTunnel) -> ApplicationTunnel:
    return ApplicationTunnel(port=port(message.port), proxy=choice("an application tunnel's protocol", message.protocol, _PROXY))


def _gateway(message: workload_pb2.GatewayAddress) -> Gateway:
    kind = message.WhichOneof("destination")
    hbone_port = port(message.hbone_mtls_port) or HBONE_PORT
    if kind == "address":
        return Gateway(_network_address(message.address), hbone_port)
    if kind == "hostname":
        host = message.hostname
        key = f"{segment('a gateway', host.namespace)}/{name('a gateway', host.hostname)}"
        return Gateway(bounded("a gateway", key), hbone_port, is_hostname=True)
    raise ResourceError("unknown_value", "a gateway or waypoint has neither an address nor a hostname")


def _network_address(message: workload_pb2.NetworkAddress) -> str:
    return bounded("an address", f"{message.network}/{ip_text(message.address)}")


def _is_block(message: workload_pb2.NetworkAddress) -> bool:
    return message.HasField("length") and message.length != len(message.address) * 8


def _ports(ports: Iterable[workload_pb2.Port]) -> dict[int, int]:
    # Nobody can connect to port 0, so an entry of it says nothing.
    return {port(each.service_port): port(each.target_port) for each in ports if each.service_port}


# ── policies ──


def _rule(message: authorization_pb2.Rule) -> Rule:
    return tuple(_clause(clause) for clause in message.clauses)


def _clause(message: authorization_pb2.Clause) -> Clause:
    return tuple(_match(match) for match in message.matches)


def _match(message: authorization_pb2.Match) -> Match:
    _no_extension("a match", message.extensions)
    return Match(
        namespaces=_strings(message.namespaces),
        not_namespaces=_strings(message.not_namespaces),
        principals=_strings(message.principals),
        not_principals=_strings(message.not_principals),
        source_ips=_blocks(message.source_ips),
        not_source_ips=_blocks(message.not_source_ips),
        destination_ips=_blocks(message.destination_ips),
        not_destination_ips=_blocks(message.not_destination_ips),
        destination_ports=tuple(port(each) for each in message.destination_ports),
        not_destination_ports=tuple(port(each) for each in message.not_destination_ports),
        service_accounts=_accounts(message.service_accounts),
        not_service_accounts=_accounts(message.not_service_accounts),
    )


def _strings(messages: Iterable[authorization_pb2.StringMatch]) -> tuple[StringMatch, ...]:
    return tuple(_string(message) for message in messages)


def _string(message: authorization_pb2.StringMatch) -> StringMatch:
    kind = message.WhichOneof("match_type")
    if kind == "presence":
        return StringMatch(presence=True)
    if kind == "exact":
        return StringMatch(exact=message.exact)
    if kind == "prefix":
        return StringMatch(prefix=message.prefix)
    if kind == "suffix":
        return StringMatch(suffix=message.suffix)
    raise ResourceError("unknown_value", "a comparison does not say how to compare")


def _blocks(messages: Iterable[authorization_pb2.Address]) -> tuple[str, ...]:
    found = []
    for message in messages:
        found.append(cidr_text(message.address, message.length))
    return tuple(found)


def _accounts(messages: Iterable[authorization_pb2.ServiceAccountMatch]) -> tuple[ServiceAccountMatch, ...]:
    found = []
    for message in messages:
        found.append(ServiceAccountMatch(message.namespace, message.service_account))
    return tuple(found)


def _no_extension(what: str, extensions: Sequence[workload_pb2.Extension]) -> None:
    if extensions:
        raise ResourceError("extension", f"{what} has the extension {extensions[0].name!r}, which this version does not know")
