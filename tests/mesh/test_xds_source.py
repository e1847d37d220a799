"""Nodes that a control plane tells who is who: state and certificates come from it, and its absence is not noticed."""

from __future__ import annotations

import contextlib
import signal
import socket
import stat
import time
from collections.abc import Iterator

import pytest

from nodeproxy.identity.local_ca import LocalCA
from nodeproxy.identity.rotation import rotate
from nodeproxy.xds.names import AUTHORIZATION
from tests.mesh.attempts import Greeter
from tests.mesh.cluster import MeshPod, exactly, wait_until
from tests.mesh.control_plane import ControlledCluster
from tests.mesh.evidence import rows_of, tunnelled
from tests.mesh.test_rotation import PORT as ECHO_PORT
from tests.mesh.test_rotation import Echo, Load
from tests.xds_server import Root, policy, write_root

PORT = 7300
DENY_ALL = {"action": "DENY", "scope": "NAMESPACE", "namespace": "shop", "rules": [{}]}


@pytest.fixture(scope="module")
def mesh() -> Iterator[ControlledCluster]:
    cluster = ControlledCluster()
    with contextlib.ExitStack() as closing:
        closing.callback(cluster.close)
        client, server = cluster.pod(0, "client"), cluster.pod(1, "server")
        closing.callback(Greeter(server.host, (PORT,)).close)
        closing.callback(Echo(server.listen(ECHO_PORT)).close)
        cluster.server.put(cluster.message(client), cluster.message(server))
        cluster.serve()
        for agent in cluster.agents:
            agent.start()
        for pod in (client, server):
            cluster.enrol(pod)
        for agent in cluster.agents:
            agent.wait_ready()
        yield cluster


def pods(mesh: ControlledCluster) -> tuple[MeshPod, MeshPod]:
    return mesh.pods["client"], mesh.pods["server"]


def greeted(client: MeshPod, server: MeshPod) -> socket.socket:
    """A new connection on which the server has spoken."""
    sock = client.connect(server.ip, PORT)
    assert exactly(sock, 6) == b"server"
    return sock


def is_reset(client: MeshPod, server: MeshPod) -> bool:
    try:
        with client.connect(server.ip, PORT) as sock:
            return sock.recv(10) == b""
    except OSError:
        return True


def test_pods_talk_in_mutual_tls_with_certificates_of_its_ca(mesh: ControlledCluster) -> None:
    client, server = pods(mesh)
    greeted(client, server).close()
    tunnelled(mesh, client, server, PORT, 1)
    assert {identity for identity, _ in mesh.server.certificate_requests} == {client.identity, server.identity}
    status = mesh.agents[0].get("/status")
    assert status["state"]["source"] == f"xds https://{mesh.server.address}"
    assert status["state"]["connection"]["connected"]
    assert "Connected " in mesh.agents[0].nodeproxy("status").stdout
    metrics = mesh.agents[0].metrics()
    assert 'istio_xds_message_total{url="type.googleapis.com/istio.workload.Address"}' in metrics
    assert "nodeproxy_xds_connected 1.0" in metrics
    (kept,) = mesh.kept(0)
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_a_policy_ends_live_connections_within_a_second(mesh: ControlledCluster) -> None:
    client, server = pods(mesh)
    with greeted(client, server) as sock:
        began = time.monotonic()
        mesh.server.put(policy("no", **DENY_ALL))
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""
        assert time.monotonic() - began < 1.0
    assert is_reset(client, server)
    mesh.server.remove(AUTHORIZATION, "shop/no")
    wait_until(lambda: not is_reset(client, server), "it is allowed again")


def test_a_policy_that_is_not_understood_lets_nobody_in(mesh: ControlledCluster) -> None:
    client, server = pods(mesh)
    mesh.server.put(policy("later", **{**DENY_ALL, "rules": []}, extensions=[{"name": "of a later version"}]))
    wait_until(lambda: is_reset(client, server), "it is denied")
    agent = mesh.agents[1]
    (rejected,) = agent.get("/status")["state"]["connection"]["rejected"]
    assert (rejected["type"], rejected["name"], rejected["reason"]) == ("Authorization", "shop/later", "extension")
    why = mesh.agents[0].get("/why", source=client.uid, destination=f"{server.ip}:{PORT}")
    assert why["refusal"]["detail"].startswith("policy shop/later can't be understood, so it denies everything")
    assert any("later" in row.get("error", "") for row in rows_of(agent, dst_addr=f"{server.ip}:{PORT}"))
    assert 'nodeproxy_xds_rejected_now{url="type.googleapis.com/istio.security.Authorization"} 1.0' in agent.metrics()
    assert any("shop/later: a policy has the extension" in nack for nack in mesh.server.nacks())
    mesh.server.remove(AUTHORIZATION, "shop/later")
    wait_until(lambda: not is_reset(client, server), "it is allowed again")


def test_without_control_plane_and_with_a_new_agent_all_goes_on(mesh: ControlledCluster) -> None:
    client, server = pods(mesh)
    mesh.server.put(policy("port", **{**DENY_ALL, "rules": [{"clauses": [{"matches": [{"destination_ports": [PORT + 1]}]}]}]}))
    wait_until(lambda: mesh.agents[1].get("/status")["state"]["policies"] == 1, "the policy is there")
    standing = client.connect(server.ip, ECHO_PORT)
    mesh.server.stop()
    wait_until(lambda: not mesh.agents[0].get("/status")["state"]["connection"]["connected"], "the agent has noticed")
    greeted(client, server).close()
    with standing:
        standing.sendall(b"still there?")
        assert exactly(standing, 12) == b"still there?"
    for agent in mesh.agents:
        agent.kill(signal.SIGKILL)
        agent.start()  # until it is ready, that is, with its certificates
        wait_until(lambda agent=agent: "unavailable" in agent.get("/status")["state"]["connection"]["error"], "it has tried")
    greeted(client, server).close()
    assert mesh.agents[1].get("/status")["state"]["policies"] == 1
    del mesh.server.resources[AUTHORIZATION]["shop/port"]  # nobody is told
    mesh.serve()
    for agent in mesh.agents:
        wait_until(lambda agent=agent: agent.get("/status")["state"]["policies"] == 0, "it is told what has gone", 40)
    assert mesh.server.requests(AUTHORIZATION)[0].initial_resource_versions["shop/port"]
    greeted(client, server).close()


def test_token_root_and_certificates_change_under_traffic(mesh: ControlledCluster) -> None:
    client, server = pods(mesh)
    load = Load(client, server)
    try:
        mesh.token.write_text("second")
        mesh.server.token = "second"
        rotate(mesh.ca)
        mesh.server.ca = LocalCA.open(mesh.ca)
        before = len(mesh.server.certificate_requests)
        new = Root()
        write_root(mesh.root_file, mesh.root, new)
        wait_until(lambda: len(mesh.server.certificate_requests) >= before + 2, "certificates are asked for again", 30)
        mesh.server.stop()
        mesh.serve(new)
        for agent in mesh.agents:
            wait_until(lambda agent=agent: agent.get("/status")["state"]["connection"]["connected"], "it is back", 40)
        counted = load.count
        wait_until(lambda: load.count > counted + 20, "traffic goes on")
    finally:
        load.stop()
    assert mesh.server.ca is not None
    assert len(mesh.server.ca.roots) == 2
    for agent in mesh.agents:
        assert (agent.run_dir / "certificates" / "roots").read_bytes() == mesh.server.ca.roots_pem


def test_it_ends_in_order(mesh: ControlledCluster) -> None:
    agent = mesh.agents[0]
    assert agent.process is not None
    process = agent.process
    agent.kill(signal.SIGTERM)
    assert process.returncode == 0
    assert "Traceback" not in agent.log()
    agent.start()


def test_a_new_pod_and_a_changed_identity(mesh: ControlledCluster) -> None:
    late = mesh.pod(0, "late")
    mesh.enrol(late)
    server = mesh.pods["server"]
    mesh.server.put(mesh.message(late))
    wait_until(lambda: not is_reset(late, server), "it is served when the control plane knows it")
    mesh.server.put(mesh.message(late, service_account="other"))
    other = "spiffe://cluster.local/ns/shop/sa/other"
    wait_until(
        lambda: len(mesh.kept(0)) == 2 and any(who == other for who, _ in mesh.server.certificate_requests), "it is another"
    )
    wait_until(lambda: not mesh.agents[0].get("/status")["pending"], "its certificate is there")
    greeted(late, server).close()
    wait_until(
        lambda: any(row["src.identity"] == other for row in rows_of(mesh.agents[1], dst_addr=f"{server.ip}:{PORT}")), "it is told"
    )


def test_a_ca_directory_beside_a_control_plane(mesh: ControlledCluster) -> None:
    client, server = pods(mesh)
    agent = mesh.agents[0]
    agent.kill()
    agent.source += ["--ca", str(mesh.ca)]
    agent.start()
    asked = len(mesh.server.certificate_requests)
    wait_until(lambda: not agent.get("/status")["pending"], "certificates are there")
    greeted(client, server).close()
    assert len(mesh.server.certificate_requests) == asked
