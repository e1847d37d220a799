"""A node agent whose state comes from a control plane: how soon it is ready, and what it takes."""

from __future__ import annotations

import time

from tests.bench import processes
from tests.bench.agent_rows import Peak
from tests.bench.contestants.nodeproxy import TreeAgent
from tests.bench.control_plane import planes
from tests.bench.control_plane.objects import Size
from tests.bench.control_plane.planes import ControlPlane, Plane
from tests.bench.rows import Values
from tests.cluster.apiserver import ApiServer
from tests.mesh.cluster import wait_until

_READY_S = 300.0


def measure(api: ApiServer, size: Size, plane: Plane, control: ControlPlane, agent: TreeAgent, *, on_demand: bool) -> Values:
    """Start it afresh, until it is ready and, unless it asks on demand, has the whole state.  Ends it."""
    token, roots = agent.cluster.directory / "token", agent.cluster.directory / "roots.pem"
    token.write_text(planes.token(api, plane, agent.name))
    roots.write_bytes(control.roots().read_bytes())
    where = f"https://{control.address}"
    agent.source = ["--source", "xds", "--xds-address", where, "--ca-address", where, "--xds-root-ca", str(roots)]
    agent.source += ["--ca-root-ca", str(roots), "--auth-token", str(token), *(["--xds-on-demand"] if on_demand else [])]
    agent.forget_state()
    began = time.monotonic()
    agent.start(wait=False)
    try:
        with Peak(lambda: _pids(agent)) as peak:
            agent.wait_ready(_READY_S)
            if not on_demand:
                wait_until(lambda: _known(agent) >= size.resources, "the agent has the whole state", _READY_S)
        taken, cpu_s = time.monotonic() - began, processes.cpu_s(_pids(agent))
        return {"s": taken, "cpu_s": cpu_s, "mb": processes.pss_bytes(_pids(agent)) / 1e6, "peak_pss_mb": peak.bytes / 1e6}
    finally:
        agent.end()


def _pids(agent: TreeAgent) -> list[int]:
    return processes.tree(agent.process.pid) if agent.process else []


def _known(agent: TreeAgent) -> int:
    try:
        state = agent.get("/status")["state"]
    except TimeoutError:
        return 0  # it is busy with just that
    return int(state["workloads"] + state["services"])
