from __future__ import annotations

from typing import Any

import pytest

from nodeproxy.errors import ResourceError
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
from nodeproxy.policy.authorize import authorize
from nodeproxy.policy.match import Subject
from nodeproxy.proto import authorization_pb2, node_pb2, workload_pb2
from nodeproxy.xds.decode import decode_address, decode_mesh_namespace, decode_node_pod, decode_policy, stand_in

V4, V6 = bytes([10, 0, 0, 1]), bytes.fromhex("fd00000000000000000000000000000a")
SUBJECT = Subject("spiffe://cluster.local/ns/a/sa/b", "10.0.0.1", "10.0.0.2", 80)


def workload(**fields: Any) -> bytes:
    given = {"uid": "u", "name": "n", "namespace": "ns", **fields}
    return workload_pb2.Address(workload=workload_pb2.Workload(**given)).SerializeToString()


def service(**fields: Any) -> bytes:
    given = {"name": "s", "namespace": "ns", "hostname": "s.ns.svc", **fields}
    return workload_pb2.Address(service=workload_pb2.Service(**given)).SerializeToString()


def policy(**fields: Any) -> bytes:
    return authorization_pb2.Authorization(**{"name": "p", "namespace": "ns", **fields}).SerializeToString()


def one_match(**fields: Any) -> bytes:
    return policy(rules=[{"clauses": [{"matches": [fields]}]}])


def test_a_workload_of_nothing_but_names_means_what_istio_means() -> None:
    assert decode_address(workload()) == Workload(uid="u", name="n", namespace="ns", workload_type="deployment")


def test_every_field_of_a_workload() -> None:
    raw = workload(
        addresses=[V4, V6, bytes(10) + b"\xff\xff" + V4],
        network="net",
        tunnel_protocol="HBONE",
        trust_domain="td",
        service_account="sa",
        waypoint={"address": {"network": "net", "address": V4}, "hbone_mtls_port": 15008},
        network_gateway={"hostname": {"namespace": "gw", "hostname": "gw.example"}},
        node="node",
        canonical_name="cn",
        canonical_revision="cr",
        workload_type="POD",
        workload_name="wn",
        native_tunnel=True,
        authorization_policies=["ns/p"],
        status="UNHEALTHY",
        cluster_id="c2",
        hostname="h.example",
        services={"ns/s.ns.svc": {"ports": [{"service_port": 80, "target_port": 8080}, {"service_port": 0, "target_port": 1}]}},
        application_tunnel={"protocol": "PROXY", "port": 15088},
        locality={"region": "r", "zone": "z", "subzone": "s"},
        network_mode="HOST_NETWORK",
        capacity={"value": 0},
        extensions=[{"name": "anything"}],
    )
    assert decode_address(raw) == Workload(
        uid="u",
        name="n",
        namespace="ns",
        addresses=("10.0.0.1", "fd00::a", "10.0.0.1"),
        network="net",
        protocol=Protocol.HBONE,
        trust_domain="td",
        service_account="sa",
        waypoint=Gateway("net/10.0.0.1"),
        network_gateway=Gateway("gw/gw.example", is_hostname=True),
        node="node",
        canonical_name="cn",
        canonical_revision="cr",
        workload_type="pod",
        workload_name="wn",
        native_tunnel=True,
        policies=("ns/p",),
        healthy=False,
        cluster="c2",
        hostname="h.example",
        services={"ns/s.ns.svc": {80: 8080}},
        application_tunnel=ApplicationTunnel(15088, proxy=True),
        locality=Locality("r", "z", "s"),
        host_network=True,
        capacity=0,
    )


def test_every_field_of_a_service() -> None:
    gateway = {"address": {"network": "", "address": V4}, "hbone_mtls_port": 15008}
    raw = service(
        addresses=[{"network": "net", "address": V4}, {"address": V6, "length": 128}, {"address": V4, "length": 8}],
        ports=[{"service_port": 80, "target_port": 0}],
        subject_alt_names=["spiffe://td/ns/a/sa/b"],
        waypoint=gateway,
        weighted_waypoints=[{"destination": gateway, "weight": 3}],
        load_balancing={"routing_preference": ["NETWORK", "REGION"], "mode": "FAILOVER", "health_policy": "ALLOW_ALL"},
        ip_families="DUAL",
        canonical=True,
        visibility="NAMESPACE",
    )
    assert decode_address(raw) == Service(
        name="s",
        namespace="ns",
        hostname="s.ns.svc",
        vips=("net/10.0.0.1", "/fd00::a"),
        ports={80: 0},
        subject_alt_names=("spiffe://td/ns/a/sa/b",),
        waypoint=Gateway("/10.0.0.1"),
        weighted_waypoints=(WeightedGateway(Gateway("/10.0.0.1"), 3),),
        load_balancer=LoadBalancer((Scope.NETWORK, Scope.REGION), Balancing.FAILOVER, allow_unhealthy=True),
        canonical=True,
        namespace_only=True,
    )


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "unknown_value"),
        (b"\xff\xff", "malformed"),
        (workload(uid=""), "name"),
        (workload(uid="u" * 481), "name"),
        (workload(addresses=[b"\1\2\3"]), "address"),
        (workload(tunnel_protocol=2), "unknown_value"),
        (workload(tunnel_protocol=9), "unknown_value"),
        (workload(status=9), "unknown_value"),
        (workload(workload_type=9), "unknown_value"),
        (workload(network_mode=9), "unknown_value"),
        (workload(namespace="a/sa/b"), "name"),
        (workload(service_account="a/b"), "name"),
        (workload(trust_domain="a/b"), "name"),
        (workload(waypoint={}), "unknown_value"),
        (workload(waypoint={"address": {"address": b""}}), "address"),
        (workload(waypoint={"address": {"address": V4}, "hbone_mtls_port": 65536}), "port"),
        (workload(application_tunnel={"protocol": 7}), "unknown_value"),
        (workload(services={"": {}}), "name"),
        (workload(services={"ns/s": {"ports": [{"service_port": 70000}]}}), "port"),
        (workload(authorization_policies=[""]), "name"),
        (service(hostname=""), "name"),
        (service(hostname="a/b"), "name"),
        (service(visibility=5), "unknown_value"),
        (service(load_balancing={"mode": 8}), "unknown_value"),
        (service(load_balancing={"routing_preference": [0]}), "unknown_value"),
        (service(load_balancing={"health_policy": 8}), "unknown_value"),
        (service(addresses=[{"address": b"\1"}]), "address"),
    ],
)
def test_what_is_not_understood_of_an_address_is_an_error(raw: bytes, reason: str) -> None:
    with pytest.raises(ResourceError) as error:
        decode_address(raw)
    assert error.value.reason == reason


def test_every_field_of_a_policy() -> None:
    text = [{"exact": "e"}, {"prefix": "p"}, {"suffix": "s"}, {"presence": {}}]
    strings = (StringMatch(exact="e"), StringMatch(prefix="p"), StringMatch(suffix="s"), StringMatch(presence=True))
    block, accounts = [{"address": V4, "length": 8}], [{"namespace": "n", "service_account": "s"}]
    mapped = [{"address": bytes(10) + b"\xff\xff" + V4, "length": 120}, {"address": V6, "length": 64}]
    match = {
        "namespaces": text,
        "not_namespaces": text,
        "principals": text,
        "not_principals": text,
        "source_ips": block,
        "not_source_ips": mapped,
        "destination_ips": block,
        "not_destination_ips": block,
        "destination_ports": [80],
        "not_destination_ports": [81],
        "service_accounts": accounts,
        "not_service_accounts": accounts,
    }
    rules = [{"clauses": [{"matches": [match, {}]}, {}]}, {}]
    raw = policy(scope="WORKLOAD_SELECTOR", action="DENY", dry_run=True, rules=rules)
    account = (ServiceAccountMatch("n", "s"),)
    expected = Match(
        namespaces=strings,
        not_namespaces=strings,
        principals=strings,
        not_principals=strings,
        source_ips=("10.0.0.1/8",),
        not_source_ips=("10.0.0.1/24", "fd00::a/64"),
        destination_ips=("10.0.0.1/8",),
        not_destination_ips=("10.0.0.1/8",),
        destination_ports=(80,),
        not_destination_ports=(81,),
        service_accounts=account,
        not_service_accounts=account,
    )
    assert decode_policy(raw) == Policy(
        name="p",
        namespace="ns",
        scope=PolicyScope.WORKLOAD_SELECTOR,
        action=Action.DENY,
        dry_run=True,
        rules=(((expected, Match()), ()), ()),
    )


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"\xff", "malformed"),
        (policy(name=""), "name"),
        (policy(name="a/b"), "name"),
        (policy(scope=3), "unknown_value"),
        (policy(action=2), "unknown_value"),
        (policy(extensions=[{"name": "x"}]), "extension"),
        (one_match(extensions=[{"name": "x"}]), "extension"),
        (one_match(principals=[{}]), "unknown_value"),
        (one_match(source_ips=[{"address": b"\1", "length": 1}]), "address"),
        (one_match(source_ips=[{"address": V4, "length": 33}]), "address"),
        (one_match(destination_ports=[65536]), "port"),
        (policy() + b"\x42\x01x", "unknown_field"),
        (policy(rules=[authorization_pb2.Rule.FromString(b"\x12\x01x")]), "unknown_field"),
        (policy(rules=[{"clauses": [{"matches": [authorization_pb2.Match.FromString(b"\x7a\x01x")]}]}]), "unknown_field"),
    ],
)
def test_what_is_not_understood_of_a_policy_is_an_error(raw: bytes, reason: str) -> None:
    with pytest.raises(ResourceError) as error:
        decode_policy(raw)
    assert error.value.reason == reason


ERROR = ResourceError("extension", "has an extension")


def test_in_place_of_a_deny_everything_is_denied() -> None:
    made = stand_in("ns/p", policy(action="DENY", scope="WORKLOAD_SELECTOR", extensions=[{"name": "x"}]), ERROR, is_root=False)
    assert (made.key, made.scope, made.stands_in) == ("ns/p", PolicyScope.WORKLOAD_SELECTOR, "has an extension")
    verdict = authorize((made,), SUBJECT)
    assert not verdict.allowed
    assert verdict.refusal is not None
    assert verdict.refusal.resource == "ns/p"
    assert "has an extension" in verdict.refusal.detail


def test_in_place_of_an_allow_nothing_is_allowed_and_others_still_allow() -> None:
    made = stand_in("ns/p", policy(action="ALLOW", scope="NAMESPACE", extensions=[{"name": "x"}]), ERROR, is_root=False)
    other = Policy(name="o", namespace="ns", scope=PolicyScope.NAMESPACE, action=Action.ALLOW, rules=((),))
    assert not authorize((made,), SUBJECT).allowed
    assert authorize((made, other), SUBJECT).allowed


def test_in_place_of_dry_run_nothing_is_decided() -> None:
    made = stand_in("ns/p", policy(action="DENY", dry_run=True, extensions=[{"name": "x"}]), ERROR, is_root=False)
    assert authorize((made,), SUBJECT).allowed


@pytest.mark.parametrize(("is_root", "scope"), [(False, PolicyScope.NAMESPACE), (True, PolicyScope.GLOBAL)])
@pytest.mark.parametrize("raw", [b"\xff", policy(scope=3, action="DENY"), policy(scope=3, action=7)])
def test_in_place_of_one_whose_scope_is_unreadable(raw: bytes, is_root: bool, scope: PolicyScope) -> None:
    made = stand_in("ns/p", raw, ERROR, is_root=is_root)
    assert made.scope is scope
    assert not authorize((made,), SUBJECT).allowed


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"namespace": ""}, "name"),
        ({"name": "a/b"}, "name"),
        ({"pod_uid": ""}, "name"),
        ({"membership": 99}, "unknown_value"),
        ({"membership": 1}, "unknown_value"),  # in the mesh, as nobody says what
        ({"workload": {"uid": "u", "namespace": "ns"}}, "unknown_value"),
        ({"membership": 1, "workload": {"namespace": "ns"}}, "name"),
    ],
)
def test_what_is_not_understood_of_a_nodes_pod_is_an_error(fields: dict[str, Any], reason: str) -> None:
    given = {"namespace": "ns", "name": "a", "pod_uid": "u", **fields}
    with pytest.raises(ResourceError) as caught:
        decode_node_pod(node_pb2.NodePod(**given).SerializeToString())
    assert caught.value.reason == reason


@pytest.mark.parametrize("raw", [b"", b"\xff", node_pb2.MeshNamespace(name="a/b").SerializeToString()])
def test_what_is_not_understood_of_a_namespace_is_an_error(raw: bytes) -> None:
    with pytest.raises(ResourceError):
        decode_mesh_namespace(raw)
