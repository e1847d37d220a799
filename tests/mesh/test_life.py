"""How a node begins, ends and survives: drains, kills, restarts, and the clear words for what can't be."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeproxy.cli.version import form
from nodeproxy.kernel.steering import Steering
from nodeproxy.lab.topology import remove_netns
from tests.mesh.cluster import Agent, Cluster, MeshPod, exactly, wait_until
from tests.pace import PACE

_REFUSED = (ConnectionRefusedError, ConnectionResetError, TimeoutError)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    try:
        made.pod(0, "client")
        made.pod(1, "server")
        made.pod(0, "outsider", protocol="TCP")
        made.pod(1, "doomed")
        yield made
    finally:
        made.close()


@pytest.fixture
def mesh(cluster: Cluster) -> Cluster:
    """Both agents run, with the mesh file as it should be and nothing in their logs."""
    cluster.write()
    for agent in cluster.agents:
        if agent.process is None:
            agent.log_path.unlink(missing_ok=True)
            agent.arguments = []
            agent.start(wait=False)
    for agent in cluster.agents:
        agent.wait_ready()
    wait_until(lambda: passes(cluster), "traffic passes")
    return cluster


def joined(mesh: Cluster, port: int = 9000) -> tuple[socket.socket, socket.socket]:
    server = mesh.pods["server"]
    with server.listen(port) as listener:
        ours = mesh.pods["client"].connect(server.ip, port)
        theirs, _ = listener.accept()
        theirs.settimeout(10)
        return ours, theirs


def passes(mesh: Cluster, port: int = 9001) -> bool:
    """Whether a new connection carries bytes."""
    server = mesh.pods["server"]
    with server.listen(port) as listener:
        listener.settimeout(0.5 * PACE)
        try:
            with mesh.pods["client"].connect(server.ip, port) as ours:
                ours.settimeout(2 * PACE)
                theirs, _ = listener.accept()
                with theirs:
                    ours.sendall(b"?")
                    if theirs.recv(1) != b"?":
                        return False
                    theirs.sendall(b"!")
                    return ours.recv(1) == b"!"
        except (OSError, TimeoutError):
            return False


class Knocking(threading.Thread):
    """Connects to the server's port again and again, straight to the application's listener: counts what got through."""

    def __init__(self, source: MeshPod, server: MeshPod, port: int) -> None:
        super().__init__(daemon=True)
        self.source, self.server, self.port = source, server, port
        self.listener = server.listen(port)
        self.listener.settimeout(0.05)
        self.through = 0
        self.tried = 0
        self.stopping = threading.Event()
        self.accepting = threading.Thread(target=self._accept, daemon=True)
        self.accepting.start()
        self.start()

    def _accept(self) -> None:
        while not self.stopping.is_set():
            try:
                sock, _ = self.listener.accept()
            except TimeoutError:
                continue
            self.through += 1
            sock.close()

    def run(self) -> None:
        while not self.stopping.is_set():
            self.tried += 1
            try:
                with self.source.connect(self.server.ip, self.port) as sock:
                    sock.settimeout(0.2)
                    sock.sendall(b"x")
            except OSError:
                continue

    def end(self) -> None:
        self.stopping.set()
        self.join(10)
        self.accepting.join(10)
        self.listener.close()


def test_a_drain_lets_connections_end(mesh: Cluster) -> None:
    ours, theirs = joined(mesh)
    agent = mesh.agents[1]
    assert agent.process is not None
    agent.process.send_signal(signal.SIGTERM)
    wait_until(lambda: "ending:" in agent.log(), "the agent says that it ends")
    wait_until(lambda: not passes(mesh), "no new connection is taken")
    ours.sendall(b"still here")
    assert exactly(theirs, 10) == b"still here"
    theirs.sendall(b"me too")
    assert exactly(ours, 6) == b"me too"
    ours.close()
    theirs.close()
    assert agent.process.wait(10) == 0
    agent.process = None


def test_the_grace_period_ends(mesh: Cluster) -> None:
    agent = mesh.agents[0]
    agent.kill(signal.SIGTERM)
    agent.arguments = ["--grace-s", "6"]
    agent.start()
    ours, theirs = joined(mesh)
    before = time.monotonic()
    agent.kill(signal.SIGTERM)
    assert time.monotonic() - before < 5
    with pytest.raises(ConnectionResetError):
        ours.recv(1)
    row = next(row for row in agent.access_log() if "drained" in row.get("error", ""))
    assert row["direction"] == "outbound"
    ours.close()
    theirs.close()


@pytest.mark.parametrize("number", [0, 1])
def test_a_killed_agent_leaves_the_node_closed_and_the_next_one_opens_it(
    mesh: Cluster, number: int, record_property: pytest.RecordProperty
) -> None:
    """Not one packet of a connection passes between SIGKILL and the next start, in either direction."""
    assert passes(mesh)
    agent = mesh.agents[number]
    agent.kill(signal.SIGKILL)
    knocking = Knocking(mesh.pods["client"], mesh.pods["server"], 9002)
    try:
        wait_until(lambda: knocking.tried > 50 or knocking.through, "tries")
        assert knocking.through == 0
    finally:
        knocking.end()
    before = time.monotonic()
    agent.start()
    took = time.monotonic() - before
    assert agent.get("/status")["kernel"]["adopted"] is True
    assert wait_until(lambda: passes(mesh), "traffic is back")
    record_property(f"start to ready, pins adopted (node {number})", f"{took:.2f} s")


def test_plain_traffic_from_outside_is_closed_too(mesh: Cluster) -> None:
    """A peer that is not in the mesh reaches a pod of a killed agent no more than a mesh peer does."""
    mesh.agents[1].kill(signal.SIGKILL)
    knocking = Knocking(mesh.pods["outsider"], mesh.pods["server"], 9003)
    try:
        wait_until(lambda: knocking.tried > 20 or knocking.through, "tries")
        assert knocking.through == 0
    finally:
        knocking.end()


def test_workers_are_of_the_form_that_version_tells(mesh: Cluster) -> None:
    agent = mesh.agents[0]
    version = mesh.lab.nodes[0].run([sys.executable, "-m", "nodeproxy", "version", "-o", "json"])
    told = json.loads(version.stdout)["form"]
    assert told == form(), "what the tests start is what they import"
    for worker in agent.get("/status")["workers"]:
        loaded = Path(f"/proc/{worker['pid']}/maps").read_text()
        assert ("nodeproxy__mypyc" in loaded) == (told == "compiled")


def test_a_killed_worker_is_replaced(mesh: Cluster) -> None:
    agent = mesh.agents[0]
    pairs = [joined(mesh, 9100 + number) for number in range(8)]
    (victim, other) = agent.get("/status")["workers"]
    os.kill(victim["pid"], signal.SIGKILL)
    before = time.monotonic()
    wait_until(
        lambda: (
            [worker["ready"] for worker in agent.get("/status")["workers"]] == [True, True]
            and victim["pid"] not in [worker["pid"] for worker in agent.get("/status")["workers"]]
        ),
        "a new worker",
    )
    assert time.monotonic() - before < 1.5 * PACE
    assert other["pid"] in [worker["pid"] for worker in agent.get("/status")["workers"]]
    assert sum(worker["restarts"] for worker in agent.get("/status")["workers"]) == 1
    alive = 0
    for ours, theirs in pairs:
        ours.settimeout(2)
        try:
            ours.sendall(b"a")
            alive += exactly(theirs, 1) == b"a"
        except OSError:
            pass
        ours.close()
        theirs.close()
    assert 0 < alive < 8, "only the dead worker's connections are lost"
    for number in range(20):
        assert passes(mesh, 9200 + number)
    assert re.findall(r"^nodeproxy_worker_restarts_total (.*)$", agent.metrics(), re.MULTILINE) == ["1.0"]


def test_a_killed_zygote_is_replaced(mesh: Cluster) -> None:
    agent = mesh.agents[0]
    worker = agent.get("/status")["workers"][0]
    with open(f"/proc/{worker['pid']}/stat") as file:
        zygote = int(file.read().rsplit(") ", 1)[1].split()[1])
    assert agent.process is not None
    assert zygote not in (agent.process.pid, 1)
    os.kill(zygote, signal.SIGKILL)
    wait_until(
        lambda: (
            len(workers := agent.get("/status")["workers"]) == 2
            and all(each["ready"] and each["pid"] != worker["pid"] for each in workers)
        ),
        "new workers",
    )
    assert wait_until(lambda: passes(mesh), "traffic is back")


def test_starting_twice_is_refused(mesh: Cluster) -> None:
    agent = mesh.agents[0]
    assert agent.process is not None
    second = Agent(mesh, 0)
    second.log_path = mesh.directory / "second"
    second.start(wait=False)
    assert second.process is not None
    assert second.process.wait(10) == 1
    second.process = None
    assert f"instance {agent.instance} runs already, as process {agent.process.pid}" in second.log()
    assert passes(mesh)


def test_a_broken_mesh_file_at_start(mesh: Cluster) -> None:
    """With a state from before, the node serves it; without one, it says what is wrong and ends."""
    agent = mesh.agents[0]
    agent.kill(signal.SIGKILL)
    agent.mesh.write_text("workloads:\n  - uid: [unclosed\n")
    agent.start()
    assert wait_until(lambda: passes(mesh), "traffic is back")
    assert f"{agent.mesh}:" in agent.get("/status")["state"]["error"]
    fresh = Agent(mesh, 0)
    fresh.instance += "-fresh"
    fresh.run_dir = mesh.directory / "fresh"
    fresh.log_path = mesh.directory / "fresh-log"
    fresh.arguments = ["--admin", "off", "--metrics", "off", "--ready", "off"]
    fresh.start(wait=False)
    assert fresh.process is not None
    assert fresh.process.wait(20) == 1
    Steering.uninstall(fresh.instance)
    assert f"{agent.mesh}:2:" in fresh.log() or f"{agent.mesh}:3:" in fresh.log()
    assert "Traceback" not in fresh.log()


def test_an_edit_that_cannot_be_stored_is_refused_whole(mesh: Cluster) -> None:
    agent = mesh.agents[0]
    mesh.write()
    wait_until(lambda: not agent.get("/status")["state"]["error"], "the file is good")
    before = agent.get("/status")["state"]
    mesh.extra_workloads.append({"uid": "long" * 200, "namespace": "shop", "workloadIps": ["10.99.0.1"]})
    mesh.write()
    error = wait_until(lambda: agent.get("/status")["state"]["error"], "the edit is refused")
    assert "above 511 bytes" in error
    assert {**agent.get("/status")["state"], "error": ""} == before
    assert passes(mesh)
    mesh.extra_workloads.clear()
    mesh.write()
    wait_until(lambda: not agent.get("/status")["state"]["error"], "the mended file is taken")
    assert passes(mesh)


def test_a_damaged_store_is_made_anew_and_told(mesh: Cluster) -> None:
    agent = mesh.agents[0]
    agent.kill(signal.SIGKILL)
    (data,) = (agent.run_dir / "state").glob("data*")
    data.write_bytes(b"no database at all" * 1000)
    agent.start()
    assert wait_until(lambda: passes(mesh), "traffic is back")
    assert "thrown away" in agent.log()


def test_a_namespace_that_has_gone_is_forgotten(mesh: Cluster) -> None:
    agent = mesh.agents[1]
    server = mesh.pods["doomed"]
    with server.listen(9400) as listener, mesh.pods["client"].connect(server.ip, 9400):
        listener.accept()[0].close()
    inode = os.stat(server.host.netns_path).st_ino
    remove_netns(server.host.netns_name)
    row = wait_until(
        lambda: next((row for row in agent.get("/status")["pods"] if row["uid"] == server.uid and row["error"]), None),
        "the pod is reported",
    )
    assert "gone" in row["error"]

    def held() -> set[int]:
        """What the agent and its workers have open; direct connections of the pod are ended first."""
        found = set()
        for pid in agent.pids():
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(FileNotFoundError):
                    found.add(os.stat(f"/proc/{pid}/fd/{fd}").st_ino)
        return found

    wait_until(lambda: inode not in held(), "nobody keeps the namespace alive", 2)


def test_a_full_descriptor_table_refuses_by_name_and_recovers(mesh: Cluster) -> None:
    agent, client, server = mesh.agents[0], mesh.pods["client"], mesh.pods["server"]
    for worker in agent.get("/status")["workers"]:
        used = len(os.listdir(f"/proc/{worker['pid']}/fd"))
        subprocess.run(["prlimit", "--pid", str(worker["pid"]), f"--nofile={used + 40}:"], check=True)
    held = []
    with server.listen(9300) as listener:
        listener.setblocking(False)
        for _ in range(300):
            try:
                sock = client.connect(server.ip, 9300)
            except OSError:
                continue
            held.append(sock)
        wait_until(lambda: 'reason="no_descriptors"' in agent.metrics(), "the refusal is counted")
        assert any("no_descriptors" in row.get("error", "") for row in agent.access_log())
        for sock in held:
            sock.close()
    assert wait_until(lambda: passes(mesh, 9301), "it recovers")


def test_uninstall_leaves_the_pods_plain_and_nothing_behind(mesh: Cluster) -> None:
    agent, client, server = mesh.agents[0], mesh.pods["client"], mesh.pods["server"]
    arguments = ["uninstall", "--cgroup-root", str(mesh.cgroup)]
    refused = agent.nodeproxy(*arguments)
    assert refused.returncode == 1
    assert "runs" in refused.stderr or "in use" in refused.stderr
    agent.kill(signal.SIGTERM)
    assert not passes(mesh)
    done = agent.nodeproxy(*arguments)
    assert done.returncode == 0, done.stderr
    mesh.agents[1].request("DELETE", f"/pods/{server.uid}")
    assert passes(mesh)
    assert "0x53a" not in client.host.run(["ip", "rule"]).stdout
    assert not agent.run_dir.exists()
    assert not Path(f"/sys/fs/bpf/nodeproxy/{agent.instance}").exists()
    assert not (mesh.cgroup / f"nodeproxy-{agent.instance}").exists()
    mesh.agents[1].request("POST", "/pods", {"uid": server.uid, "netns": server.host.netns_path})


def test_without_capabilities_the_error_says_what_to_do(mesh: Cluster) -> None:
    agent = mesh.agents[0]
    agent.kill(signal.SIGTERM)
    argv = ["setpriv", "--bounding-set", "-sys_admin,-bpf,-net_admin", "--inh-caps", "-sys_admin,-bpf,-net_admin"]
    command = [*argv, sys.executable, "-m", "nodeproxy", "run", "--node", "n", "--mesh", str(agent.mesh), "--ca", str(mesh.ca)]
    command += ["--instance", f"{mesh.prefix}-weak", "--run-dir", str(mesh.directory / "weak"), "--cgroup-root", str(mesh.cgroup)]
    done = mesh.lab.nodes[0].run(command)
    assert done.returncode == 1
    assert "CAP_" in done.stderr
    assert "Traceback" not in done.stderr
