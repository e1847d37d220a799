"""A node that asks a real istiod for what its pods need, beside one that knows all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.kinds import pod
from tests.cluster.mesh import SPACE, KubeMesh
from tests.mesh import cluster as cluster_module
from tests.mesh.attempts import Greeter, answer
from tests.mesh.cluster import MeshPod, wait_until
from tests.mesh.evidence import rows_of

PORT = 7500
VIP = "10.96.0.70"
CROWD = 60
START_S = 60.0
# What is in use is asked for again each minute, which is long for a test.
SOONER = (
    "import sys",
    "from nodeproxy.agent import on_demand",
    "on_demand.RECHECK_S, on_demand.SWEEP_S = 1.0, 0.5",
    "from nodeproxy.__main__ import main",
    "sys.exit(main())",
)


@pytest.fixture(scope="module")
def mesh(definitions: list[Path]) -> Iterator[KubeMesh]:
    with contextlib.ExitStack() as closing:
        made = KubeMesh.of_istiod(definitions)
        closing.callback(made.close)
        made.cluster.agents[0].source.append("--xds-on-demand")
        client, server = made.pod(0, "client"), made.pod(1, "server")
        for each in (server, *(made.outsider(1, name) for name in ("outsider", "later", "second"))):
            closing.callback(Greeter(each.host, (PORT,)).close)
        made.service("server", {80: PORT}, {"app": "server"}, clusterIP=VIP)
        made.api.create(*(pod(f"crowd{number}", SPACE, node="node1", ips=[f"10.210.0.{number}"]) for number in range(CROWD)))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cluster_module, "ENTRY", ["-c", "\n".join(SOONER)])
            made.start_agents()
        made.enrol(client, server)
        yield made


def tunnels(mesh: KubeMesh, server: MeshPod) -> int:
    return sum("dst.hbone_addr" in row for row in rows_of(mesh.cluster.agents[0], dst_addr=f"{server.ip}:{PORT}"))


def test_what_is_asked_for_is_known_and_nothing_else(mesh: KubeMesh) -> None:
    client = mesh.pods["client"]
    assert answer(client.host, VIP, 80) == "server"
    wait_until(lambda: tunnels(mesh, mesh.pods["server"]) == 1, "it went through mutual TLS")
    asks, knows = (agent.get("/status")["state"]["workloads"] for agent in mesh.cluster.agents)
    assert knows > CROWD
    assert asks <= 3
    assert answer(client.host, mesh.pods["outsider"].ip, PORT) == "outsider"


def test_nobody_who_becomes_somebody_is_met_as_that(mesh: KubeMesh) -> None:
    """istiod does not tell that an address is taken which nobody had when it was asked for."""
    client, later = mesh.pods["client"], mesh.pods["later"]
    assert answer(client.host, later.ip, PORT) == "later", "it is nobody"
    mesh.announce(later)
    mesh.enrol(later)

    def tunnelled() -> bool:
        return answer(client.host, later.ip, PORT) == "later" and tunnels(mesh, later) > 0

    wait_until(tunnelled, "it is asked for again", START_S)


def test_a_new_endpoint_of_a_service_in_use_is_found(mesh: KubeMesh) -> None:
    """istiod does not tell of that either."""
    client, second = mesh.pods["client"], mesh.pods["second"]
    mesh.announce(second, labels={"app": "server"})
    mesh.enrol(second)
    wait_until(lambda: answer(client.host, VIP, 80) == "second", "the service leads to both of its pods", START_S)


def test_an_agent_goes_on_with_what_was_asked_for(mesh: KubeMesh) -> None:
    client, agent = mesh.pods["client"], mesh.cluster.agents[0]
    assert answer(client.host, VIP, 80) is not None
    assert answer(client.host, mesh.pods["outsider"].ip, PORT) == "outsider"
    mesh.control.close()
    agent.kill()
    agent.start()
    assert answer(client.host, VIP, 80) is not None
    assert answer(client.host, mesh.pods["outsider"].ip, PORT) == "outsider"
    mesh.control.start()
    wait_until(lambda: agent.get("/status")["state"]["connection"]["connected"], "it is connected again", START_S)
    assert answer(client.host, VIP, 80) is not None
    assert agent.get("/status")["state"]["workloads"] <= 5
