"""`why`, asked of a running agent.  On demand, what it hangs on is asked for first, as for a connection, and it says so.

Invariant: it waits for the source a bounded time, and asks it on an account of its own.
"""

from __future__ import annotations

import ipaddress
import time

import msgspec

from nodeproxy.agent.node import Node
from nodeproxy.agent.on_demand import OnDemand
from nodeproxy.agent.pod_rows import pod_rows
from nodeproxy.config import SameNode
from nodeproxy.decide.demand import Unanswered
from nodeproxy.decide.trace import Trace, note
from nodeproxy.errors import ConfigError
from nodeproxy.model.workload import Workload
from nodeproxy.observe.explain import Explanation, explain, find_workload
from nodeproxy.observe.explain_arrival import Arrival, explain_arrival
from nodeproxy.state.view import View
from nodeproxy.wire.hbone import parse_authority

# An address, a service's waypoint, that one's own service, as a worker waits for them, and the names at both ends.
_MAX_ROUNDS = 6


async def explain_now(node: Node, node_name: str, source: str, destination: str, outside: str = "") -> Explanation:
    """What would become of a connection; node_name: this node's, as workloads have it.  Raises ConfigError as `explain` does.

    outside: why nothing of the source is captured, if who asks knows better than this node.
    """
    on_demand = node.on_demand
    if on_demand is None:
        return _explain(node, node_name, source, destination, None, outside)
    asked: Trace = []
    await _ask(node, on_demand, _names_of_source(source), asked)
    await _ask(node, on_demand, _names_of_destination(node.view(), source, destination, node.cluster_domain), asked)
    for _ in range(_MAX_ROUNDS):
        found = _explain(node, node_name, source, destination, set(), outside)
        if not isinstance(found.refusal, Unanswered) or not await _ask(node, on_demand, found.refusal.names, asked):
            break
    return msgspec.structs.replace(found, steps=(*asked, *found.steps))


async def explain_arrival_now(node: Node, arrival: Arrival) -> Explanation:
    """What this node would say of a connection that arrives.  Raises ConfigError as `explain_arrival` does."""
    asked: Trace = []
    if node.on_demand is not None:
        await _ask(node, node.on_demand, (arrival.workload,), asked)
    for _ in range(_MAX_ROUNDS):
        found = _explain_arrival(node, arrival)
        refusal = found.refusal
        if node.on_demand is None or not isinstance(refusal, Unanswered):
            break
        if not await _ask(node, node.on_demand, refusal.names, asked):
            break
    return msgspec.structs.replace(found, steps=(*asked, *found.steps))


def _explain_arrival(node: Node, arrival: Arrival) -> Explanation:
    view = node.view()
    pod = view.workload(arrival.workload)
    return explain_arrival(
        view,
        arrival,
        enrolled=arrival.workload in node.enrolment.pods,
        has_certificate=pod is not None and node.identities.valid_until(pod.identity) > time.time(),
        names=None if node.on_demand is None else set(),
    )


def _explain(node: Node, node_name: str, source: str, destination: str, names: set[str] | None, outside: str) -> Explanation:
    view = node.view()
    pod = find_workload(view, source)
    enrolled = _is_enrolled(node, pod, node_name) if not outside else False
    if enrolled is False and not outside:
        outside = _why_outside(node, pod)
    found = explain(
        view,
        node.balancer,
        source,
        destination,
        node.enrolment.pods.__contains__,
        same_node_hbone=node.same_node is SameNode.HBONE,
        direct=node.direct.hindrance,
        names=names,
        outside=outside,
    )
    return msgspec.structs.replace(found, enrolled=enrolled)


def _is_enrolled(node: Node, pod: Workload, node_name: str) -> bool | None:
    if pod.uid in node.enrolment.pods:
        return True
    return False if pod.node == node_name else None


def _why_outside(node: Node, pod: Workload) -> str:
    """Why a pod of this node is not steered, in the words of `status`."""
    key = f"{pod.namespace}/{pod.name}"
    row = next((row for row in pod_rows(node) if pod.uid == row.uid or (not row.uid and row.workload == key)), None)
    return (row.error or row.why if row is not None else "") or "it is not enrolled on this node"


async def _ask(node: Node, on_demand: OnDemand, names: tuple[str, ...], asked: Trace) -> bool:
    """Whether the source has answered for all of them; those that it was asked for already are not asked again."""
    unknown = tuple([name for name in names if not on_demand.is_answered(name)])
    if not unknown:
        return bool(names)
    began = time.monotonic()
    refusal = await on_demand.ask(unknown)
    view = node.view()
    took = f"within {(time.monotonic() - began) * 1000:.0f} ms"
    nobody = [name for name in unknown if view.is_absent(name)]
    said = refusal or (f"nobody, it said {took}" if nobody == list(unknown) else f"it said so {took}")
    note(asked, f"who has {', '.join(unknown)}?", f"the source was asked: {said}")
    return not refusal


def _names_of_source(source: str) -> tuple[str, ...]:
    """What a source on another node may be asked for by."""
    if "//" in source:
        return (source,)
    return (f"/{source}",) if _is_ip(source) else ()


def _names_of_destination(view: View, source: str, destination: str, domain: str) -> tuple[str, ...]:
    """What a destination that is given by a name may be asked for by; an address is asked for where it is decided about."""
    parsed = parse_authority(destination)
    host = parsed[0] if parsed is not None else destination
    if "//" in destination:
        return (destination.rpartition(":")[0] if destination.rpartition(":")[2].isdigit() else destination,)
    if _is_ip(host) or "/" in host:
        return ()
    try:
        namespace = find_workload(view, source).namespace
    except ConfigError:
        return ()  # which `explain` will say
    labels = host.split(".")
    if len(labels) == 1:
        names = [f"{namespace}/{host}.{namespace}.svc.{domain}"]
    elif len(labels) == 2:
        names = [f"{labels[1]}/{host}.svc.{domain}"]
    else:
        names = [f"{labels[1]}/{host}"] if labels[2] == "svc" else []
    return (*names, f"{namespace}/{host}")


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
