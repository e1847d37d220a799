"""Pods come and go at run time; a hundred of them; and what the node's processes weigh."""

from __future__ import annotations

import os
import re
import signal
import statistics
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeproxy.linux.netns import inside
from tests.mesh.cluster import Agent, Cluster, MeshPod, exactly, wait_until
from tests.pace import PACE

PODS = 100


@pytest.fixture(scope="module")
def mesh() -> Iterator[Cluster]:
    cluster = Cluster()
    try:
        cluster.pod(0, "client")
        cluster.pod(1, "server")
        cluster.start()
        yield cluster
    finally:
        cluster.close()


def pss_mb(pids: list[int]) -> float:
    """Proportional set size of the processes, in MB: shared pages are split among those that share them."""
    total = 0
    for pid in pids:
        total += int(re.findall(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)[0])
    return total / 1000


def all_pids(agent: Agent) -> list[int]:
    """The agent, the zygote and the workers."""
    assert agent.process is not None
    found, todo = [], [agent.process.pid]
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo += [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return found


def path_of(mesh: Cluster, server: MeshPod, port: int) -> str:
    """How a connection from the client went: "mesh" or "plain"."""
    logged = len(mesh.agents[0].access_log())
    with server.listen(port) as listener, mesh.pods["client"].connect(server.ip, port) as ours:
        theirs, _ = listener.accept()
        with theirs:
            ours.sendall(b"x")
            assert exactly(theirs, 1) == b"x"
            local = ours.getsockname()
    target = f"{server.ip}:{port}"
    seen = threading.Event()
    for _ in range(20):
        rows = [row for row in mesh.agents[0].access_log()[logged:] if row["dst.addr"] == target]
        if rows:
            assert rows[0]["src.addr"].startswith(local[0])
            return "mesh"
        seen.wait(0.02)
    return "plain"


def test_by_edit_of_the_mesh_file(mesh: Cluster) -> None:
    agent, client = mesh.agents[0], mesh.pods["client"]
    server = mesh.pods["server"]
    assert path_of(mesh, server, 9000) == "mesh"
    client.entry["protocol"] = "TCP"
    mesh.apply()
    wait_until(lambda: not agent.get("/status")["pods"], "it has left")
    assert path_of(mesh, server, 9001) == "plain"
    client.entry["protocol"] = "HBONE"
    mesh.apply()
    wait_until(lambda: agent.get("/status")["pods"], "it is in")
    wait_until(lambda: agent.get("/status")["ready"], "it has its certificate")
    assert path_of(mesh, server, 9002) == "mesh"


def test_a_connection_outlives_its_pods_leaving(mesh: Cluster) -> None:
    agent, client, server = mesh.agents[0], mesh.pods["client"], mesh.pods["server"]
    with server.listen(9003) as listener, client.connect(server.ip, 9003) as ours:
        theirs, _ = listener.accept()
        with theirs:
            ours.sendall(b"1")
            assert exactly(theirs, 1) == b"1"
            for side in (0, 1):
                pod = (client, server)[side]
                status, _ = mesh.agents[side].request("DELETE", f"/pods/{pod.uid}")
                assert status == 200
            ours.sendall(b"2")
            assert exactly(theirs, 1) == b"2"
            theirs.sendall(b"3")
            assert exactly(ours, 1) == b"3"
    for side in (0, 1):
        pod = (client, server)[side]
        status, answer = mesh.agents[side].request("POST", "/pods", {"uid": pod.uid, "netns": pod.host.netns_path})
        assert status == 200, answer
    assert agent.get("/status")["pods"]


@pytest.mark.parametrize("comes", ["in the mesh", "in plain"])
def test_a_connection_waits_for_a_peer_that_is_not_served_yet(mesh: Cluster, comes: str) -> None:
    """Nodes hear of a label at about the same time: a peer that is said to be in is served a moment later, or is out already."""
    port = 9010 if comes == "in the mesh" else 9011
    agent, server = mesh.agents[1], mesh.pods["server"]
    assert agent.request("DELETE", f"/pods/{server.uid}")[0] == 200
    with server.listen(port) as listener, mesh.pods["client"].socket() as ours:
        ours.connect((server.ip, port))
        ours.sendall(b"x")
        ours.settimeout(0.2)
        with pytest.raises(TimeoutError):
            ours.recv(1)
        if comes == "in the mesh":
            status, answer = agent.request("POST", "/pods", {"uid": server.uid, "netns": server.host.netns_path})
            assert status == 200, answer
        else:
            before = agent.get("/status")["state"]["epoch"]
            server.entry["protocol"] = "TCP"
            mesh.write()
        theirs, _ = listener.accept()
        with theirs:
            assert exactly(theirs, 1) == b"x"
    (row,) = wait_until(
        lambda: [row for row in mesh.agents[0].access_log() if row["dst.addr"] == f"{server.ip}:{port}"], "its line"
    )
    assert ("dst.hbone_addr" in row) is (comes == "in the mesh")
    if comes == "in plain":
        wait_until(lambda: agent.get("/status")["state"]["epoch"] > before, "the other node has read it, too")
        server.entry["protocol"] = "HBONE"
        mesh.apply()
        wait_until(lambda: agent.get("/status")["pods"], "it is in")


def test_leaving_leaves_nothing_in_the_namespace(mesh: Cluster) -> None:
    agent, client = mesh.agents[0], mesh.pods["client"]

    def rules() -> str:
        return client.host.run(["ip", "rule"]).stdout + client.host.run(["ip", "-6", "rule"]).stdout

    def accept_mark() -> str:
        with inside(client.host.netns_fd):
            return Path("/proc/sys/net/ipv4/tcp_fwmark_accept").read_text().strip()

    assert "0x53a" in rules()
    agent.request("DELETE", f"/pods/{client.uid}")
    wait_until(lambda: "0x53a" not in rules(), "the rules are gone")
    assert accept_mark() == "0"
    assert not client.host.run(["ss", "-Htln"]).stdout
    agent.request("POST", "/pods", {"uid": client.uid, "netns": client.host.netns_path})
    assert "0x53a" in rules()


def test_a_pod_that_leaves_and_comes_back_at_once_is_whole(mesh: Cluster) -> None:
    """What the one does to its namespace does not come after what the other does."""
    agent, client, server = mesh.agents[1], mesh.pods["client"], mesh.pods["server"]
    for _ in range(20):
        assert agent.request("DELETE", f"/pods/{server.uid}")[0] == 200
        assert agent.request("POST", "/pods", {"uid": server.uid, "netns": server.host.netns_path})[0] == 200
        with server.listen(9100) as listener:
            listener.settimeout(2 * PACE)
            with client.connect(server.ip, 9100):
                listener.accept()[0].close()


def test_a_pod_is_enrolled_in_under_50_ms_with_100_enrolled(mesh: Cluster, record_property: pytest.RecordProperty) -> None:
    agent = mesh.agents[0]
    pods = [mesh.pod(0, f"p{number}", account=f"a{number % 10}") for number in range(PODS)]
    mesh.apply()
    wait_until(lambda: len(agent.get("/status")["pods"]) == PODS + 1, "all are in", 30)
    wait_until(lambda: agent.get("/status")["ready"], "all have their certificates")
    times = []
    for pod in pods[:20]:
        assert agent.request("DELETE", f"/pods/{pod.uid}")[0] == 200
        status, answer = agent.request("POST", "/pods", {"uid": pod.uid, "netns": pod.host.netns_path})
        assert status == 200, answer
        times.append(answer["enrolled_ms"])
    record_property(f"enrolling a pod, {PODS} enrolled", f"median {statistics.median(times):.1f} ms, worst {max(times):.1f} ms")
    assert statistics.median(times) < 50


def test_memory_at_rest(mesh: Cluster, record_property: pytest.RecordProperty) -> None:
    agent = mesh.agents[1]
    pids = all_pids(agent)
    assert len(pids) == 4  # agent, zygote, two workers
    parts = {pid: pss_mb([pid]) for pid in pids}
    total = sum(parts.values())
    summands = " + ".join(f"{part:.1f}" for part in parts.values())
    record_property("memory at rest, agent and two workers (PSS)", f"{total:.1f} MB = {summands}")
    assert total < 90


def test_the_loader_does_not_stay(mesh: Cluster) -> None:
    for agent in mesh.agents:
        for pid in all_pids(agent):
            assert "libbcc" not in Path(f"/proc/{pid}/maps").read_text()
            assert b"loader" not in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_a_restart_adopts_a_hundred_pods(mesh: Cluster) -> None:
    agent = mesh.agents[0]
    before = len(agent.get("/status")["pods"])
    agent.kill(signal.SIGKILL)
    agent.start()
    wait_until(lambda: len(agent.get("/status")["pods"]) == before, "all are in", 20)
    assert agent.get("/status")["kernel"]["adopted"]
    assert path_of(mesh, mesh.pods["server"], 9004) == "mesh"
    assert len(os.listdir(f"/proc/{agent.process.pid if agent.process else 0}/fd")) < before * 3 + 60
