"""What is measured of one control plane, in this order, from its start to its end; and of a node agent that it serves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.bench import processes
from tests.bench.contestants.nodeproxy import TreeAgent
from tests.bench.control_plane import agents, planes
from tests.bench.control_plane.changes import Changes
from tests.bench.control_plane.objects import Size, node_name
from tests.bench.control_plane.planes import ControlPlane, Plane
from tests.bench.control_plane.subscribers import Group
from tests.bench.rows import Values
from tests.bench.statistics import percentile
from tests.cluster.apiserver import ApiServer

# What a control plane may take, of 100,000 pods and a busy machine: to be ready, and to tell everybody everything.
_START_S = 600.0
_PUSH_S = 300.0
# What a control plane may take to give back memory that it no longer needs.
_SETTLE_S = 10.0
# How often it is asked whether it is ready: an answer costs it about a millisecond.
_POLL_S = 0.1
# istiod waits for up to 10 s for changes to cease before it tells any.
_CHANGE_S = 60.0
# Between changes that are measured one by one, so that each meets a control plane at rest: longer than either's debounce.
_PAUSE_S = 0.15


@dataclass(frozen=True)
class Plan:
    """clients: how many subscribers; changes: how many one by one; rate_per_s: changes a second, for rate_s seconds."""

    clients: int = 50
    changes: int = 100
    rate_per_s: int = 100
    rate_s: int = 20

    @property
    def changed_pods(self) -> int:
        """How many pods it takes: a change of a pod that was just changed may never be told by itself."""
        return self.changes + self.rate_per_s * self.rate_s


def titles(plan: Plan) -> dict[str, str]:
    """The rows, in their order."""
    many = f"{plan.clients} subscribers"
    return {
        "start": "from its start until it is ready",
        "rest": "ready, no subscriber yet",
        "push_1": "first full push to 1 subscriber",
        "push_all": f"first full push to {many} at once",
        "subscribed": f"{many}, nothing changes",
        "change": f"1 pod's change until each of {many} has it",
        "rate": f"{plan.rate_per_s} changes of pods a second, {many}",
        "agent": "a node agent from its start until it has the whole state",
        "agent_on_demand": "a node agent that asks on demand, from its start until it is ready",
    }


def measure(
    api: ApiServer, size: Size, plane: Plane, plan: Plan, say: Callable[[str], None], agent: TreeAgent | None = None
) -> Iterator[tuple[str, Values]]:
    """Row and values, as they become known; those of a node agent where there is one.  Leaves nothing running."""
    control = plane.make(api)
    control.start_timeout_s, control.start_poll_s = _START_S, _POLL_S
    nodes = [node_name(number) for number in range(plan.clients)]
    try:
        say(f"starting {plane.title}")
        began = time.monotonic()
        control.start()
        taken = time.monotonic() - began
        yield "start", {"s": taken, "cpu_s": processes.cpu_s(planes.pids(control)), "peak_mb": _peak_mb(control)}
        yield "rest", {"mb": _pss_mb(control)}
        with Group(planes.subscription(api, plane, control, nodes[:1], size.resources), api.popen) as one:
            full = one.connect(1, _PUSH_S)[0]
            yield "push_1", {"s": full["s"], "bytes_mb": full["bytes"] / 1e6}
        with Group(planes.subscription(api, plane, control, nodes, size.resources), api.popen) as group:
            yield "push_all", _push_to_all(control, group, plan)
            time.sleep(_SETTLE_S)
            yield "subscribed", {"mb": _pss_mb(control)}
            changes = Changes(api, size)
            try:
                yield "change", _one_by_one(group, changes, plan)
                yield "rate", _at_rate(control, group, changes, plan)
            finally:
                changes.close()
        if agent is not None:
            for row, on_demand in (("agent", False), ("agent_on_demand", True)):
                yield row, agents.measure(api, size, plane, control, agent, on_demand=on_demand)
    finally:
        control.close()


def _push_to_all(control: ControlPlane, group: Group, plan: Plan) -> Values:
    planes.forget_peak(control)
    began, before = time.monotonic(), processes.cpu_s(planes.pids(control))
    last = max(event["at"] for event in group.connect(plan.clients, _PUSH_S))
    return {"s": last - began, "cpu_s": processes.cpu_s(planes.pids(control)) - before, "peak_mb": _peak_mb(control)}


def _one_by_one(group: Group, changes: Changes, plan: Plan) -> Values:
    taken, answers = [], []
    for _ in range(plan.changes):
        mark, sent, answered = changes.one()
        event = group.seen(_CHANGE_S)
        if event["mark"] != mark:
            raise ValueError(f"change {mark} was made, and subscribers saw {event['mark']}")
        taken.append((event["last"] - sent) * 1000)
        answers.append((answered - sent) * 1000)
        time.sleep(_PAUSE_S)
    longest = {"max_ms": max(taken), "max_answer_ms": max(answers)}
    return {"p50_ms": percentile(taken, 50), "p99_ms": percentile(taken, 99), **longest}


def _at_rate(control: ControlPlane, group: Group, changes: Changes, plan: Plan) -> Values:
    planes.forget_peak(control)
    pids, then = planes.pids(control), group.count()
    began, before = time.monotonic(), processes.cpu_s(pids)
    sent = changes.at_rate(plan.rate_per_s, plan.rate_s)
    last = {event["mark"]: event["last"] for event in (group.seen(_CHANGE_S) for _ in sent)}
    elapsed, used = time.monotonic() - began, processes.cpu_s(pids) - before
    taken = [(last[mark] - at) * 1000 for mark, at in sent.items()]
    now, each = group.count(), len(sent) * plan.clients
    return {
        "cpu": used / elapsed,
        "p50_ms": percentile(taken, 50),
        "p99_ms": percentile(taken, 99),
        "max_ms": max(taken),
        "messages_each": sum(b.messages - a.messages for a, b in zip(then, now, strict=True)) / each,
        "bytes_each_change": sum(b.bytes - a.bytes for a, b in zip(then, now, strict=True)) / each,
        "peak_mb": _peak_mb(control),
    }


def _pss_mb(control: ControlPlane) -> float:
    return processes.pss_bytes(planes.pids(control)) / 1e6


def _peak_mb(control: ControlPlane) -> float:
    return planes.peak_bytes(control) / 1e6
