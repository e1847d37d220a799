"""Each entry of a mesh file, each field."""

from __future__ import annotations

import pytest

from nodeproxy.agent.sources import mesh_schema
from nodeproxy.agent.sources.yaml_nodes import Node
from nodeproxy.errors import ConfigError
from nodeproxy.model.delta import PodSpec
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
from tests.mesh_files import read_yaml

FULL_WORKLOAD = """
uid: cluster1//v1/Pod/ns/web-1
name: web-1
namespace: ns
workloadIps: [10.0.0.1, "FD00::1", "::ffff:10.0.0.2"]
protocol: HBONE
networkMode: HostNetwork
node: n1
network: net1
trustDomain: td
serviceAccount: sa
workloadName: web
workloadType: deployment
canonicalName: web
canonicalRevision: v1
hostname: web.example.com
clusterId: c1
locality: {region: r, zone: z, subzone: s}
waypoint: {destination: net1/10.0.0.9, hboneMtlsPort: 15008}
networkGateway: {destination: ns/gw.svc, hboneMtlsPort: 15009}
nativeTunnel: true
applicationTunnel: {protocol: PROXY, port: 15088}
authorizationPolicies: [ns/p]
status: Unhealthy
services: {ns/web.svc: {80: 8080, "443": 8443}}
capacity: 4
"""
FULL_SERVICE = """
name: web
namespace: ns
hostname: web.svc
vips: [/10.96.0.1, "net1/FD00:96::1"]
ports: {80: 8080, 443: 0}
subjectAltNames: [spiffe://cluster.local/ns/vm/sa/vm]
waypoint: {destination: ns/wp.svc, hboneMtlsPort: 15008}
weightedWaypoints:
  - {destination: ns/wp.svc, weight: 3}
  - {destination: {destination: /10.0.0.9, hboneMtlsPort: 15009}}
loadBalancer: {routingPreferences: [Region, Zone], mode: Failover, healthPolicy: AllowAll}
ipFamilies: Dual
canonical: true
visibility: Namespace
"""
FULL_POLICY = """
name: p
namespace: ns
scope: WorkloadSelector
action: Deny
dryRun: true
rules:
- - - namespaces: [{exact: a}]
      notNamespaces: [{prefix: b}]
      principals: [{Exact: a}, !Prefix b, {suffix: c}]
      notPrincipals: [{presence: {}}, {Presence: }, !Presence , Presence, {presence: true}]
      serviceAccounts: [{namespace: ns, serviceAccount: web}]
      notServiceAccounts: [{namespace: ns, serviceAccount: db}]
      sourceIps: [10.0.0.0/8]
      notSourceIps: [10.1.0.0/16]
      destinationIps: [10.0.0.1]
      notDestinationIps: ["fd00::/8"]
      destinationPorts: [80]
      notDestinationPorts: [81]
    - {}
  - []
- []
"""


def node(text: str) -> Node:
    return read_yaml("f", text.encode())


def test_a_workload_with_everything() -> None:
    assert mesh_schema.workload(node(FULL_WORKLOAD)) == Workload(
        uid="cluster1//v1/Pod/ns/web-1",
        name="web-1",
        namespace="ns",
        addresses=("10.0.0.1", "fd00::1", "10.0.0.2"),
        protocol=Protocol.HBONE,
        host_network=True,
        node="n1",
        network="net1",
        trust_domain="td",
        service_account="sa",
        workload_name="web",
        workload_type="deployment",
        canonical_name="web",
        canonical_revision="v1",
        hostname="web.example.com",
        cluster="c1",
        locality=Locality("r", "z", "s"),
        waypoint=Gateway("net1/10.0.0.9"),
        network_gateway=Gateway("ns/gw.svc", 15009, is_hostname=True),
        native_tunnel=True,
        application_tunnel=ApplicationTunnel(15088, proxy=True),
        policies=("ns/p",),
        healthy=False,
        services={"ns/web.svc": {80: 8080, 443: 8443}},
        capacity=4,
    )


def test_a_workload_with_the_least() -> None:
    found = mesh_schema.workload(node("{name: web, namespace: ns, workloadIps: [10.0.0.1]}"))
    assert found == Workload(uid="Kubernetes//Pod/ns/web", name="web", namespace="ns", addresses=("10.0.0.1",))
    assert found.identity == "spiffe://cluster.local/ns/ns/sa/default"
    assert mesh_schema.workload(node("{uid: u, namespace: ns, hostname: h}")).addresses == ()


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{name: a, workloadIps: []}", "1:1: a workload needs the key 'namespace'; add it"),
        ("{namespace: ns, workloadIps: []}", "1:1: a workload needs the key 'uid', or 'name'"),
        ("{name: a, namespace: ns}", "1:1: a workload needs the key 'workloadIps'"),
        ("{name: a, namespace: ns, workloadIp: 10.0.0.1}", "1:26: a workload has no key 'workloadIp'; did you mean workloadIps?"),
        ("{name: a, namespace: ns, workloadIps: 10.0.0.1}", "1:39: workloadIps must be a list, not text (10.0.0.1)"),
        ("{name: a, namespace: ns, workloadIps: [10.0.0.1/32]}", "1:40: an address must be an IP address, not '10.0.0.1/32'"),
        ("{uid: a, namespace: ns, workloadIps: [], protocol: UDP}", "1:52: protocol must be one of TCP, HBONE, not 'UDP'"),
        ("{uid: a, namespace: ns, workloadIps: [], status: Sick}", "1:50: status must be one of Healthy, Unhealthy, not 'Sick'"),
        ("{uid: a, namespace: ns, workloadIps: [], capacity: -1}", "1:52: capacity must be a number from 0 to 4294967295"),
        ("{uid: a, namespace: ns, workloadIps: [], services: {web: {}}}", "1:53: 'web' must be namespace/hostname"),
        ("{uid: a, namespace: ns, workloadIps: [], services: {a/b: {80: x}}}", "1:63: services[a/b][80] must be a number"),
        ("{uid: a, namespace: ns, workloadIps: [], services: {a/b: {0: 1}}}", "1:59: a key of services[a/b] must be a number"),
        ("{uid: a, namespace: ns, workloadIps: [], authorizationPolicies: [p]}", "1:66: 'p' must be namespace/name"),
        ("{uid: a, namespace: ns, workloadIps: [], waypoint: {}}", "1:52: waypoint needs the key 'destination'"),
        ("{uid: a, namespace: ns, workloadIps: [], waypoint: {destination: wp}}", "1:66: destination must be network/address or"),
        ("{uid: a, namespace: ns, workloadIps: [], nativeTunnel: maybe}", "1:56: nativeTunnel must be true or false"),
    ],
)
def test_what_is_wrong_with_a_workload(text: str, error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        mesh_schema.workload(Node("f", read_yaml("f", text.encode())._tree, "a workload"))
    assert str(caught.value).startswith("f:" + error)


def test_a_service_with_everything() -> None:
    waypoint = Gateway("ns/wp.svc", is_hostname=True)
    assert mesh_schema.service(node(FULL_SERVICE)) == Service(
        name="web",
        namespace="ns",
        hostname="web.svc",
        vips=("/10.96.0.1", "net1/fd00:96::1"),
        ports={80: 8080, 443: 0},
        subject_alt_names=("spiffe://cluster.local/ns/vm/sa/vm",),
        waypoint=waypoint,
        weighted_waypoints=(WeightedGateway(waypoint, 3), WeightedGateway(Gateway("/10.0.0.9", 15009))),
        load_balancer=LoadBalancer((Scope.REGION, Scope.ZONE), Balancing.FAILOVER, allow_unhealthy=True),
        canonical=True,
        namespace_only=True,
    )


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ("vips: [10.96.0.1]", "a virtual address must be network/address, not '10.96.0.1'; in the default"),
        ("vips: [/web]", "a virtual address must be network/address, not '/web'"),
        ("ports: {80: 70000}", "ports[80] must be a number from 0 to 65535, not '70000'"),
        ("subjectAltNames: [web]", "a subject alt name must be a SPIFFE ID, not 'web'"),
        ("loadBalancer: {mode: Random}", "mode must be one of Standard, UNSPECIFIED_MODE, Strict,"),
        ("loadBalancer: {routingPreferences: [Planet]}", "a routing preference must be one of Region, Zone,"),
        ("ipFamilies: IPv5", "ipFamilies must be one of IPv4, IPv6, Dual, not 'IPv5'"),
        ("weightedWaypoints: [{weight: 1}]", "a weighted waypoint needs the key 'destination'"),
    ],
)
def test_what_is_wrong_with_a_service(more: str, error: str) -> None:
    ports = "" if more.startswith("ports") else "ports: {}\n"
    with pytest.raises(ConfigError) as caught:
        mesh_schema.service(node(f"name: a\nnamespace: b\nhostname: c\n{ports}{more}"))
    assert str(caught.value).partition(": ")[2].startswith(error)


def test_a_policy_with_everything() -> None:
    presence = StringMatch(presence=True)
    assert mesh_schema.policy(node(FULL_POLICY)) == Policy(
        name="p",
        namespace="ns",
        scope=PolicyScope.WORKLOAD_SELECTOR,
        action=Action.DENY,
        dry_run=True,
        rules=(
            (
                (
                    Match(
                        namespaces=(StringMatch(exact="a"),),
                        not_namespaces=(StringMatch(prefix="b"),),
                        principals=(StringMatch(exact="a"), StringMatch(prefix="b"), StringMatch(suffix="c")),
                        not_principals=(presence,) * 5,
                        service_accounts=(ServiceAccountMatch("ns", "web"),),
                        not_service_accounts=(ServiceAccountMatch("ns", "db"),),
                        source_ips=("10.0.0.0/8",),
                        not_source_ips=("10.1.0.0/16",),
                        destination_ips=("10.0.0.1",),
                        not_destination_ips=("fd00::/8",),
                        destination_ports=(80,),
                        not_destination_ports=(81,),
                    ),
                    Match(),
                ),
                (),
            ),
            (),
        ),
    )


@pytest.mark.parametrize(
    ("scope", "expected"), [("Global", PolicyScope.GLOBAL), ("NAMESPACE", PolicyScope.NAMESPACE), ("GLOBAL", PolicyScope.GLOBAL)]
)
def test_scopes_and_empty_rules(scope: str, expected: PolicyScope) -> None:
    found = mesh_schema.policy(node(f"{{name: p, namespace: '', scope: {scope}, action: ALLOW, rules: []}}"))
    assert (found.scope, found.action, found.rules, found.key) == (expected, Action.ALLOW, (), "/p")


@pytest.mark.parametrize(
    ("match", "error"),
    [
        ("{sourceIps: [10.0.0.0/33]}", "'10.0.0.0/33' is not a CIDR block"),
        ("{destinationPorts: [65536]}", "an item of destinationPorts must be a number from 0 to 65535"),
        ("{principals: [web]}", "an item of principals must say how to compare; write {exact: TEXT}"),
        ("{principals: [{exact: a, prefix: b}]}", "an item of principals must have one key"),
        ("{principals: [{regex: a}]}", "an item of principals must have one key"),
        ("{principals: [{exact: 5}]}", "an item of principals[exact] must be text"),
        ("{principals: [{presence: false}]}", "presence can only be true"),
        ("{principals: [!Regex a]}", "an item of principals must say how to compare"),
        ("{serviceAccounts: [ns/web]}", "an item of serviceAccounts must be a map"),
        ("{serviceAccounts: [{namespace: ns}]}", "an item of serviceAccounts needs the key 'serviceAccount'"),
        ("{hosts: [a]}", "a match has no key 'hosts'"),
        ("{sourceIPs: [10.0.0.0/8]}", "a match has no key 'sourceIPs'; did you mean sourceIps?"),
        ("[]", "a match must be a map, not a list"),
    ],
)
def test_what_is_wrong_with_a_match(match: str, error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        mesh_schema.policy(node(f"{{name: p, namespace: ns, scope: Global, action: Allow, rules: [[[{match}]]]}}"))
    assert str(caught.value).partition(": ")[2].startswith(error)


@pytest.mark.parametrize("missing", ["name", "scope", "action", "rules"])
def test_a_policy_says_everything_that_decides(missing: str) -> None:
    keys = {"name": "p", "namespace": "ns", "scope": "Global", "action": "Allow", "rules": "[]"}
    del keys[missing]
    with pytest.raises(ConfigError, match=f"needs the key '{missing}'"):
        mesh_schema.policy(node("{" + ", ".join(f"{key}: {value}" for key, value in keys.items()) + "}"))


def test_pods() -> None:
    assert mesh_schema.pod(node("{uid: u, netns: /run/netns/a}")) == PodSpec("u", "/run/netns/a")
    with pytest.raises(ConfigError, match="f:1:17: netns must be an absolute path"):
        mesh_schema.pod(node("{uid: u, netns: a}"))
