"""What is encoded reads, in the generated classes, as what it was made of."""

from __future__ import annotations

import socket

import msgspec
import pytest

from nodeproxy.errors import StateError
from nodeproxy.model.node_pod import Membership, NodePod
from nodeproxy.model.policy import Action, Match, Policy, PolicyScope, ServiceAccountMatch, StringMatch
from nodeproxy.model.workload import (
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
from nodeproxy.proto import authorization_pb2, discovery_pb2, workload_pb2
from nodeproxy.xds.encode import Encoded, encode_node_pod, encode_policy, encode_response, encode_service, encode_workload
from nodeproxy.xds.names import ADDRESS, AUTHORIZATION

PLAIN = Workload(uid="Kubernetes//Pod/ns/a", name="a", namespace="ns", addresses=("10.0.0.1",))
RICH = Workload(
    uid="c1//Pod/ns/a",
    name="a",
    namespace="ns",
    addresses=("10.0.0.1", "fd00::1"),
    network="net",
    protocol=Protocol.HBONE,
    trust_domain="td",
    service_account="sa",
    node="n1",
    cluster="c1",
    hostname="a.example",
    canonical_name="cn",
    canonical_revision="v1",
    workload_type="deployment",
    workload_name="wn",
    waypoint=Gateway("ns/waypoint.ns.svc", 15018, is_hostname=True),
    network_gateway=Gateway("other/10.9.9.9"),
    application_tunnel=ApplicationTunnel(port=15088, proxy=True),
    native_tunnel=True,
    host_network=True,
    healthy=False,
    capacity=0,
    locality=Locality("r", "z", "s"),
    services={"ns/b.ns.svc": {80: 8080, 443: 0}, "ns/a.ns.svc": {}},
    policies=("ns/p1", "ns/p2"),
)
SERVICE = Service(
    name="s",
    namespace="ns",
    hostname="s.ns.svc",
    vips=("/10.1.0.1", "net/fd00::2"),
    ports={443: 8443, 80: 0},
    subject_alt_names=("spiffe://td/ns/ns/sa/x",),
    waypoint=Gateway("/10.2.0.1"),
    weighted_waypoints=(WeightedGateway(Gateway("ns/w.ns.svc", is_hostname=True), 3),),
    load_balancer=LoadBalancer((Scope.NETWORK, Scope.ZONE), Balancing.FAILOVER, allow_unhealthy=True),
    canonical=True,
    namespace_only=True,
)


def resource(encoded: Encoded) -> discovery_pb2.Resource:
    (only,) = discovery_pb2.DeltaDiscoveryResponse.FromString(encoded.entry).resources
    return only


def workload(encoded: Encoded) -> workload_pb2.Workload:
    any_ = resource(encoded).resource
    assert any_.type_url == ADDRESS
    return workload_pb2.Address.FromString(any_.value).workload


def test_a_rich_workload_says_all_of_it() -> None:
    message = workload(encode_workload(RICH))
    assert (message.uid, message.name, message.namespace, message.network) == ("c1//Pod/ns/a", "a", "ns", "net")
    assert list(message.addresses) == [socket.inet_aton("10.0.0.1"), socket.inet_pton(socket.AF_INET6, "fd00::1")]
    assert message.tunnel_protocol == workload_pb2.HBONE
    assert (message.trust_domain, message.service_account, message.cluster_id, message.node) == ("td", "sa", "c1", "n1")
    assert (message.canonical_name, message.canonical_revision, message.workload_name) == ("cn", "v1", "wn")
    assert message.workload_type == workload_pb2.DEPLOYMENT
    assert (message.hostname, message.native_tunnel) == ("a.example", True)
    assert (message.waypoint.hostname.namespace, message.waypoint.hostname.hostname) == ("ns", "waypoint.ns.svc")
    assert message.waypoint.hbone_mtls_port == 15018
    assert message.network_gateway.address.network == "other"
    assert message.network_gateway.address.address == socket.inet_aton("10.9.9.9")
    assert (message.application_tunnel.port, message.application_tunnel.protocol) == (
        15088,
        workload_pb2.ApplicationTunnel.PROXY,
    )
    assert message.network_mode == workload_pb2.HOST_NETWORK
    assert message.status == workload_pb2.UNHEALTHY
    assert message.HasField("capacity")
    assert message.capacity.value == 0
    assert (message.locality.region, message.locality.zone, message.locality.subzone) == ("r", "z", "s")
    assert {key: [(p.service_port, p.target_port) for p in ports.ports] for key, ports in message.services.items()} == {
        "ns/a.ns.svc": [],
        "ns/b.ns.svc": [(80, 8080), (443, 0)],
    }
    assert list(message.authorization_policies) == ["ns/p1", "ns/p2"]


def test_what_the_protocol_takes_for_granted_is_left_out() -> None:
    message = workload(encode_workload(PLAIN))
    assert {field.name for field, _ in message.ListFields()} == {"uid", "name", "namespace", "addresses", "workload_type"}


def test_a_workload_is_found_by_its_addresses_services_and_node() -> None:
    encoded = encode_workload(RICH)
    assert encoded.aliases == ("net/10.0.0.1", "net/fd00::1")
    assert list(resource(encoded).aliases) == list(encoded.aliases)
    assert set(encoded.services) == {"ns/a.ns.svc", "ns/b.ns.svc"}
    assert (encoded.node, encoded.is_service) == ("n1", False)
    assert encode_service(SERVICE).aliases == SERVICE.vips
    assert encode_service(SERVICE).is_service


def test_a_service_says_all_of_it() -> None:
    encoded = encode_service(SERVICE)
    message = workload_pb2.Address.FromString(resource(encoded).resource.value).service
    assert encoded.name == resource(encoded).name == "ns/s.ns.svc"
    assert (message.name, message.namespace, message.hostname) == ("s", "ns", "s.ns.svc")
    assert [(a.network, a.address, a.HasField("length")) for a in message.addresses] == [
        ("", socket.inet_aton("10.1.0.1"), False),
        ("net", socket.inet_pton(socket.AF_INET6, "fd00::2"), False),
    ]
    assert [(p.service_port, p.target_port) for p in message.ports] == [(80, 0), (443, 8443)]
    assert list(message.subject_alt_names) == ["spiffe://td/ns/ns/sa/x"]
    assert message.waypoint.address.address == socket.inet_aton("10.2.0.1")
    (weighted,) = message.weighted_waypoints
    assert (weighted.destination.hostname.hostname, weighted.weight) == ("w.ns.svc", 3)
    balancing = message.load_balancing
    assert list(balancing.routing_preference) == [workload_pb2.LoadBalancing.NETWORK, workload_pb2.LoadBalancing.ZONE]
    assert (balancing.mode, balancing.health_policy) == (
        workload_pb2.LoadBalancing.FAILOVER,
        workload_pb2.LoadBalancing.ALLOW_ALL,
    )
    assert message.canonical
    assert message.visibility == workload_pb2.Service.NAMESPACE


def test_a_policy_says_all_of_it() -> None:
    match = Match(
        namespaces=(StringMatch(exact="a"), StringMatch(prefix="b")),
        not_namespaces=(StringMatch(suffix="c"),),
        principals=(StringMatch(presence=True),),
        not_principals=(StringMatch(exact="p"),),
        source_ips=("10.0.0.0/8", "10.1.2.3"),
        not_source_ips=("2001:db8::/32",),
        destination_ips=("0.0.0.0/0",),
        not_destination_ips=("fd00::1",),
        destination_ports=(80, 443),
        not_destination_ports=(22,),
        service_accounts=(ServiceAccountMatch("ns", "sa"),),
        not_service_accounts=(ServiceAccountMatch("ns", "no"),),
    )
    policy = Policy(
        name="p",
        namespace="ns",
        scope=PolicyScope.WORKLOAD_SELECTOR,
        action=Action.DENY,
        rules=(((match, Match()), ()), ()),
        dry_run=True,
    )
    encoded = encode_policy(policy)
    any_ = resource(encoded).resource
    message = authorization_pb2.Authorization.FromString(any_.value)
    assert (any_.type_url, encoded.name) == (AUTHORIZATION, "ns/p")
    assert (message.name, message.namespace, message.dry_run) == ("p", "ns", True)
    assert (message.scope, message.action) == (authorization_pb2.WORKLOAD_SELECTOR, authorization_pb2.DENY)
    assert [[len(clause.matches) for clause in rule.clauses] for rule in message.rules] == [[2, 0], []]
    first = message.rules[0].clauses[0].matches[0]
    assert [m.WhichOneof("match_type") for m in first.namespaces] == ["exact", "prefix"]
    assert first.not_namespaces[0].suffix == "c"
    assert first.principals[0].WhichOneof("match_type") == "presence"
    assert [(a.address, a.length) for a in first.source_ips] == [(b"\x0a\0\0\0", 8), (b"\x0a\x01\x02\x03", 32)]
    assert [a.length for a in (*first.not_source_ips, *first.destination_ips, *first.not_destination_ips)] == [32, 0, 128]
    assert (list(first.destination_ports), list(first.not_destination_ports)) == ([80, 443], [22])
    assert [(a.namespace, a.service_account) for a in (*first.service_accounts, *first.not_service_accounts)] == [
        ("ns", "sa"),
        ("ns", "no"),
    ]


def test_a_version_is_of_the_content_alone() -> None:
    services = {key: dict(reversed(ports.items())) for key, ports in reversed(RICH.services.items())}
    turned = msgspec.structs.replace(RICH, services=services)
    assert list(turned.services) != list(RICH.services)
    assert encode_workload(turned).entry == encode_workload(RICH).entry
    assert encode_workload(msgspec.structs.replace(RICH, healthy=True)).version != encode_workload(RICH).version
    # By another process, another replica, another day.
    assert encode_workload(PLAIN).version == "12bafb5cb9999470"


def test_a_response_is_entries_joined() -> None:
    encoded = [encode_workload(PLAIN), encode_service(SERVICE)]
    response = discovery_pb2.DeltaDiscoveryResponse.FromString(encode_response(ADDRESS, "7", encoded, ["x", "y"]))
    assert (response.type_url, response.nonce, list(response.removed_resources)) == (ADDRESS, "7", ["x", "y"])
    assert [(r.name, r.version) for r in response.resources] == [(e.name, e.version) for e in encoded]


@pytest.mark.parametrize(
    "broken",
    [
        msgspec.structs.replace(PLAIN, addresses=("10.0.0",)),
        msgspec.structs.replace(PLAIN, waypoint=Gateway("10.0.0.1")),
        msgspec.structs.replace(PLAIN, waypoint=Gateway("host", is_hostname=True)),
        msgspec.structs.replace(PLAIN, services={"ns/s": {80: -1}}),
        msgspec.structs.replace(PLAIN, capacity=1 << 32),
    ],
)
def test_a_workload_that_is_none_is_refused(broken: Workload) -> None:
    with pytest.raises(StateError, match=r"workload Kubernetes//Pod/ns/a can't be sent"):
        encode_workload(broken)
    with pytest.raises(StateError, match=r"pod ns/a can't be told its node"):
        encode_node_pod(NodePod(namespace="ns", name="a", pod_uid="u", membership=Membership.POD_LABEL, workload=broken))


def test_a_service_or_policy_that_is_none_is_refused() -> None:
    with pytest.raises(StateError, match=r"service ns/s.ns.svc can't be sent"):
        encode_service(msgspec.structs.replace(SERVICE, vips=("10.0.0.1",)))
    for match in (Match(source_ips=("10.0.0.0/99",)), Match(principals=(StringMatch(),))):
        policy = Policy(name="p", namespace="ns", scope=PolicyScope.GLOBAL, action=Action.DENY, rules=(((match,),),))
        with pytest.raises(StateError, match="policy ns/p can't be sent"):
            encode_policy(policy)
