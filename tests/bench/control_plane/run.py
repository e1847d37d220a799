"""`./dev bench --control-plane`: a large cluster in a real API server, and control planes for it, one after the other."""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nodeproxy.errors import NodeproxyError
from nodeproxy.linux.cgroup import cgroup2_mount
from tests.bench import processes
from tests.bench.contestants.nodeproxy import TreeAgent
from tests.bench.control_plane import measure, objects, stored
from tests.bench.control_plane.measure import Plan
from tests.bench.control_plane.objects import Size
from tests.bench.control_plane.planes import PLANES, Plane
from tests.bench.control_plane.subscribers import StreamError
from tests.bench.control_plane.writer import WriteError, write
from tests.bench.metrics import kind_of
from tests.bench.metrics import written as shown
from tests.bench.record import Record, about_this_machine
from tests.bench.run import Clock
from tests.cluster.apiserver import ApiError, ApiServer
from tests.cluster.conftest import CRDS
from tests.mesh.cluster import Cluster

_FAILURES = (StreamError, WriteError, ApiError, OSError, AssertionError, ValueError, NodeproxyError)
# Of an API server on the data of 100,000 pods, and a busy machine.
_START_S = 300.0
_QUICK = Size(100, 5000, 500)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What only this bench knows."""
    add = parser.add_argument_group("with --control-plane").add_argument
    full, plan = Size(), Plan()
    add("--nodes", type=int, help=f"of the cluster ({full.nodes}; quick {_QUICK.nodes})")
    add("--pods", type=int, help=f"of the cluster ({full.pods}; quick {_QUICK.pods})")
    add("--services", type=int, help=f"of the cluster ({full.services}; quick {_QUICK.services})")
    add("--clients", type=int, default=plan.clients, help=f"xDS streams, at most one a node ({plan.clients})")
    add("--rate", type=int, default=plan.rate_per_s, help=f"changes a second ({plan.rate_per_s})")
    add("--cluster", type=Path, metavar="DIR", help="keep etcd's data there once written, and begin with it where it is there")


def run(asked: argparse.Namespace, clock: Clock) -> Record:
    """Write the cluster, measure each control plane, remove it all."""
    size = size_of(asked)
    plan = plan_of(asked, size)
    chosen = _planes(asked.contestants)
    about = {**about_this_machine(asked.tree), "quick": asked.quick, "clients": plan.clients, "rate": plan.rate_per_s}
    about |= {"nodes": size.nodes, "pods": size.pods, "services": size.services, "write_s": 0.0}
    record = Record.new(about, chosen, ())
    record.rows = measure.titles(plan)
    # What is started here runs this checkout's or the compiled nodeproxy, and not what lies in the directory.
    os.environ |= {"PYTHONPATH": str(asked.tree.resolve()), "PYTHONSAFEPATH": "1"}
    with _node(asked.tree.resolve(), asked.workers) as agent, _api(agent) as api:
        try:
            about["write_s"] = _fill(api, size, asked.cluster, clock)
            for number in range(asked.rounds or 1):
                for plane in chosen:
                    _measure(api, size, plane, plan, agent, record, number, clock)
        except KeyboardInterrupt:
            clock.say("interrupted: everything is removed, and what was measured is written")
            record.failures.append("the run was interrupted")
    return record


def size_of(asked: argparse.Namespace) -> Size:
    """How large the cluster is to be.  SystemExit: that makes no sense."""
    base = _QUICK if asked.quick else Size()
    try:
        return Size(asked.nodes or base.nodes, asked.pods or base.pods, asked.services or base.services)
    except ValueError as error:
        raise SystemExit(str(error)) from None


def plan_of(asked: argparse.Namespace, size: Size) -> Plan:
    """What is done with it.  SystemExit: the cluster is too small for that."""
    plan = Plan(clients=asked.clients, rate_per_s=asked.rate)
    if plan.clients > size.nodes or plan.changed_pods > size.pods:
        raise SystemExit(f"{size} are too few for {plan.clients} subscribers and {plan.changed_pods} changes")
    return plan


def _planes(wanted: str | None) -> list[Plane]:
    chosen = [plane for plane in PLANES if wanted is None or plane.name in wanted.split(",")]
    if not chosen:
        raise SystemExit(f"no control plane {wanted}; there are {', '.join(plane.name for plane in PLANES)}")
    return chosen


@contextmanager
def _node(tree: Path, workers: int) -> Iterator[TreeAgent]:
    """A node for an agent, and beside it the host that API server and control planes run on."""
    home = cgroup2_mount() / Path("/proc/self/cgroup").read_text().split("0::")[1].splitlines()[0].strip("/")
    cluster = Cluster(1)
    try:
        # Cluster moves this process below the cgroup that is steered; only programs in its pods belong there.
        (home / "cgroup.procs").write_text(str(os.getpid()))
        agent = TreeAgent(cluster, 0, tree, ["--workers", str(workers)])
        cluster.agents = [agent]
        # From here on its eBPF programs are pinned, so that what is measured of it is its state alone.
        cluster.start()
        agent.end()
        yield agent
    finally:
        cluster.close()


@contextmanager
def _api(agent: TreeAgent) -> Iterator[ApiServer]:
    api = ApiServer(agent.cluster.lab.external())
    api.start_timeout_s = _START_S
    try:
        yield api
    finally:
        api.close()


def _fill(api: ApiServer, size: Size, kept: Path | None, clock: Clock) -> float:
    """Start the API server with a cluster of that size in it; the seconds that it took to write, now or when it was written."""
    mine = kept / f"{size.nodes}-{size.pods}-{size.services}" if kept else None
    if mine is not None and (mine / "write_s").exists():
        clock.say(f"starting an API server on {mine}")
        shutil.copytree(mine / "etcd", api.etcd_data)
        api.start()
        return float((mine / "write_s").read_text())
    api.start()
    api.install_definitions(CRDS / "istio.yaml", CRDS / "gateway-api.yaml")
    clock.say(f"writing {size}")
    began = time.monotonic()

    def progress(done: int) -> None:
        clock.say(f"written: {done:,} objects, {done / (time.monotonic() - began):,.0f} a second")

    write(api, objects.first(size), progress)
    write(api, objects.rest(size), progress)
    for what, items in (
        ("services", objects.services(size)),
        ("addresses of services", objects.service_addresses(size)),
        ("pods", objects.pods(size)),
    ):
        stored.fill(api, items, lambda done, what=what: clock.say(f"put into etcd: {done:,} {what}"))
    taken = time.monotonic() - began
    pss = [processes.pss_bytes([process.pid]) / 1e6 for process in (api.apiserver, api.etcd) if process]
    clock.say(f"written in {taken:,.0f} s; memory of the API server {pss[0]:,.0f} MB, of etcd {pss[1]:,.0f} MB")
    if mine is not None:
        api.kill_apiserver()
        api.kill_etcd()
        mine.mkdir(parents=True)
        shutil.copytree(api.etcd_data, mine / "etcd")
        (mine / "write_s").write_text(str(taken))
        api.start()
    return taken


def _measure(
    api: ApiServer, size: Size, plane: Plane, plan: Plan, agent: TreeAgent, record: Record, number: int, clock: Clock
) -> None:
    try:
        for row, values in measure.measure(api, size, plane, plan, clock.say, agent):
            record.add(plane.name, row, number, values)
            parts = [f"{kind_of(f'{row}.{kind}').title} {shown(f'{row}.{kind}', value)}" for kind, value in values.items()]
            clock.say(f"{plane.name:10} {row:16} {', '.join(parts)}")
    except _FAILURES as error:
        record.failures.append(f"{plane.name}, round {number + 1}: {error}")
        clock.say(f"{plane.name} FAILED: {error}")
