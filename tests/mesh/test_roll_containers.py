"""As a DaemonSet with maxSurge rolls: agents in network and pid namespaces of their own, told by a control plane, with its CA."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mesh.cluster import ENTRY, Agent, wait_until
from tests.mesh.control_plane import ControlledCluster
from tests.mesh.roll import TAKE_S, Load, ended, greeters, took_over

_numbers = itertools.count()


class Contained(Agent):
    """An agent in a pod of its own on the node's network, and the first process of its pid namespace."""

    def __init__(self, cluster: ControlledCluster, number: int) -> None:
        super().__init__(cluster, number)
        count = next(_numbers)
        self.source = cluster.agents[number].source
        self.host = cluster.lab.pod(number, f"agent{count}")
        self.log_path = cluster.directory / f"log-agent{count}"
        self.arguments = ["--takeover", "--wait-after-handover"]

    def start(self, wait: bool = True) -> None:
        argv = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, *ENTRY, "run", "--node", self.name]
        argv += [*self.source, "--instance", self.instance, "--cgroup-root", str(self.cluster.cgroup)]
        argv += ["--run-dir", str(self.run_dir), "--log-format", "json", *self.arguments]
        with self.log_path.open("ab") as log:
            self.process = self.host.popen(argv, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        if wait:
            self.wait_ready()

    def terminate(self) -> None:
        """As the kubelet does."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGTERM)

    def roll(self) -> Contained:
        """Its successor, which serves; this one waits to be ended."""
        new = Contained(self.cluster, self.number)  # type: ignore[arg-type]  # a ControlledCluster, as this one was made with
        new.start(wait=False)
        wait_until(lambda: took_over(new), "it has taken over", TAKE_S)
        new.wait_ready()
        self.cluster.agents[self.number] = new
        return new


@pytest.fixture
def mesh() -> Iterator[ControlledCluster]:
    made = ControlledCluster()
    try:
        for name, node in (("a", 0), ("b", 1)):
            made.pod(node, name)
        made.server.put(*(made.message(each) for each in made.pods.values()))
        made.serve()
        made.agents = [Contained(made, number) for number in (0, 1)]
        for agent in made.agents:
            agent.start(wait=False)
        for agent in made.agents:
            agent.wait_ready()
        for each in made.pods.values():
            made.enrol(each)
        with greeters(list(made.pods.values())):
            yield made
    finally:
        made.close()


def test_pods_of_a_daemonset_follow_one_another(mesh: ControlledCluster) -> None:
    """The second time while the control plane is away: what the one before knows, and its certificates, are enough."""
    a, b = mesh.pods["a"], mesh.pods["b"]
    loads = [Load(a, [b.ip], 30), Load(b, [a.ip], 30)]
    olds: list[Contained] = []
    try:
        for away in (False, True):
            if away:
                mesh.server.stop()
            for agent in list(mesh.agents):
                assert isinstance(agent, Contained)
                agent.roll()
                wait_until(lambda agent=agent: "drained; waits for SIGTERM" in agent.log(), "it waits to be ended")
                agent.terminate()
                olds.append(agent)
    finally:
        told = [load.end() for load in loads]
    assert [ended(old) for old in olds] == [0, 0, 0, 0]
    assert [failure for each in told for failure in each["failures"]] == []
    assert all(each["tried"] > 100 for each in told)
    for agent in mesh.agents:
        status = agent.get("/status")
        assert status["ready"]
        assert [pod["error"] for pod in status["pods"]] == [""]
