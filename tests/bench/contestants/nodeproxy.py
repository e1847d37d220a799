"""nodeproxy between two nodes and within one, run as a user would run it; with --against a second build of it as well."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from nodeproxy.config import RunConfig
from tests.bench import processes
from tests.bench.contestant import Contestant
from tests.bench.world import World, prepared
from tests.mesh.cluster import Agent, Cluster, MeshPod, wait_until

SERVING_TIMEOUT_S = 30.0


class TreeAgent(Agent):
    """An agent of some checkout's nodeproxy.  module: what is run."""

    module = "nodeproxy"

    def __init__(self, cluster: Cluster, number: int, tree: Path, arguments: list[str]) -> None:
        super().__init__(cluster, number)
        self.tree = tree
        self.arguments = arguments

    def start(self, wait: bool = True) -> None:
        node = self.cluster.lab.nodes[self.number]
        argv = [sys.executable, "-m", self.module, "run", "--node", self.name, *self.source]
        argv += ["--instance", self.instance, "--cgroup-root", str(self.cluster.cgroup)]
        argv += ["--run-dir", str(self.run_dir), "--log-format", "json", "--grace-s", "6", *self.arguments]
        environment = {**os.environ, "PYTHONPATH": str(self.tree)}
        with self.log_path.open("ab") as log:
            options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "start_new_session": True}
            self.process = node.popen(argv, cwd=self.tree, env=environment, **options)
        if wait:
            self.wait_ready()

    def forget_state(self) -> None:
        """What an earlier one has kept is gone; while none runs."""
        shutil.rmtree(self.run_dir, ignore_errors=True)

    def end(self) -> None:
        """SIGKILL, so that it takes no time; its pins stay."""
        if self.process is not None:
            self.kill(signal.SIGKILL)


class Mesh:
    """A cluster of two nodes, started with the first contestant that uses it."""

    def __init__(self, world: World, tree: Path, arguments: list[str], nodes: int = 2) -> None:
        self.cluster = Cluster(nodes)
        world.closing.callback(self.close)
        # Cluster moves this process below the cgroup that is steered; only programs in its pods belong there.
        (world.home / "cgroup.procs").write_text(str(os.getpid()))
        self.agents = [TreeAgent(self.cluster, number, tree, arguments) for number in range(nodes)]
        self.cluster.agents = list(self.agents)
        self.running = self.closed = False

    def pod(self, node: int, name: str) -> MeshPod:
        pod = self.cluster.pod(node, name)
        prepared(pod.host)
        return pod

    def start(self) -> None:
        if not self.running:
            self.running = True
            self.cluster.start()
            for agent in self.agents:
                wait_serving(agent)

    def restart(self) -> None:
        for agent in self.agents:
            agent.end()
        self.running = False
        self.start()

    def pids(self) -> list[int]:
        return [pid for agent in self.agents if agent.process for pid in processes.tree(agent.process.pid)]

    def stop(self) -> None:
        for agent in self.agents:
            agent.end()
        self.running = False

    def close(self) -> None:
        """Remove its nodes; once is enough."""
        if not self.closed:
            self.closed = True
            self.cluster.close()


def wait_serving(agent: Agent) -> None:
    """Until each enrolled pod has its certificate."""
    wait_until(
        lambda: all(not pod["error"] and pod["certificate_until"] > 0 for pod in agent.get("/status")["pods"]),
        "every pod has a certificate",
        SERVING_TIMEOUT_S,
    )


class Nodeproxy:
    """A way between two enrolled pods."""

    def __init__(self, name: str, title: str, baseline: str, mesh: Mesh, client: MeshPod, server: MeshPod) -> None:
        self.name, self.title, self.baseline = name, title, baseline
        self.mesh, self._client = mesh, client
        self.client, self.server = client.host, server.host
        self.tools_cgroup = mesh.cluster.programs
        # A pod has at most a quarter of a worker's descriptors: 10,000 connections do not fit where the limit is 20,000.
        self.twin: Nodeproxy | None = None
        self.start, self.restart, self.stop, self.pids = mesh.start, mesh.restart, mesh.stop, mesh.pids

    def address(self, port: int) -> tuple[str, int]:
        return self.server.address4, port

    def chill(self) -> None:
        """The client leaves the mesh and comes back: its tunnels end with its leaving."""
        agent = self.mesh.agents[self.client.node]
        agent.request("DELETE", f"/pods/{self._client.uid}")
        status, answer = agent.request("POST", "/pods", {"uid": self._client.uid, "netns": self.client.netns_path})
        if status != 200:
            raise OSError(f"{self.name}: the client could not be enrolled again: {answer}")
        wait_serving(agent)


def _way(name: str, title: str, mesh: Mesh, node: int) -> Nodeproxy:
    """A way from node 0 to `node`, with its twin."""
    baseline = "direct" if node else "direct-node"
    short = "far" if node else "near"
    pairs = [(mesh.pod(0, f"to-{short}{number}"), mesh.pod(node, f"{short}{number}")) for number in (1, 2)]
    made, twin = (Nodeproxy(name, title, baseline, mesh, client, server) for client, server in pairs)
    made.twin = twin
    return made


def _build(world: World, tree: Path, suffix: str) -> list[Contestant]:
    """The ways of one build of nodeproxy."""
    mesh = Mesh(world, tree, ["--workers", str(world.options.workers)])
    return [
        _way(f"nodeproxy-node{suffix}", f"nodeproxy{suffix}, same node", mesh, 0),
        _way(f"nodeproxy{suffix}", f"nodeproxy{suffix}, between nodes", mesh, 1),
    ]


def contestants(world: World) -> list[Contestant]:
    options = world.options
    found = _build(world, options.tree, "")
    if "same_node" in RunConfig.__dataclass_fields__:
        mesh = Mesh(world, options.tree, ["--workers", str(options.workers), "--same-node", "hbone"])
        found.insert(1, _way("nodeproxy-node-hbone", "nodeproxy, same node through the proxy", mesh, 0))
    if options.against is not None:
        found += _build(world, options.against, "-against")
    return found
