"""`why` across nodes: the source's node is asked, and then the one at which the connection would arrive.

Invariant: each agent speaks for itself, by its own state, and what nobody could say is named.  It decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nodeproxy.errors import ConfigError
from nodeproxy.fleet.agents import Fleet, Reply
from nodeproxy.fleet.names import Named, choose_pod
from nodeproxy.fleet.pods import FoundPod, list_pods

_ARRIVAL = ("kind", "workload", "address", "authority", "identity", "source_address")
_ASKED_KINDS = ("hbone", "plain")


async def explain(fleet: Fleet, source: Named, destination: Named, *, namespace: str, default: str) -> dict[str, Any]:
    """The parts of the way, each as its agent tells it, the verdict, and what is to be said beside.

    namespace: as given for names that say none, "" if it was not; default: what is meant then by the source's name.
    Raises ConfigError for names of nobody, or of several; ClusterError if pods can't be read.
    """
    notes: list[str] = []
    pod, said = await find_pod(fleet, source, source.namespace or namespace or default)
    notes += [said] if said else []
    asked, outside = _whom_to_ask(fleet, pod)
    notes += [outside] if outside else []
    query = {"source": pod.key, **({"outside": outside} if outside else {})}
    address = "" if pod.host_network or not pod.addresses else pod.addresses[0]
    reply, said = await _ask_about(fleet, asked, query, destination, namespace or pod.namespace, address)
    notes += [said] if said else []
    parts = [_part("source", reply)]
    if reply.answer is not None:
        arrival = await _arrival(fleet, reply.answer, notes)
        parts += [_part("destination", arrival)] if arrival is not None else []
    return _verdict(pod, parts, notes)


async def find_pod(fleet: Fleet, named: Named, namespace: str) -> tuple[FoundPod, str]:
    """The pod that is meant, and what is to be said of the choice.  Raises ConfigError, ClusterError."""
    if named.kind == "service":
        raise ConfigError(f"{named.text!r} is a service, which connects to nobody: name a pod")
    if not named.verbatim:
        return choose_pod(await list_pods(fleet.client, namespace), named, namespace)
    pods = [
        pod
        for pod in await list_pods(fleet.client, fields=f"status.podIP={named.text}")
        if not pod.ended and not pod.host_network
    ]
    if len(pods) != 1:
        raise ConfigError(f"{named.text!r} is what {len(pods) or 'no'} pods have as their address: name one, as NAMESPACE/NAME")
    return pods[0], ""


def _whom_to_ask(fleet: Fleet, pod: FoundPod) -> tuple[str, str]:
    """The node whose agent explains, and why nothing of the pod is captured ("": that is for the agent to say)."""
    if not pod.node:
        raise ConfigError(f"pod {pod.key} has no node yet: `kubectl describe pod -n {pod.namespace} {pod.name}` says why")
    outside = ""
    if pod.host_network:
        outside = f"{pod.key} uses the node's network, which is never in the mesh"
    elif pod.node not in fleet.agents:
        outside = f"no agent runs on {pod.node}, the node of {pod.key}"
    if pod.node in fleet.agents:
        return pod.node, outside
    # Any agent knows the mesh; one that serves, if there is one.
    return max(fleet.agents, key=lambda node: fleet.agents[node].ready), outside


async def _ask_about(
    fleet: Fleet, node: str, query: dict[str, str], destination: Named, namespace: str, address: str
) -> tuple[Reply, str]:
    """The answer of the source's node: the first of the readings of `destination` that names something there.

    address: the source's, for a node that is told of others only when it asks, which it can't by name; "" if it has none.
    """
    first: ConfigError | None = None
    for text in _readings(destination, namespace):
        try:
            return await _ask(fleet, node, {**query, "destination": text}, address), ""
        except ConfigError as exc:
            first = first or exc
    if destination.verbatim or destination.kind == "service":
        raise first or ConfigError(f"{destination.text!r} names nothing")
    try:
        pod, said = await find_pod(fleet, destination, destination.namespace or namespace)
    except ConfigError:
        raise first or ConfigError(f"{destination.text!r} names nothing") from None
    return await _ask(fleet, node, {**query, "destination": f"{pod.key}{destination.tail}"}, address), said


async def _ask(fleet: Fleet, node: str, query: dict[str, str], address: str) -> Reply:
    try:
        return await fleet.ask(node, "/why", query)
    except ConfigError as exc:
        if not address or repr(query["source"]) not in str(exc):
            raise
        return await fleet.ask(node, "/why", {**query, "source": address})


def _readings(named: Named, namespace: str) -> Sequence[str]:
    """What a destination may be called in an agent's words, the likeliest first."""
    if named.verbatim:
        return (named.text,)
    space = named.namespace or namespace
    host, pod = f"{named.name}.{space}{named.tail}", f"{space}/{named.name}{named.tail}"
    if named.kind == "service":
        return (host,)
    if named.kind == "pod":
        return (pod,)
    if named.kind:
        return ()
    return (host, pod)


async def _arrival(fleet: Fleet, answer: dict[str, Any], notes: list[str]) -> Reply | None:
    """What the destination's node says; None if nobody is to be asked, and then a note says why."""
    if "way" not in answer:
        notes.append("the source's agent is of an older version that does not say where the connection arrives: not asked there")
        return None
    way = answer["way"]
    if way is None or way.get("kind") not in _ASKED_KINDS or not way.get("workload"):
        return None
    if way.get("via_waypoint"):
        notes.append(f"waypoint {way['workload']} decides where it goes from there: see its own log")
        return None
    node = str(way.get("node", ""))
    if not node:
        notes.append(f"which node {way['workload']} runs on is not known: nobody was asked there")
        return None
    if node not in fleet.agents and way["kind"] == "plain":
        notes.append(f"no agent runs on {node}, where it arrives: nobody stands before the pod")
        return None
    return await fleet.ask(node, "/why/arrival", {name: str(way.get(name, "")) for name in _ARRIVAL})


def _part(side: str, reply: Reply) -> dict[str, Any]:
    return {"side": side, "node": reply.node, "agent": reply.agent, "answer": reply.answer, "error": reply.error}


def _verdict(pod: FoundPod, parts: list[dict[str, Any]], notes: list[str]) -> dict[str, Any]:
    answers = [part["answer"] for part in parts if part["answer"] is not None]
    refusals = [answer["refusal"] for answer in answers if answer.get("refusal")]
    errors = [f"{part['node']}: {part['error']}" for part in parts if part["error"]]
    if len(answers) == 2 and bool(answers[0].get("refusal")) != bool(answers[1].get("refusal")) and answers[1].get("enrolled"):
        notes.append(
            "the two nodes do not agree: what the second says is what happens, and the first may not know the newest state"
        )
    if refusals:
        outcome = f"refused ({refusals[-1].get('reason')}): {refusals[-1].get('detail')}"
    elif errors:
        outcome = f"not known: {errors[0]}"
    else:
        outcome = str(answers[0].get("outcome", ""))
    return {
        "source": pod.key,
        "source_node": pod.node,
        "destination": answers[0].get("destination", "") if answers else "",
        "parts": parts,
        "notes": notes,
        "outcome": outcome,
        "refusal": refusals[-1] if refusals else None,
        "passes": None if errors and not refusals else not refusals,
    }
