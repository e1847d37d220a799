"""The rows about one agent alone: how it starts, enrols, and carries a large state.  Only nodeproxy has them."""

from __future__ import annotations

import json
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from nodeproxy.kernel.steering import Steering
from tests.bench import processes
from tests.bench.contestants.nodeproxy import Mesh, TreeAgent, wait_serving
from tests.bench.rows import Values
from tests.bench.world import World
from tests.mesh import delta_source, large_state
from tests.mesh.cluster import wait_until
from tests.mesh.large_state import Node

# A file of 100,000 workloads is read in 6 s of CPU, on a machine that may be busy.
_LOAD_TIMEOUT_S = 120.0
# Often enough to see a peak of a tenth of a second, seldom enough to leave a core to what is measured.
_SAMPLE_S = 0.05
_WORKLOADS_A_SERVICE = 10
_CHANGES = 30


@dataclass(frozen=True)
class AgentRow:
    """A measurement that makes an agent of its own.  Fields as those of `Row`."""

    name: str
    title: str
    measure: Callable[[World], Values]
    quick: bool = True
    max_rounds: int | None = None


@contextmanager
def _own_agent(world: World, pods: int) -> Iterator[Mesh]:
    """One node with pods that are in the mesh file; its agent does not run yet."""
    mesh = Mesh(world, world.options.tree, ["--workers", str(world.options.workers)], nodes=1)
    try:
        for number in range(pods):
            mesh.pod(0, f"p{number}")
        yield mesh
    finally:
        mesh.close()


def _start_s(agent: TreeAgent) -> float:
    began = time.monotonic()
    agent.start(wait=True)
    return time.monotonic() - began


def _start(adopting: bool) -> Callable[[World], Values]:
    def measure(world: World) -> Values:
        with _own_agent(world, 1) as mesh:
            mesh.cluster.write()
            agent = mesh.agents[0]
            Steering.uninstall(agent.instance)
            taken = _start_s(agent)
            if adopting:
                agent.end()
                taken = _start_s(agent)
        return {"s": taken}

    return measure


def _enrol(count: int) -> Callable[[World], Values]:
    def measure(world: World) -> Values:
        with _own_agent(world, count) as mesh:
            pods, mesh.cluster.pods = mesh.cluster.pods, {}
            mesh.cluster.extra_workloads = [pod.entry for pod in pods.values()]
            mesh.start()
            agent = mesh.agents[0]
            mesh.cluster.pods, mesh.cluster.extra_workloads = pods, []
            began = time.monotonic()
            mesh.cluster.write()
            wait_until(lambda: len(agent.get("/status")["pods"]) == count, "all pods are enrolled", _LOAD_TIMEOUT_S)
            wait_serving(agent)
            return {"ms": (time.monotonic() - began) * 1000}

    return measure


def _state(count: int) -> Callable[[World], Values]:
    def measure(world: World) -> Values:
        with _own_agent(world, 1) as mesh:
            mesh.start()
            agent = mesh.agents[0]
            at_rest = processes.pss_bytes(mesh.pids())
            mesh.cluster.extra_workloads, mesh.cluster.services = workloads(count), services(count // _WORKLOADS_A_SERVICE)
            with Peak(mesh.pids) as peak:
                loading_ms = _until_in_use(agent, mesh)
            loaded = processes.pss_bytes(mesh.pids())
            mesh.cluster.extra_workloads[0]["serviceAccount"] = "another"
            changing_ms = _until_in_use(agent, mesh)
        return {
            "added_mb": (loaded - at_rest) / 1e6,
            "peak_added_mb": (max(peak.bytes, loaded) - at_rest) / 1e6,
            "load_ms": loading_ms,
            "change_ms": changing_ms,
        }

    return measure


@contextmanager
def _told_by_deltas(world: World) -> Iterator[Node]:
    """A node whose agent has its state from deltas, as from a control plane."""
    mesh = Mesh(world, world.options.tree, ["--workers", str(world.options.workers)], nodes=1)
    try:
        large_state.populate(mesh.cluster)
        mesh.agents[0].module = delta_source.__name__
        mesh.start()
        node = Node(mesh.cluster)
        try:
            yield node
        finally:
            node.close()
    finally:
        mesh.close()


def _change(count: int) -> Callable[[World], Values]:
    def measure(world: World) -> Values:
        with _told_by_deltas(world) as node:
            node.load(large_state.workloads(count))
            return {"ms": statistics.median(node.change_ms() for _ in range(_CHANGES))}

    return measure


def _policies(count: int) -> Callable[[World], Values]:
    def measure(world: World) -> Values:
        with _told_by_deltas(world) as node:
            before = node.pss_mb()
            node.load(large_state.policies(count))
            took_ms = statistics.median(node.connect_ms() for _ in range(_CHANGES))
            return {"ms": took_ms, "added_mb": node.pss_mb() - before}

    return measure


def _until_in_use(agent: TreeAgent, mesh: Mesh) -> float:
    """Milliseconds from the moment that a new mesh file is there until the agent's state is of it."""
    before = agent.get("/status")["state"]["epoch"]
    content: dict[str, Any] = {
        "workloads": [*(pod.entry for pod in mesh.cluster.pods.values()), *mesh.cluster.extra_workloads],
        "services": mesh.cluster.services,
        "policies": [],
        "pods": [{"uid": pod.uid, "netns": pod.host.netns_path} for pod in mesh.cluster.pods.values()],
    }
    temporary = agent.mesh.with_suffix(".new")
    temporary.write_text(json.dumps(content), encoding="ascii")
    began = time.monotonic()
    os.replace(temporary, agent.mesh)

    def in_use() -> bool:
        try:
            return bool(agent.get("/status")["state"]["epoch"] > before)
        except TimeoutError:
            return False  # it is busy with just that

    wait_until(in_use, "the mesh file is in use", _LOAD_TIMEOUT_S)
    return (time.monotonic() - began) * 1000


def workloads(count: int) -> list[dict[str, Any]]:
    """Pods of other nodes, each in a service of ten."""
    return [
        {
            "uid": f"Kubernetes//Pod/many/w{number}",
            "name": f"w{number}",
            "namespace": "many",
            "serviceAccount": f"a{number // _WORKLOADS_A_SERVICE}",
            "workloadIps": [f"10.{64 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"],
            "protocol": "HBONE",
            "node": f"other{number // 200}",
            "services": {f"many/s{number // _WORKLOADS_A_SERVICE}.many.svc": {"80": 8080}},
        }
        for number in range(count)
    ]


def services(count: int) -> list[dict[str, Any]]:
    return [
        {
            "name": f"s{number}",
            "namespace": "many",
            "hostname": f"s{number}.many.svc",
            "vips": [f"/10.{128 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"],
            "ports": {"80": 8080},
        }
        for number in range(count)
    ]


class Peak:
    """The most memory that processes have together within a `with` block, by sampling."""

    def __init__(self, pids: Callable[[], list[int]]) -> None:
        self._pids = pids
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.bytes = 0

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(_SAMPLE_S):
            try:
                self.bytes = max(self.bytes, processes.pss_bytes(self._pids()))
            except (FileNotFoundError, ProcessLookupError):
                continue  # a helper process of the agent's ended while it was looked at


AGENT = [
    AgentRow("start_fresh", "agent: start to ready, eBPF compiled afresh", _start(False)),
    AgentRow("start_adopting", "agent: start to ready, pins adopted", _start(True)),
    AgentRow("enrol_1", "agent: 1 pod from the mesh file's edit to its certificate", _enrol(1)),
    AgentRow("enrol_100", "agent: 100 pods at once, the same", _enrol(100), quick=False, max_rounds=3),
    AgentRow("enrol_250", "agent: 250 pods at once, the same", _enrol(250), quick=False, max_rounds=2),
    AgentRow(
        "change_100",
        "agent: change of one of 100 workloads until a worker has acted on it",
        _change(100),
        quick=False,
        max_rounds=3,
    ),
    AgentRow("change_100000", "agent: the same, one of 100,000", _change(100_000), quick=False, max_rounds=2),
    AgentRow("policies_0", "agent: a connection where no policy holds", _policies(0), quick=False, max_rounds=3),
    AgentRow(
        "policies_10000",
        "agent: a connection where 10,000 policies of 10 rules hold",
        _policies(10_000),
        quick=False,
        max_rounds=2,
    ),
    AgentRow("state_1000", "agent: 1,000 workloads in state", _state(1000), max_rounds=3),
    AgentRow("state_10000", "agent: 10,000 workloads in state", _state(10_000), quick=False, max_rounds=2),
    AgentRow("state_100000", "agent: 100,000 workloads in state", _state(100_000), quick=False, max_rounds=1),
]
