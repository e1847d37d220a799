"""A cluster in which pods are in the mesh by label: agents beside kubelets, the plug-in in the nodes' chains."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from tests.cluster.apiserver import ApiServer
from tests.cluster.kubelet_mesh import KubeletMesh
from tests.cluster.mesh import ControlPlane
from tests.cni_plugin import plugin
from tests.mesh.cluster import Agent, wait_until

PLUGIN = "nodeproxy-cni"
PORT = "8080"
# What a server says: found in a capture, it was said in plain.
WORDS = "in-the-clear-4c1d"
ONCE = {"restartPolicy": "Never"}


class OptInMesh(KubeletMesh):
    """Agents are told which pods to enrol by the controller; `chain` puts the plug-in into the chains of nodes."""

    def __init__(
        self, make_control: Callable[[ApiServer], ControlPlane], namespace: str, account: str, definitions: list[Path]
    ) -> None:
        super().__init__(make_control, namespace, account, definitions)
        for agent in self.cluster.agents:
            agent.arguments += ["--enrolment", "labels", "--node-dir", str(self.node_dir(agent))]

    @classmethod
    @contextmanager
    def chained(cls, definitions: list[Path]) -> Iterator[Self]:
        """One of nodeproxy's controller, whose agents run with the plug-in in their nodes' chains."""
        made = cls.of_controller(definitions)
        try:
            made.chain()
            made.start_agents()
            made.wait_chained()
            yield made
        finally:
            made.close()

    def node_dir(self, agent: Agent) -> Path:
        return self.cluster.directory / f"node-dir{agent.number}"

    def chain(self) -> None:
        """Agents that are started from now on put the plug-in into their nodes' chains."""
        for agent, runtime in zip(self.cluster.agents, self.runtimes, strict=True):
            chain = runtime.chain
            agent.arguments += [
                "--cni-conf-dir",
                str(chain.net_d),
                "--cni-bin-dir",
                str(chain.bin_dir),
                "--cni-plugin",
                str(plugin()),
            ]

    def wait_chained(self) -> None:
        """Until runtimes call the plug-in."""
        for runtime in self.runtimes:
            wait_until(lambda runtime=runtime: runtime.chain.config()["plugins"][-1]["type"] == PLUGIN, "it is in the chain", 30)

    # ── who is in ──

    def is_in(self, number: int, name: str, namespace: str) -> bool:
        """Whether the node's agent says that the pod is served, with its certificate."""
        return (namespace, name) in self.members(number)

    def members(self, number: int) -> set[tuple[str, str]]:
        """(namespace, name) of the pods that a node's agent serves."""
        status = self.cluster.agents[number].get("/status")
        served = (each for each in status["pods"] if each["state"] == "in" and not each["error"] and each["certificate_until"])
        return {(namespace, name) for _, _, _, namespace, name in (each["uid"].split("/") for each in served)}

    def wait_in(self, *pods: tuple[int, str, str], timeout_s: float = 30.0) -> float:
        """Wait until pods (node, name, namespace) are in; when that was."""
        wait_until(lambda: all(self.is_in(*each) for each in pods), f"{pods} are in the mesh", timeout_s, 0.005)
        return time.monotonic()

    def wait_out(self, *pods: tuple[int, str, str], timeout_s: float = 30.0) -> float:
        """Wait until none of them is in; when that was."""
        wait_until(lambda: not any(self.is_in(*each) for each in pods), f"{pods} are out of the mesh", timeout_s, 0.005)
        return time.monotonic()

    # ── what programs of pods said ──

    def finished(self, number: int, name: str, namespace: str, container: str = "app", timeout_s: float = 30.0) -> str:
        """What a pod printed that runs to its end."""
        self.phase(name, namespace, ("Succeeded", "Failed"), timeout_s)
        return self.runtimes[number].output(namespace, name, container).strip()

    def phase(self, name: str, namespace: str, wanted: Iterable[str], timeout_s: float = 30.0) -> None:
        """Wait until the API server knows a pod to be in one of these phases."""

        def reached() -> bool:
            return self.api.get("Pod", name, namespace)["status"].get("phase") in wanted

        wait_until(reached, f"{namespace}/{name} is {wanted}", timeout_s, 0.05)

    def stopped(self, number: int, name: str, namespace: str) -> str:
        """End a pod as people do; what its program said at its end."""
        self.api.end_pod(name, namespace)
        self.ended(name, namespace)
        return self.runtimes[number].output(namespace, name, "app").strip()

    def load(self, number: int, name: str, namespace: str) -> Load:
        """End a pod that makes load; what came of its connections."""
        return Load(self.stopped(number, name, namespace))


class Load:
    """What `pod load` says at its end."""

    def __init__(self, said: str) -> None:
        match = re.fullmatch(r"made (\d+) failed (\d+) first (\w+) at ([0-9.]+)", said)
        assert match, f"no end of a load: {said!r}"
        self.made, self.failed, self.first = int(match[1]), int(match[2]), f"{match[3]} at {match[4]} s"

    def __str__(self) -> str:
        return f"{self.failed} of {self.made + self.failed} failed" + (f", the first by {self.first}" if self.failed else "")
