"""Workloads, services and policies as the bytes that a subscriber of delta xDS receives.

A resource is encoded once for each change, whoever receives it: an `Encoded` holds the bytes of one `resources` entry of a
`DeltaDiscoveryResponse`, tag and length included, so that a response is such entries joined (protobuf: "parsing concatenated
messages merges them").  Invariants: equal resources have equal bytes and an equal version, in every replica and every run; a
value that the protocol takes for granted ("empty means") is left out.

It must not know who subscribes to what.
"""

from __future__ import annotations

import hashlib
import ipaddress
import sys
from collections.abc import Iterable
from socket import AF_INET, AF_INET6, inet_pton

import msgspec

from nodeproxy.errors import StateError
from nodeproxy.model.node_pod import Membership, MeshNamespace, NodePod
from nodeproxy.model.policy import Match, Policy, ServiceAccountMatch, StringMatch
from nodeproxy.model.workload import DEFAULT_TRUST_DOMAIN, Gateway, Protocol, Service, Workload
from nodeproxy.proto import authorization_pb2 as authorization
from nodeproxy.proto import discovery_pb2 as discovery
from nodeproxy.proto import node_pb2 as node_proto
from nodeproxy.proto import workload_pb2 as workload_proto
from nodeproxy.xds.names import ADDRESS, AUTHORIZATION, MESH_NAMESPACE, NODE_POD

# 64 bits: two versions of one resource that a client mixes up once in 10^19.
_VERSION_BYTES = 8
# What an empty field means (protocols.md, "istio.workload").
_DEFAULT_ACCOUNT = "default"
_DEFAULT_CLUSTER = "Kubernetes"
_WORKLOAD_TYPES = {
    "deployment": workload_proto.DEPLOYMENT,
    "cronjob": workload_proto.CRONJOB,
    "pod": workload_proto.POD,
    "job": workload_proto.JOB,
}
_MEMBERSHIPS = {
    Membership.UNLABELLED: node_proto.NodePod.UNLABELLED,
    Membership.NAMESPACE_LABEL: node_proto.NodePod.NAMESPACE_LABEL,
    Membership.POD_LABEL: node_proto.NodePod.POD_LABEL,
    Membership.OPTED_OUT: node_proto.NodePod.OPTED_OUT,
    Membership.HOST_NETWORK: node_proto.NodePod.HOST_NETWORK,
    Membership.SIDECAR: node_proto.NodePod.SIDECAR,
}


class Encoded(msgspec.Struct, frozen=True, gc=False):
    """One resource, ready to be sent.

    entry: the bytes of one `resources` field.  aliases: the network addresses ("network/ip") that it can be asked for by.
    services: the service keys that a workload is an endpoint of.  node: where it runs.
    """

    name: str
    version: str
    entry: bytes
    aliases: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    node: str = ""
    is_service: bool = False


def encode_workload(workload: Workload) -> Encoded:
    """Raises StateError if an address or a key in it is none."""
    try:
        message = _workload(workload)
    except (OSError, ValueError) as exc:
        raise StateError(f"workload {workload.uid} can't be sent: {exc}") from exc
    body = workload_proto.Address(workload=message).SerializeToString(deterministic=True)
    # Pods of the host's network share the node's address; whoever asks for it gets all of them, as from istiod.
    aliases = tuple(f"{workload.network}/{address}" for address in workload.addresses)
    # The same few strings for many workloads.
    services, node = tuple(map(sys.intern, workload.services)), sys.intern(workload.node)
    return _encoded(ADDRESS, workload.uid, body, aliases, services, node)


def encode_service(service: Service) -> Encoded:
    """Raises StateError if an address or a key in it is none."""
    try:
        message = _service(service)
    except (OSError, ValueError) as exc:
        raise StateError(f"service {service.key} can't be sent: {exc}") from exc
    body = workload_proto.Address(service=message).SerializeToString(deterministic=True)
    return _encoded(ADDRESS, service.key, body, service.vips, is_service=True)


def encode_policy(policy: Policy) -> Encoded:
    """Raises StateError if a block of addresses in it is none, or a match says nothing."""
    try:
        message = _policy(policy)
    except (OSError, ValueError) as exc:
        raise StateError(f"policy {policy.key} can't be sent: {exc}") from exc
    return _encoded(AUTHORIZATION, policy.key, message.SerializeToString(deterministic=True))


def encode_node_pod(pod: NodePod) -> Encoded:
    """Raises StateError if an address or a key in its workload is none."""
    message = node_proto.NodePod(
        namespace=pod.namespace, name=pod.name, pod_uid=pod.pod_uid, membership=_MEMBERSHIPS[pod.membership]
    )
    if pod.workload is not None:
        try:
            message.workload.CopyFrom(_workload(pod.workload))
        except (OSError, ValueError) as exc:
            raise StateError(f"pod {pod.key} can't be told its node: {exc}") from exc
    if pod.probe_ports is not None:
        message.probe_ports.SetInParent()  # told, even if there are none
        message.probe_ports.ports.extend(pod.probe_ports)
    return _encoded(NODE_POD, pod.key, message.SerializeToString(deterministic=True))


def encode_mesh_namespace(namespace: MeshNamespace) -> Encoded:
    """Whatever its name is."""
    message = node_proto.MeshNamespace(name=namespace.name, labelled=namespace.labelled)
    return _encoded(MESH_NAMESPACE, namespace.name, message.SerializeToString(deterministic=True))


def encode_response(type_url: str, nonce: str, resources: Iterable[Encoded], removed: Iterable[str] = ()) -> bytes:
    """A `DeltaDiscoveryResponse`."""
    around = discovery.DeltaDiscoveryResponse(type_url=type_url, nonce=nonce, removed_resources=removed)
    return b"".join([around.SerializeToString(), *[resource.entry for resource in resources]])


def _encoded(
    type_url: str,
    name: str,
    body: bytes,
    aliases: tuple[str, ...] = (),
    services: tuple[str, ...] = (),
    node: str = "",
    is_service: bool = False,
) -> Encoded:
    version = hashlib.blake2b(body, digest_size=_VERSION_BYTES).hexdigest()
    resource = discovery.Resource(name=name, version=version, aliases=aliases)
    resource.resource.type_url = type_url
    resource.resource.value = body
    entry = discovery.DeltaDiscoveryResponse(resources=(resource,)).SerializeToString()
    return Encoded(name, version, entry, aliases, services, node, is_service)


def _workload(workload: Workload) -> workload_proto.Workload:
    message = workload_proto.Workload(
        uid=workload.uid,
        name=workload.name,
        namespace=workload.namespace,
        addresses=[_address_bytes(address) for address in workload.addresses],
        network=workload.network,
        tunnel_protocol=workload_proto.HBONE if workload.protocol is Protocol.HBONE else workload_proto.NONE,
        trust_domain=_unless(workload.trust_domain, DEFAULT_TRUST_DOMAIN),
        service_account=_unless(workload.service_account, _DEFAULT_ACCOUNT),
        node=workload.node,
        canonical_name=workload.canonical_name,
        canonical_revision=workload.canonical_revision,
        workload_type=_WORKLOAD_TYPES.get(workload.workload_type, workload_proto.POD),
        workload_name=workload.workload_name,
        native_tunnel=workload.native_tunnel,
        authorization_policies=workload.policies,
        status=workload_proto.HEALTHY if workload.healthy else workload_proto.UNHEALTHY,
        cluster_id=_unless(workload.cluster, _DEFAULT_CLUSTER),
        hostname=workload.hostname,
        network_mode=workload_proto.HOST_NETWORK if workload.host_network else workload_proto.STANDARD,
    )
    for key, ports in workload.services.items():
        # An empty list is an entry too: the workload is an endpoint that maps no port.
        message.services[key].ports.extend(_ports(ports))
    if workload.waypoint is not None:
        message.waypoint.CopyFrom(_gateway(workload.waypoint))
    if workload.network_gateway is not None:
        message.network_gateway.CopyFrom(_gateway(workload.network_gateway))
    tunnel, locality = workload.application_tunnel, workload.locality
    if tunnel is not None:
        message.application_tunnel.port = tunnel.port
        message.application_tunnel.protocol = (
            workload_proto.ApplicationTunnel.PROXY if tunnel.proxy else workload_proto.ApplicationTunnel.NONE
        )
    if locality.region or locality.zone or locality.subzone:
        place = workload_proto.Locality(region=locality.region, zone=locality.zone, subzone=locality.subzone)
        message.locality.CopyFrom(place)
    if workload.capacity != 1:
        message.capacity.value = workload.capacity
    return message


def _service(service: Service) -> workload_proto.Service:
    message = workload_proto.Service(
        name=service.name,
        namespace=service.namespace,
        hostname=service.hostname,
        addresses=[_network_address(vip) for vip in service.vips],
        ports=_ports(service.ports),
        subject_alt_names=service.subject_alt_names,
        canonical=service.canonical,
        visibility=workload_proto.Service.NAMESPACE if service.namespace_only else workload_proto.Service.PUBLIC,
    )
    if service.waypoint is not None:
        message.waypoint.CopyFrom(_gateway(service.waypoint))
    for weighted in service.weighted_waypoints:
        message.weighted_waypoints.add(destination=_gateway(weighted.gateway), weight=weighted.weight)
    balancer = service.load_balancer
    if balancer.routing_preferences or balancer.mode.value != "UNSPECIFIED_MODE" or balancer.allow_unhealthy:
        health = workload_proto.LoadBalancing.ALLOW_ALL if balancer.allow_unhealthy else workload_proto.LoadBalancing.ONLY_HEALTHY
        settings = workload_proto.LoadBalancing(
            routing_preference=[scope.value for scope in balancer.routing_preferences],
            mode=balancer.mode.value,
            health_policy=health,
        )
        message.load_balancing.CopyFrom(settings)
    return message


def _policy(policy: Policy) -> authorization.Authorization:
    return authorization.Authorization(
        name=policy.name,
        namespace=policy.namespace,
        scope=policy.scope.value,
        action=policy.action.value,
        rules=[
            authorization.Rule(clauses=[authorization.Clause(matches=[_match(match) for match in clause]) for clause in rule])
            for rule in policy.rules
        ],
        dry_run=policy.dry_run,
    )


def _match(match: Match) -> authorization.Match:
    return authorization.Match(
        namespaces=_strings(match.namespaces),
        not_namespaces=_strings(match.not_namespaces),
        principals=_strings(match.principals),
        not_principals=_strings(match.not_principals),
        source_ips=_blocks(match.source_ips),
        not_source_ips=_blocks(match.not_source_ips),
        destination_ips=_blocks(match.destination_ips),
        not_destination_ips=_blocks(match.not_destination_ips),
        destination_ports=match.destination_ports,
        not_destination_ports=match.not_destination_ports,
        service_accounts=_accounts(match.service_accounts),
        not_service_accounts=_accounts(match.not_service_accounts),
    )


def _strings(matches: Iterable[StringMatch]) -> list[authorization.StringMatch]:
    return [_string(match) for match in matches]


def _string(match: StringMatch) -> authorization.StringMatch:
    if match.exact is not None:
        return authorization.StringMatch(exact=match.exact)
    if match.prefix is not None:
        return authorization.StringMatch(prefix=match.prefix)
    if match.suffix is not None:
        return authorization.StringMatch(suffix=match.suffix)
    if not match.presence:
        raise ValueError("a string is compared with nothing")
    message = authorization.StringMatch()
    message.presence.SetInParent()
    return message


def _accounts(matches: Iterable[ServiceAccountMatch]) -> list[authorization.ServiceAccountMatch]:
    return [
        authorization.ServiceAccountMatch(namespace=match.namespace, service_account=match.service_account) for match in matches
    ]


def _blocks(blocks: Iterable[str]) -> list[authorization.Address]:
    networks = [ipaddress.ip_network(block, strict=False) for block in blocks]
    return [authorization.Address(address=network.network_address.packed, length=network.prefixlen) for network in networks]


def _ports(ports: dict[int, int]) -> list[workload_proto.Port]:
    return [workload_proto.Port(service_port=port, target_port=target) for port, target in sorted(ports.items())]


def _gateway(gateway: Gateway) -> workload_proto.GatewayAddress:
    if not gateway.is_hostname:
        return workload_proto.GatewayAddress(address=_network_address(gateway.destination), hbone_mtls_port=gateway.hbone_port)
    namespace, slash, hostname = gateway.destination.partition("/")
    if not slash:
        raise ValueError(f"{gateway.destination!r} is no namespace/hostname")
    named = workload_proto.NamespacedHostname(namespace=namespace, hostname=hostname)
    return workload_proto.GatewayAddress(hostname=named, hbone_mtls_port=gateway.hbone_port)


def _network_address(text: str) -> workload_proto.NetworkAddress:
    network, slash, address = text.rpartition("/")
    if not slash:
        raise ValueError(f"{text!r} is no network/address")
    return workload_proto.NetworkAddress(network=network, address=_address_bytes(address))


def _address_bytes(text: str) -> bytes:
    """In network byte order.  Raises OSError if `text` is no address."""
    return inet_pton(AF_INET6 if ":" in text else AF_INET, text)


def _unless(value: str, default: str) -> str:
    return "" if value == default else value
