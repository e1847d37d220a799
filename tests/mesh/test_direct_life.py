"""The direct path when agents die, come back, and come back with other settings or another mesh."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.mesh.attempts import Greeter, answer, connected, is_open, total, until_reset
from tests.mesh.cluster import Agent, Cluster, wait_until
from tests.mesh.direct import LEASE_S, live_to, settled, short_lease, wait_direct, why
from tests.mesh.evidence import rows_of

PORT, SECOND_PORT = 7600, 7601
VIP = "10.96.0.60"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster(1)
    with contextlib.ExitStack() as closing:
        closing.callback(made.close)
        made.pod(0, "client", namespace="web")
        server = made.pod(0, "server")
        closing.callback(Greeter(server.host, (PORT, SECOND_PORT)).close)
        made.service("web.shop.svc", VIP, {80: PORT}, [server])
        yield made


@pytest.fixture
def mesh(cluster: Cluster) -> Iterator[Cluster]:
    """Its agent runs as it should be; what a test changed of it is put back."""
    cluster.policies.clear()
    agent = cluster.agents[0]
    agent.arguments = []
    if agent.process is None:
        cluster.write()
        start(agent)
    settled(agent)
    yield cluster
    if agent.process is not None:
        agent.kill(signal.SIGKILL)


def start(agent: Agent, *arguments: str) -> None:
    agent.arguments = list(arguments)
    with short_lease():
        agent.start()


def live(mesh: Cluster) -> tuple[socket.socket, str]:
    """A direct connection that stands, and its address and port."""
    client, server = mesh.pods["client"], mesh.pods["server"]
    wait_direct(mesh.agents[0], client, server.ip, PORT)
    sock, _ = connected(client.host, server.ip, PORT)
    assert [each["direct"] for each in live_to(mesh.agents[0], f"{server.ip}:{PORT}")] == [True]
    return sock, "{}:{}".format(*sock.getsockname())


def test_what_is_direct_outlives_the_agent_by_its_lease(mesh: Cluster) -> None:
    """Then the node is closed, as it is for all else at once; what stands stands, and the next agent tells of it, once."""
    agent, client, server = mesh.agents[0], mesh.pods["client"], mesh.pods["server"]
    sock, source = live(mesh)
    agent.kill(signal.SIGKILL)
    killed = time.monotonic()
    assert answer(client.host, server.ip, PORT) == "server"
    assert answer(client.host, VIP, 80) == "server"
    with pytest.raises((ConnectionError, TimeoutError)):  # what is not direct needs a worker
        answer(client.host, "10.10.0.1", 15021)

    def closed() -> bool:
        try:
            return answer(client.host, server.ip, PORT) is None
        except (ConnectionError, TimeoutError):
            return True

    wait_until(closed, "the lease has run out")
    assert LEASE_S - 1.5 <= time.monotonic() - killed <= LEASE_S + 1.0
    assert is_open(sock)
    start(agent)
    settled(agent)
    assert is_open(sock)
    (row,) = live_to(agent, f"{server.ip}:{PORT}")
    assert (row["direct"], row["source"]["identity"]) == (True, client.identity)
    sock.close()
    (line,) = wait_until(lambda: rows_of(agent, src_addr=source), "its line")
    assert line["src.identity"] == client.identity


def test_a_restart_in_time_is_not_noticed(mesh: Cluster) -> None:
    agent, client, server = mesh.agents[0], mesh.pods["client"], mesh.pods["server"]
    agent.kill(signal.SIGTERM)
    agent.start()  # with the product's own lease
    sock, _ = live(mesh)
    agent.kill(signal.SIGTERM)
    agent.start(wait=False)
    made, pause = 0, threading.Event()
    while agent.process is not None and not ready(agent):
        assert answer(client.host, server.ip, PORT) == "server"
        made += 1
        pause.wait(0.005)  # the kernel remembers 8,000 that ended while nobody looks
    assert made > 10
    settled(agent)
    assert is_open(sock)
    sock.close()
    # They ended while no agent looked: the next one has their lines.
    lines = wait_until(lambda: (rows := rows_of(agent, dst_addr=f"{server.ip}:{PORT}"))[made:] and rows, "a line for each")
    assert all("error" not in line for line in lines)


def ready(agent: Agent) -> bool:
    try:
        return bool(agent.get("/status")["ready"])
    except OSError:
        return False


def test_a_mesh_that_was_edited_meanwhile_holds_from_the_start(mesh: Cluster) -> None:
    agent, client, server = mesh.agents[0], mesh.pods["client"], mesh.pods["server"]
    sock, source = live(mesh)
    agent.kill(signal.SIGKILL)
    match = {"namespaces": [{"exact": "web"}]}
    mesh.policies.append({"name": "p", "namespace": "shop", "scope": "Namespace", "action": "Deny", "rules": [[[match]]]})
    mesh.write()
    start(agent)
    assert until_reset({"live": sock})
    assert answer(client.host, server.ip, PORT) is None
    sock.close()
    (line,) = wait_until(lambda: rows_of(agent, src_addr=source), "its line")
    assert line["error"].startswith("policy_deny: ")


def test_a_pod_that_left_meanwhile(mesh: Cluster) -> None:
    """Nobody can say who it is any more."""
    agent, client = mesh.agents[0], mesh.pods["client"]
    sock, source = live(mesh)
    agent.kill(signal.SIGKILL)
    client.entry["protocol"] = "TCP"
    mesh.write()
    try:
        start(agent)
        assert until_reset({"live": sock})
        (line,) = wait_until(lambda: rows_of(agent, src_addr=source), "its line")
        assert line["error"].startswith("pod_left: ")
    finally:
        sock.close()
        client.entry["protocol"] = "HBONE"
        mesh.apply()


def test_hbone_within_the_node(mesh: Cluster) -> None:
    """With `same_node: hbone` two pods of the node talk as if on two nodes, and what was direct before is ended."""
    agent, client, server = mesh.agents[0], mesh.pods["client"], mesh.pods["server"]
    sock, source = live(mesh)
    agent.kill(signal.SIGTERM)
    start(agent, "--same-node", "hbone")
    assert until_reset({"live": sock})
    sock.close()
    (line,) = wait_until(lambda: rows_of(agent, src_addr=source), "its line")
    assert line["error"].startswith("same_node_hbone: ")
    assert total(agent, "nodeproxy_direct_destroyed_total", reason="same_node_hbone") == 1
    status = agent.get("/status")["direct"]
    assert (status["same_node"], status["open"], status["off"]) == ("hbone", False, "same_node is hbone")
    for address, port in ((server.ip, PORT), (server.ip6, PORT), (VIP, 80)):
        sock, who = connected(client.host, address, port)
        with sock:
            assert who == "server"
            target = f"[{server.ip6}]:{PORT}" if ":" in address else f"{server.ip}:{PORT}"
            rows = live_to(agent, target)
            assert {row["direction"] for row in rows} == {"outbound", "inbound"}
            assert {(row["security"], row["direct"]) for row in rows} == {("mutual_tls", False)}
            assert {row["source"]["identity"] for row in rows} == {client.identity}
        assert "tunnelled to server" in why(agent, client, address, port)["outcome"]
    assert answer(server.host, VIP, 80) == "server"  # itself, through its service
    match: dict[str, Any] = {"principals": [{"exact": client.identity.removeprefix("spiffe://")}]}
    mesh.policies.append({"name": "p", "namespace": "shop", "scope": "Namespace", "action": "Deny", "rules": [[[match]]]})
    mesh.apply()
    assert answer(client.host, server.ip, PORT) is None
    mesh.policies.clear()
    mesh.apply()
    agent.kill(signal.SIGTERM)
    start(agent)
    wait_direct(agent, client, server.ip, PORT)
