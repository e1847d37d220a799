"""The control planes that are measured, each with the account whose tokens its subscribers show.

A further one is one more `Plane`: `make` gives what the tests of tests/cluster drive, `replica.Controller` or `Istiod`.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.bench import processes
from tests.bench.control_plane.subscribers import Plan
from tests.cluster import istiod, replica
from tests.cluster.apiserver import ApiError, ApiServer
from tests.cluster.kinds import Object, pod


class ControlPlane(Protocol):
    """A running one."""

    address: str
    process: subprocess.Popen[bytes] | None
    start_timeout_s: float
    start_poll_s: float

    def start(self) -> None:
        """Returns when it is ready: it has read the cluster and answers."""

    def roots(self) -> Path: ...

    def close(self) -> None: ...

    def log(self) -> str: ...


@dataclass(frozen=True)
class Plane:
    """A contestant.  namespace, account: of the node agents' pods."""

    name: str
    title: str
    baseline: str
    make: Callable[[ApiServer], ControlPlane]
    namespace: str
    account: str


def _istiod(api: ApiServer) -> istiod.Istiod:
    """One that takes as many new streams as come at once: by default, on two cores, it refuses more than 25 a second."""
    return istiod.Istiod(api, PILOT_MAX_REQUESTS_PER_SECOND="1000")


PLANES = (
    Plane("istiod", "istiod", "istiod", _istiod, istiod.NAMESPACE, istiod.NODE_AGENT),
    Plane("nodeproxy", "nodeproxy's controller", "istiod", replica.Controller, replica.NAMESPACE, replica.NODE_AGENT),
)


def pids(control: ControlPlane) -> list[int]:
    """All processes of a control plane."""
    return processes.tree(control.process.pid) if control.process else []


def peak_bytes(control: ControlPlane) -> int:
    """The most memory (RSS) that each of its processes had so far, together; from the kernel, so that no peak is missed."""
    return sum(_peak(Path(f"/proc/{pid}/status").read_text()) for pid in pids(control))


def _peak(status: str) -> int:
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def forget_peak(control: ControlPlane) -> None:
    """From now on, `peak_bytes` is of what follows (proc(5): clear_refs)."""
    for pid in pids(control):
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def agent_pod(plane: Plane, node: str) -> Object:
    """The node agent's pod, as a DaemonSet has it."""
    spec = {"hostNetwork": True}
    return pod(f"agent-{node}", plane.namespace, node=node, ips=["10.0.0.1"], account=plane.account, spec=spec)


def token(api: ApiServer, plane: Plane, node: str) -> str:
    """A token of the node agent of a node."""
    try:
        api.get("Pod", f"agent-{node}", plane.namespace)
    except ApiError:
        api.create(agent_pod(plane, node))
    return api.token(plane.namespace, plane.account, audience=replica.AUDIENCE, pod=f"agent-{node}")


def subscription(api: ApiServer, plane: Plane, control: ControlPlane, nodes: Sequence[str], resources: int) -> Plan:
    """For `Group`: a stream of the agent of each node, with a token of its own."""
    return {
        "address": api.address,
        "port": int(control.address.rpartition(":")[2]),
        "roots": str(control.roots()),
        "tokens": [token(api, plane, node) for node in nodes],
        "nodes": list(nodes),
        "namespace": plane.namespace,
        "resources": resources,
    }
