from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from nodeproxy.model.delta import Everything
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
from nodeproxy.translate.mesh_writer import mesh_tree, mesh_yaml
from tests.mesh_files import load_mesh

pytestmark = pytest.mark.unit

HOST = "shop/web.shop.svc.cluster.local"
NEAR = Gateway(destination="n1/10.0.0.9", hbone_port=15009)
FAR = Gateway(destination="infra/wp.infra.svc.cluster.local", is_hostname=True)

FULL = Workload(
    uid="c1//Pod/shop/web-1",
    name="web-1",
    namespace="shop",
    addresses=("10.0.0.1", "fd00::1"),
    network="n1",
    protocol=Protocol.HBONE,
    trust_domain="td",
    service_account="123",
    node="yes",
    cluster="c1",
    hostname="web.example.com",
    canonical_name="web",
    canonical_revision="1.0",
    workload_type="deployment",
    workload_name="web",
    waypoint=NEAR,
    network_gateway=FAR,
    application_tunnel=ApplicationTunnel(15088, True),
    native_tunnel=True,
    host_network=True,
    healthy=False,
    capacity=7,
    locality=Locality("r", "z", "s"),
    services={HOST: {80: 8080, 81: 0}, "shop/*.example.com": {}},
    policies=("shop/p",),
)
PLAIN = Workload(uid="a", name="a", namespace="shop", addresses=("10.0.0.2",), application_tunnel=ApplicationTunnel())
NAMED = Workload(uid="b", name="b", namespace="shop", hostname="b.example.com")
SERVICES = (
    Service(
        name="web",
        namespace="shop",
        hostname="web.shop.svc.cluster.local",
        vips=("n1/10.96.0.1", "/fd00::96"),
        ports={80: 8080, 81: 0},
        subject_alt_names=("spiffe://td/ns/a/sa/b",),
        waypoint=FAR,
        weighted_waypoints=(WeightedGateway(FAR, 70), WeightedGateway(NEAR, 30)),
        load_balancer=LoadBalancer(tuple(Scope), Balancing.FAILOVER, True),
        canonical=True,
        namespace_only=True,
    ),
    Service(name="ext", namespace="shop", hostname="*.example.com"),
    *(
        Service(name="x", namespace="shop", hostname=mode.name, load_balancer=LoadBalancer(mode=mode))
        for mode in (Balancing.STRICT, Balancing.PASSTHROUGH)
    ),
)
TEXTS = (StringMatch(exact="1"), StringMatch(prefix="a"), StringMatch(suffix="b"), StringMatch(presence=True))
MATCH = Match(
    namespaces=TEXTS,
    not_namespaces=TEXTS,
    principals=TEXTS,
    not_principals=TEXTS,
    source_ips=("10.0.0.0/8",),
    not_source_ips=("fd00::/8",),
    destination_ips=("10.0.0.1/32",),
    not_destination_ips=("10.0.0.2/32",),
    destination_ports=(80,),
    not_destination_ports=(81,),
    service_accounts=(ServiceAccountMatch("shop", "a"),),
    not_service_accounts=(ServiceAccountMatch("shop", "b"),),
)
POLICIES = (
    Policy(name="p", namespace="shop", scope=PolicyScope.WORKLOAD_SELECTOR, action=Action.DENY, rules=(((MATCH,), ()), ())),
    Policy(name="q", namespace="", scope=PolicyScope.GLOBAL, action=Action.ALLOW, dry_run=True),
    Policy(name="r", namespace="shop", scope=PolicyScope.NAMESPACE, action=Action.ALLOW, rules=((),)),
)
MESH = Everything((FULL, PLAIN, NAMED), SERVICES, POLICIES)


def _sorted(everything: Everything) -> Everything:
    return Everything(
        tuple(sorted(everything.workloads, key=lambda item: item.uid)),
        tuple(sorted(everything.services, key=lambda item: item.key)),
        tuple(sorted(everything.policies, key=lambda item: item.key)),
    )


@pytest.mark.parametrize("text", [mesh_yaml(mesh_tree(MESH)), json.dumps(mesh_tree(MESH))], ids=["yaml", "json"])
def test_what_was_written_reads_the_same(tmp_path: Path, text: str):
    file = tmp_path / "mesh.yaml"
    file.write_text(text)
    assert load_mesh(file).everything == _sorted(MESH)


def test_every_field_is_tried():
    for value in (FULL, SERVICES[0], MATCH):
        defaults = msgspec.to_builtins(
            type(value)(**{name: "" for name in ("uid", "name", "namespace", "hostname") if hasattr(value, name)})
        )
        for name, found in msgspec.to_builtins(value).items():
            assert found != defaults.get(name), name


def test_defaults_are_left_out():
    assert mesh_tree(Everything((Workload(uid="a", name="a", namespace="n", addresses=("10.0.0.2",)),)))["workloads"] == [
        {"uid": "a", "name": "a", "namespace": "n", "workloadIps": ["10.0.0.2"]}
    ]
