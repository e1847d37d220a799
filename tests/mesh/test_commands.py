"""The command line and the HTTP endpoints of running nodes: what they say is true, and what they do happens."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from nodeproxy.lab.topology import Host
from tests.mesh.attempts import answer, connected
from tests.mesh.cluster import TIMEOUT_S, Agent, Cluster, exactly, wait_until
from tests.mesh.shop import DENIED_PORT, HAND, PORT, SERVICE, asked_over_tcp, shop
from tests.pace import PACE


@pytest.fixture(scope="module")
def mesh() -> Iterator[Cluster]:
    with shop() as cluster:
        yield cluster


def asked(agent: Agent, *arguments: str, status: int = 0) -> Any:
    """What a command says with `-o json`."""
    done = agent.nodeproxy(*arguments, "-o", "json")
    assert done.returncode == status, done.stderr
    assert not done.stderr
    return json.loads(done.stdout)


def told(agent: Agent, *arguments: str, status: int = 0) -> str:
    """What a command tells a person: its output, or its error."""
    done = agent.nodeproxy(*arguments)
    assert done.returncode == status, done.stderr
    assert bool(done.stderr) == (status == 2 or (status == 1 and not done.stdout))
    assert "Traceback" not in done.stderr
    return done.stdout or done.stderr


# ── status ──

STATUS_KEYS = {"version", "instance", "run_dir", "node", "started", "ready", "pending"}
STATUS_KEYS |= {"state", "pods", "workers", "kernel", "certificates"}


def test_status(mesh: Cluster) -> None:
    agent = mesh.agents[0]
    found = asked(agent, "status")
    assert found.keys() >= STATUS_KEYS
    assert (found["node"], found["instance"], found["ready"], found["pending"]) == ("node0", agent.instance, True, [])
    assert found["state"].items() >= {"workloads": 4, "services": 1, "policies": 1, "error": ""}.items()
    assert found["state"]["source"] == f"file {agent.mesh}"
    assert [pod["uid"] for pod in found["pods"]] == sorted(mesh.pods[name].uid for name in ("client", "near"))
    for pod in found["pods"]:
        assert pod["error"] == ""
        assert pod["certificate_until"] > found["started"]
        assert pod["identity"].startswith("spiffe://cluster.local/ns/shop/sa/")
    assert [worker["ready"] for worker in found["workers"]] == [True, True]
    assert {entry["identity"] for entry in found["certificates"]} == {mesh.pods[name].identity for name in ("client", "near")}
    text = told(agent, "status")
    assert text.startswith(f"✓ node0 (instance {agent.instance}, nodeproxy {found['version']}) is ready")
    assert "4 workloads, 1 service, 1 policy" in text
    assert "✓ 2 pods enrolled." in text


# ── connections ──


def test_connections(mesh: Cluster) -> None:
    client, server = mesh.pods["client"], mesh.pods["server"]
    far, _ = connected(client.host, "10.96.0.10", 80)
    near, _ = connected(client.host, mesh.pods["near"].ip, PORT)
    with far, near:
        far.sendall(b"x" * 2048)

        def counted() -> Any:
            found = asked(mesh.agents[0], "connections", "--pod", server.uid)["connections"]
            return found[0] if found and found[0]["received_bytes"] == 2048 else None

        row = wait_until(counted, "the bytes are seen")
        assert row["direction"] == "outbound"
        assert row["security"] == "mutual_tls"
        assert row["source"]["identity"] == client.identity
        assert row["source"]["workload"]["uid"] == client.uid
        assert row["source"]["address"].startswith(f"{client.ip}:")
        assert row["destination"]["address"] == f"{server.ip}:{PORT}"
        assert row["destination"]["identity"] == server.identity
        assert row["destination"]["workload"]["uid"] == server.uid
        assert row["service"]["hostname"] == SERVICE
        assert row["hbone_address"] == f"{server.ip}:15008"
        assert (row["received_bytes"], row["sent_bytes"], row["ended"]) == (2048, len("server"), 0.0)
        (inbound,) = asked(mesh.agents[1], "connections")["connections"]
        assert (inbound["direction"], inbound["received_bytes"]) == ("inbound", 2048)
        assert inbound["source"]["identity"] == client.identity
        assert len(asked(mesh.agents[0], "connections")["connections"]) == 2
        text = told(mesh.agents[0], "connections")
        assert "2 connections" in text
        assert f"{SERVICE} → shop/server {server.ip}:{PORT}" in text
        assert text.count(client.identity) == 2
    wait_until(lambda: told(mesh.agents[0], "connections") == "No connection is open.\n", "they have ended")


# ── why ──


def test_why_allowed(mesh: Cluster) -> None:
    client, server = mesh.pods["client"], mesh.pods["server"]
    found = asked(mesh.agents[0], "why", client.uid, f"{server.ip}:{PORT}")
    assert found.keys() >= {"source", "destination", "steps", "outcome"}
    assert (found["source"], found["destination"]) == (client.uid, f"{server.ip}:{PORT}")
    assert not found.get("refusal")
    assert found["outcome"] == f"tunnelled to server at {server.ip}:15008 in mutual TLS, for {server.ip}:{PORT}"
    assert all({"what", "outcome"} <= step.keys() for step in found["steps"])
    text = told(mesh.agents[0], "why", "client.shop", f"server.shop:{PORT}")
    assert "✓ It would be tunnelled to server" in text
    assert "shop/no-port" in text  # the policy that was asked and did not match
    assert "on this node" in told(mesh.agents[0], "why", "shop/client", f"near:{PORT}")
    assert "passed through" in told(mesh.agents[0], "why", "client", "192.0.2.7:443")
    assert "in plain TCP" in told(mesh.agents[0], "why", client.ip, f"hand:{PORT}")


def test_why_by_service(mesh: Cluster) -> None:
    server = mesh.pods["server"]
    for destination in (f"{SERVICE}:80", SERVICE, "web.shop:80", "web", "10.96.0.10:80"):
        found = asked(mesh.agents[0], "why", "client", destination)
        assert found["destination"] == "10.96.0.10:80"
        assert found["outcome"].endswith(f"for {server.ip}:{PORT}")
        assert any(step.get("resource") == f"shop/{SERVICE}" for step in found["steps"])
    found = asked(mesh.agents[0], "why", "client", f"{SERVICE}:81", status=1)
    assert found["refusal"]["reason"] == "no_endpoint"
    assert found["refusal"]["resource"] == f"shop/{SERVICE}"


@pytest.mark.parametrize("where", ["near", "server"])
def test_why_denied_is_what_happens(mesh: Cluster, where: str) -> None:
    client, pod = mesh.pods["client"], mesh.pods[where]
    found = asked(mesh.agents[0], "why", "client", f"{where}:{DENIED_PORT}", status=1)
    detail = "denied by DENY policy shop/no-port, rule 0"
    assert found["refusal"] == {"reason": "policy_deny", "detail": detail, "resource": "shop/no-port"}
    text = told(mesh.agents[0], "why", "client", f"{where}:{DENIED_PORT}", status=1)
    assert "✗ It would not pass: refused (policy_deny): denied by DENY policy shop/no-port, rule 0\n" in text
    assert answer(client.host, pod.ip, DENIED_PORT) is None
    assert answer(client.host, pod.ip, PORT) == where


@pytest.mark.parametrize(
    ("source", "destination", "said"),
    [
        ("nobody", "server:7200", "no workload is called 'nobody'"),
        ("client", "nowhere.shop:80", "no workload is called 'nowhere.shop'"),
        ("client", "server:70000", "70000 is no port"),
        ("client", "hand", "which port of"),
    ],
)
def test_why_asked_wrongly(mesh: Cluster, source: str, destination: str, said: str) -> None:
    assert said in told(mesh.agents[0], "why", source, destination, status=2)


def test_usage_errors(mesh: Cluster) -> None:
    assert "Missing argument 'DESTINATION[:PORT]'" in told(mesh.agents[0], "why", "client", status=2)
    assert "no such option" in told(mesh.agents[0], "status", "--colour", status=2).lower()
    absent = mesh.lab.nodes[0].run([sys.executable, "-m", "nodeproxy", "status", "--instance", "no-such-one"])
    assert absent.returncode == 1
    assert absent.stderr.startswith("nodeproxy: error: no agent answers: /run/nodeproxy/no-such-one/admin.sock")


# ── enrol and leave ──


def arrival(mesh: Cluster, host: Host) -> str:
    """How a connection from `host` reaches the server: "tunnel", "plain", or "closed"; by the access log of the server's node."""
    server = mesh.pods["server"]
    source = f"src.addr={next(address for address in host.addresses if '.' in address)}:"
    seen = mesh.agents[1].log().count(source)
    if answer(host, server.ip, PORT) is None:
        return "closed"
    wait_until(lambda: mesh.agents[1].log().count(source) > seen, "the line")
    line = next(line for line in reversed(mesh.agents[1].log().splitlines()) if source in line)
    return "tunnel" if "dst.hbone_addr=" in line else "plain"


def pods(agent: Agent) -> list[str]:
    return [pod["uid"] for pod in agent.get("/status")["pods"]]


def test_enrol_and_leave_by_command(mesh: Cluster) -> None:
    """Plain, in the mesh, still in it after the agent was killed, plain again, also after the agent was killed."""
    agent, hand = mesh.agents[0], mesh.lab.pods["hand"]
    assert arrival(mesh, hand) == "plain"
    done = asked(agent, "enrol", HAND, hand.netns_path)
    assert done["uid"] == HAND
    assert 0 < done["enrolled_ms"] < 1000 * PACE
    wait_until(lambda: agent.get("/status")["ready"], "it has a certificate")
    assert arrival(mesh, hand) == "tunnel"
    assert HAND in pods(agent)
    assert told(agent, "enrol", HAND, hand.netns_path).startswith(f"{HAND} is enrolled (")  # twice is once
    agent.kill(signal.SIGKILL)
    agent.start()
    assert HAND in pods(agent)
    assert arrival(mesh, hand) == "tunnel"
    assert told(agent, "leave", HAND) == f"{HAND} has left; its traffic is plain again.\n"
    assert HAND not in pods(agent)
    assert arrival(mesh, hand) == "plain"
    agent.kill(signal.SIGKILL)
    agent.start()
    assert arrival(mesh, hand) == "plain"
    assert f"pod {HAND} is not enrolled here" in told(agent, "leave", HAND, status=1)


def test_a_pod_of_the_file_leaves_and_stays_out(mesh: Cluster) -> None:
    """A command holds against the file, over a restart too, until the next command."""
    agent, client = mesh.agents[0], mesh.pods["client"]
    assert asked(agent, "leave", client.uid) == {"uid": client.uid}
    assert arrival(mesh, client.host) == "plain"
    agent.kill(signal.SIGKILL)
    agent.start()
    assert client.uid not in pods(agent)
    assert arrival(mesh, client.host) == "plain"
    told(agent, "enrol", client.uid, client.host.netns_path)
    wait_until(lambda: agent.get("/status")["ready"], "it has a certificate")
    assert arrival(mesh, client.host) == "tunnel"


@pytest.mark.parametrize("end", ["client", "near", "server"])
def test_connections_of_a_pod_that_leaves_go_on(mesh: Cluster, end: str) -> None:
    """As `leave` says: what stands stays as it is, tunnelled and judged, to its end; what is new is plain."""
    client, pod = mesh.pods["client"], mesh.pods[end]
    agent = mesh.agents[pod.host.node]
    with contextlib.ExitStack() as closing:
        pairs = []
        for number, (server, address) in enumerate(((mesh.pods["server"], "ip"), (mesh.pods["near"], "ip6"))):
            with server.listen(7260 + number, getattr(server, address)) as listener:
                ours = closing.enter_context(client.connect(getattr(server, address), 7260 + number))
                theirs = closing.enter_context(listener.accept()[0])
            theirs.settimeout(TIMEOUT_S)
            pairs.append((ours, theirs))
        told(agent, "leave", pod.uid)
        try:
            for ours, theirs in pairs:
                ours.sendall(b"there")
                assert exactly(theirs, 5) == b"there"
                theirs.sendall(b"back")
                assert exactly(ours, 4) == b"back"
                theirs.shutdown(socket.SHUT_WR)
                assert ours.recv(1) == b""
                ours.close()
                assert theirs.recv(1) == b""
        finally:
            told(agent, "enrol", pod.uid, pod.host.netns_path)
            wait_until(lambda: agent.get("/status")["ready"], "it is back")
    assert answer(client.host, mesh.pods["server"].ip, PORT) == "server"


def test_what_cannot_be_enrolled(mesh: Cluster) -> None:
    agent = mesh.agents[0]
    for netns, said in (
        ("/run/netns/no-such-pod", "no-such-pod"),
        ("/etc/hostname", "/etc/hostname"),
        (mesh.lab.nodes[0].netns_path, mesh.lab.nodes[0].netns_path),
        (mesh.pods["near"].host.netns_path, f"is the network namespace of {mesh.pods['near'].uid}, which is enrolled already"),
    ):
        assert said in told(agent, "enrol", "Kubernetes//Pod/shop/other", netns, status=1)
        assert "Kubernetes//Pod/shop/other" not in pods(agent)
    assert answer(mesh.pods["client"].host, mesh.pods["near"].ip, PORT) == "near"


# ── over TCP ──


def command(mesh: Cluster, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command on node 0 that reaches the agent by its address."""
    argv = [sys.executable, "-m", "nodeproxy", *arguments, "--admin", "127.0.0.1:15000"]
    return mesh.lab.nodes[0].run(argv, env={**os.environ, **environment})


def test_commands_over_tcp(mesh: Cluster) -> None:
    """Reading needs nothing, changing the token, which root's client finds by itself."""
    hand = mesh.lab.pods["hand"]
    assert json.loads(command(mesh, "status", "-o", "json").stdout)["node"] == "node0"
    wrong = command(mesh, "enrol", HAND, hand.netns_path, NODEPROXY_ADMIN_TOKEN="wrong")
    assert wrong.returncode == 1
    assert "Authorization: Bearer TOKEN" in wrong.stderr
    assert HAND not in pods(mesh.agents[0])
    right = command(mesh, "enrol", HAND, hand.netns_path)
    assert right.returncode == 0, right.stderr
    assert HAND in pods(mesh.agents[0])
    assert command(mesh, "leave", HAND).returncode == 0


def test_the_token(mesh: Cluster) -> None:
    agent = mesh.agents[0]
    path = agent.run_dir / "admin.token"
    assert path.stat().st_mode & 0o777 == 0o600
    assert (agent.run_dir / "admin.sock").stat().st_mode & 0o077 == 0
    body = {"uid": HAND, "netns": mesh.lab.pods["hand"].netns_path}
    for token in (None, "", "wrong", path.read_text()[:-1]):
        for method, where in (("POST", "/pods"), ("DELETE", f"/pods/{HAND}"), ("POST", "/quitquitquit")):
            status, answered = asked_over_tcp(mesh, 15000, method, where, token, body)
            assert status == 403
            assert "error" in json.loads(answered)
    assert asked_over_tcp(mesh, 15000, "GET", "/status", None)[0] == 200
    assert asked_over_tcp(mesh, 15000, "DELETE", f"/pods/{HAND}", path.read_text())[0] == 404
    assert asked_over_tcp(mesh, 15000, "POST", "/pods", path.read_text(), ["no", "pod"])[0] == 400
    assert asked_over_tcp(mesh, 15000, "GET", "/no/such/path")[0] == 404


def test_readiness(mesh: Cluster) -> None:
    """500 names what is waited for: here a certificate that this CA must not issue."""
    agent, hand = mesh.agents[0], mesh.lab.pods["hand"]
    assert asked_over_tcp(mesh, 15021, "GET", "/healthz/ready") == (200, "ready\n")
    assert asked_over_tcp(mesh, 15021, "GET", "/healthz/live") == (200, "live\n")
    foreign = {**mesh.extra_workloads[0], "trustDomain": "elsewhere.test"}
    mesh.extra_workloads[0], kept = foreign, mesh.extra_workloads[0]
    mesh.apply()
    try:
        told(agent, "enrol", HAND, hand.netns_path)
        status, text = asked_over_tcp(mesh, 15021, "GET", "/healthz/ready")
        assert (status, text) == (500, "certificate: none for spiffe://elsewhere.test/ns/shop/sa/hand\n")
        assert asked(agent, "status")["pending"] == [text.strip()]
        assert f"is not ready; it waits for: {text.strip()}." in told(agent, "status")
        assert asked_over_tcp(mesh, 15021, "GET", "/healthz/live")[0] == 200
        assert arrival(mesh, hand) == "closed"
    finally:
        told(agent, "leave", HAND)
        mesh.extra_workloads[0] = kept
        mesh.apply()
    assert asked_over_tcp(mesh, 15021, "GET", "/healthz/ready")[0] == 200
