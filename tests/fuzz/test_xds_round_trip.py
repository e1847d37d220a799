"""What the controller encodes, a node decodes to the same: whatever it is."""

from __future__ import annotations

import random

import pytest

from nodeproxy.model.node_pod import Membership, MeshNamespace, NodePod
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
from nodeproxy.proto import discovery_pb2 as discovery
from nodeproxy.xds.decode import decode_address, decode_mesh_namespace, decode_node_pod, decode_policy
from nodeproxy.xds.encode import (
    Encoded,
    encode_mesh_namespace,
    encode_node_pod,
    encode_policy,
    encode_service,
    encode_workload,
)

IPS = ("10.0.0.1", "192.0.2.255", "fd00::1", "2001:db8::ffff")
BLOCKS = ("10.0.0.0/8", "10.1.2.3/32", "0.0.0.0/0", "2001:db8::/32", "::/0", "fd00::1/128")
NAMES = ("a", "b-1", "x.y")


class Chance:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.choice = self.random.choice

    def yes(self) -> bool:
        return self.random.random() < 0.5

    def some(self, values: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(self.random.sample(values, self.random.randrange(len(values) + 1)))

    def port(self) -> int:
        return self.random.randrange(1, 65536)

    def ports(self) -> dict[int, int]:
        return {self.port(): self.choice((0, self.port())) for _ in range(self.random.randrange(3))}

    def gateway(self) -> Gateway:
        if self.yes():
            return Gateway(f"{self.choice(NAMES)}/{self.choice(NAMES)}.svc", self.port(), is_hostname=True)
        return Gateway(f"{self.choice(('', 'net'))}/{self.choice(IPS)}", self.port())

    def workload(self) -> Workload:
        chance = self.random
        return Workload(
            uid=f"c//Pod/{chance.randrange(10)}/a",
            name=self.choice(NAMES),
            namespace=self.choice(NAMES),
            addresses=self.some(IPS),
            network=self.choice(("", "net")),
            protocol=self.choice(tuple(Protocol)),
            trust_domain=self.choice(("cluster.local", "td")),
            service_account=self.choice(("default", "sa")),
            node=self.choice(("", "n")),
            cluster=self.choice(("Kubernetes", "c2")),
            hostname=self.choice(("", "h.example")),
            canonical_name=self.choice(("", "cn")),
            canonical_revision=self.choice(("", "v1")),
            workload_type=self.choice(("deployment", "cronjob", "pod", "job")),
            workload_name=self.choice(("", "wn")),
            waypoint=self.gateway() if self.yes() else None,
            network_gateway=self.gateway() if self.yes() else None,
            application_tunnel=ApplicationTunnel(self.port(), self.yes()) if self.yes() else None,
            native_tunnel=self.yes(),
            host_network=self.yes(),
            healthy=self.yes(),
            capacity=self.choice((0, 1, 7, (1 << 32) - 1)),
            locality=self.choice((Locality(), Locality("r"), Locality("r", "z", "s"))),
            services={f"ns/{name}.svc": self.ports() for name in self.some(NAMES)},
            policies=tuple(f"ns/{name}" for name in self.some(NAMES)),
        )

    def service(self) -> Service:
        return Service(
            name=self.choice(NAMES),
            namespace=self.choice(NAMES),
            hostname=f"{self.choice(NAMES)}.svc",
            vips=tuple(f"{self.choice(('', 'net'))}/{ip}" for ip in self.some(IPS)),
            ports=self.ports(),
            subject_alt_names=tuple(f"spiffe://td/ns/{name}/sa/x" for name in self.some(("a", "b"))),
            waypoint=self.gateway() if self.yes() else None,
            weighted_waypoints=tuple(
                WeightedGateway(self.gateway(), self.random.randrange(100)) for _ in range(self.random.randrange(3))
            ),
            load_balancer=LoadBalancer(
                tuple(self.random.sample(tuple(Scope), 2)) if self.yes() else (), self.choice(tuple(Balancing)), self.yes()
            ),
            canonical=self.yes(),
            namespace_only=self.yes(),
        )

    def node_pod(self) -> NodePod:
        membership = self.choice(tuple(Membership))
        workload = self.workload() if membership.in_mesh else None
        ports = self.choice((None, (), (8080,), (1, 80, 65535)))
        return NodePod(
            namespace="ns", name=self.choice(NAMES), pod_uid="u-1", membership=membership, workload=workload, probe_ports=ports
        )

    def strings(self) -> tuple[StringMatch, ...]:
        kinds = (StringMatch(exact="e"), StringMatch(prefix="p"), StringMatch(suffix="s"), StringMatch(presence=True))
        return tuple(self.random.sample(kinds, self.random.randrange(3)))

    def match(self) -> Match:
        accounts = tuple(ServiceAccountMatch("ns", name) for name in self.some(("a", "b")))
        return Match(
            namespaces=self.strings(),
            not_namespaces=self.strings(),
            principals=self.strings(),
            not_principals=self.strings(),
            source_ips=self.some(BLOCKS),
            not_source_ips=self.some(BLOCKS),
            destination_ips=self.some(BLOCKS),
            not_destination_ips=self.some(BLOCKS),
            destination_ports=tuple(self.ports()),
            not_destination_ports=tuple(self.ports()),
            service_accounts=accounts,
            not_service_accounts=accounts[:1],
        )

    def policy(self) -> Policy:
        rules = tuple(
            tuple(tuple(self.match() for _ in range(self.random.randrange(3))) for _ in range(self.random.randrange(3)))
            for _ in range(self.random.randrange(3))
        )
        return Policy(
            name=self.choice(("p", "q")),
            namespace=self.choice(("a", "b")),
            scope=self.choice(tuple(PolicyScope)),
            action=self.choice(tuple(Action)),
            rules=rules,
            dry_run=self.yes(),
        )


def body(encoded: Encoded) -> bytes:
    (resource,) = discovery.DeltaDiscoveryResponse.FromString(encoded.entry).resources
    return resource.resource.value


@pytest.mark.parametrize("seed", range(20))
def test_what_is_encoded_is_decoded_to_the_same(seed: int) -> None:
    chance = Chance(seed)
    for _ in range(50):
        workload, service, policy = chance.workload(), chance.service(), chance.policy()
        node_pod, namespace = chance.node_pod(), MeshNamespace(name=chance.choice(NAMES), labelled=chance.yes())
        assert decode_address(body(encode_workload(workload))) == workload
        assert decode_address(body(encode_service(service))) == service
        assert decode_policy(body(encode_policy(policy))) == policy
        assert decode_node_pod(body(encode_node_pod(node_pod))) == node_pod
        assert decode_mesh_namespace(body(encode_mesh_namespace(namespace))) == namespace
