"""The same agent against a real istiod: it takes ztunnel's place, by what istiod says and with its CA's certificates."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.apiserver import ApiServer
from tests.cluster.istiod import AUDIENCE, NAMESPACE, NODE_AGENT, Istiod
from tests.cluster.kinds import ambient, make, node, pod, service
from tests.mesh.attempts import Greeter
from tests.mesh.cluster import Agent, Cluster, MeshPod, exactly, wait_until
from tests.mesh.evidence import tunnelled

PORT = 7400
VIP, WAYPOINT = "10.96.0.50", "10.96.0.60"
START_S = 60.0


class IstioCluster(Cluster):
    """Pods exist for the API server and in a network namespace; istiod and API server are in a host on the network between."""

    def __init__(self, closing: contextlib.ExitStack, definitions: list[Path]) -> None:
        super().__init__()
        closing.callback(self.close)
        self.host = self.lab.external()
        self.api = ApiServer(self.host)
        closing.callback(self.api.close)
        self.api.start()
        self.api.install_definitions(*definitions)
        self.istiod = Istiod(self.api)
        closing.callback(self.istiod.close)
        self.istiod.start()
        roots = str(self.istiod.roots())
        self.api.create(ambient("shop"), make("ServiceAccount", "client", "shop"), make("ServiceAccount", "server", "shop"))
        for agent in self.agents:
            name = f"ztunnel-{agent.number}"
            own = pod(name, NAMESPACE, node=agent.name, ips=["10.0.0.1"], account=NODE_AGENT, annotations={})
            self.api.create(node(agent.name), own)
            token = self.directory / f"token{agent.number}"
            token.write_text(self.api.token(NAMESPACE, NODE_AGENT, audience=AUDIENCE, pod=name))
            agent.source = ["--xds-address", f"https://{self.istiod.address}", "--auth-token", str(token)]
            agent.source += ["--xds-root-ca", roots, "--ca-root-ca", roots, "--pod-name", name, "--pod-namespace", NAMESPACE]

    def add(self, number: int, name: str) -> MeshPod:
        made = self.pod(number, name)
        addresses = list(made.host.addresses)
        self.api.create(pod(name, "shop", node=f"node{number}", ips=addresses, account=name, labels={"app": name}))
        return made

    def enrol(self, each: MeshPod) -> None:
        done = self.agents[each.host.node].nodeproxy("enrol", each.uid, each.host.netns_path)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def mesh(definitions: list[Path]) -> Iterator[IstioCluster]:
    with contextlib.ExitStack() as closing:
        cluster = IstioCluster(closing, definitions)
        client, server = cluster.add(0, "client"), cluster.add(1, "server")
        closing.callback(Greeter(server.host, (PORT,)).close)
        cluster.api.create(service("server", "shop", {"app": "server"}, {80: PORT}, clusterIP=VIP))
        for agent in cluster.agents:
            agent.start(wait=False)
        for agent in cluster.agents:
            agent.wait_ready(START_S)
        for each in (client, server):
            cluster.enrol(each)
            known(cluster.agents[each.host.node], each)
        yield cluster


def known(agent: Agent, each: MeshPod) -> None:
    """Until istiod has told the agent of the pod, and its CA has made the certificate."""

    def told() -> bool:
        rows = {row["uid"]: row for row in agent.get("/status")["pods"]}
        return bool(rows[each.uid]["certificate_until"])

    wait_until(told, f"{each.uid} is known and has its certificate", START_S)


def test_identities_and_certificates_are_istiods(mesh: IstioCluster) -> None:
    client, server = mesh.pods["client"], mesh.pods["server"]
    with client.connect(server.ip, PORT) as sock:
        assert exactly(sock, 6) == b"server"
    tunnelled(mesh, client, server, PORT, 1)
    for agent in mesh.agents:
        connection = agent.get("/status")["state"]["connection"]
        assert connection["connected"]
        assert connection["rejected"] == []


def test_services_are_istiods(mesh: IstioCluster) -> None:
    client = mesh.pods["client"]

    def answers() -> bool:
        try:
            with client.connect(VIP, 80) as sock:
                return exactly(sock, 6) == b"server"
        except OSError:
            return False

    wait_until(answers, "the service leads to its pod", START_S)


def test_a_policy_is_enforced_on_live_connections_within_a_second(mesh: IstioCluster) -> None:
    client, server = mesh.pods["client"], mesh.pods["server"]
    spec = {"action": "DENY", "rules": [{"from": [{"source": {"principals": ["cluster.local/ns/shop/sa/client"]}}]}]}
    with client.connect(server.ip, PORT) as sock:
        assert exactly(sock, 6) == b"server"
        began = time.monotonic()
        mesh.api.create(make("AuthorizationPolicy", "no-client", "shop", spec=spec))
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""
        took_s = time.monotonic() - began
    mesh.api.delete("AuthorizationPolicy", "no-client", "shop")
    wait_until(lambda: not mesh.agents[1].get("/status")["state"]["policies"], "it is gone again")
    assert took_s < 1.0


def test_a_waypoints_address_is_istiods(mesh: IstioCluster) -> None:
    """The service's connections would go through it; it is no pod of this test, so they are only asked about."""
    listener = {"name": "mesh", "port": 15008, "protocol": "HBONE", "allowedRoutes": {"namespaces": {"from": "Same"}}}
    gateway = make("Gateway", "wp", "shop", spec={"gatewayClassName": "istio-waypoint", "listeners": [listener]})
    gateway["status"] = {"addresses": [{"type": "IPAddress", "value": WAYPOINT}]}
    mesh.api.create(gateway)
    mesh.api.patch("Service", "server", "shop", metadata={"labels": {"istio.io/use-waypoint": "wp"}})
    asked = {"source": mesh.pods["client"].uid, "destination": f"{VIP}:80"}
    wait_until(lambda: WAYPOINT in str(mesh.agents[0].get("/why", **asked)), "the waypoint is known", START_S)
    mesh.api.delete("Gateway", "wp", "shop")
    wait_until(lambda: mesh.agents[0].get("/why", **asked)["refusal"] is None, "it is gone again", START_S)


def test_it_resumes_and_is_told_what_has_gone(mesh: IstioCluster) -> None:
    client, server = mesh.pods["client"], mesh.pods["server"]
    agent = mesh.agents[0]
    before = agent.get("/status")["state"]
    mesh.istiod.kill()
    with client.connect(server.ip, PORT) as sock:
        assert exactly(sock, 6) == b"server"
    agent.kill()
    agent.start()
    with client.connect(server.ip, PORT) as sock:
        assert exactly(sock, 6) == b"server"
    mesh.api.delete("Service", "server", "shop")
    mesh.istiod.start()
    wait_until(lambda: agent.get("/status")["state"]["connection"]["connected"], "it is connected again", START_S)
    fewer = before["services"] - 1
    wait_until(lambda: agent.get("/status")["state"]["services"] == fewer, "it is told that the service has gone", START_S)
    assert agent.get("/status")["state"]["epoch"] <= before["epoch"] + 4  # what it had was not written again
