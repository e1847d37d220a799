"""What all agents say in `status`, and the API server of pods, in one: which nodes are in, and every pod in or why not.

Invariant: an agent of another version breaks nothing: what it does not tell is named, what is new is handed on.  Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nodeproxy.fleet.agents import Reply
from nodeproxy.fleet.pods import FoundPod

# Of an agent's answer: what is shown of it.
_TOLD = ("version", "ready", "pending", "state", "pods", "workers", "certificates")


def nodes_of(replies: Iterable[Reply], others: Iterable[str]) -> list[dict[str, Any]]:
    """A row for each node.  others: nodes that the cluster has, with or without an agent."""
    rows = [_node(reply) for reply in replies]
    bare = set(others) - {row["node"] for row in rows}
    rows += [_node(Reply(node=node, error="no agent runs on it")) for node in bare]
    return sorted(rows, key=lambda row: str(row["node"]))


def _node(reply: Reply) -> dict[str, Any]:
    status = reply.answer or {}
    return {
        "node": reply.node,
        "agent": reply.agent,
        "version": status.get("version", ""),
        "ready": bool(status.get("ready")),
        "pending": status.get("pending", []),
        "pods_in": sum(map(_is_in, status.get("pods", ()))),
        "error": reply.error,
        "missing": [name for name in _TOLD if name not in status] if reply.answer is not None else [],
        "status": reply.answer,
    }


def pods_of(pods: Sequence[FoundPod], replies: Iterable[Reply]) -> list[dict[str, Any]]:
    """A row for each pod that runs, in the order of their names.

    in_mesh: None if that can't be known.  why: "" for those inside.
    """
    by_node = {reply.node: reply for reply in replies}
    told = {node: _told(reply) for node, reply in by_node.items()}
    rows = []
    for pod in sorted(pods, key=lambda pod: pod.key):
        if pod.ended:
            continue
        own = told.get(pod.node, {}).get(pod.key, {})
        in_mesh, why = _verdict(pod, by_node.get(pod.node), own)
        rows.append(
            {
                "namespace": pod.namespace,
                "name": pod.name,
                "node": pod.node,
                "addresses": list(pod.addresses),
                "in_mesh": in_mesh,
                "why": why,
                "identity": own.get("identity", ""),
                "certificate_until": own.get("certificate_until", 0.0),
                "standing_connections": own.get("standing_connections", 0),
            }
        )
    return rows


def strangers(pods: Sequence[FoundPod], replies: Iterable[Reply], namespace: str) -> list[dict[str, Any]]:
    """Pods that an agent has and the API server has not (any more).  namespace: of which those are wanted, "" for all."""
    known = {(pod.node, pod.key) for pod in pods}
    return [
        {"node": reply.node, "namespace": key.partition("/")[0], "name": key.partition("/")[2]}
        for reply in replies
        for key, row in _told(reply).items()
        if (reply.node, key) not in known and namespace in ("", key.partition("/")[0]) and _is_in(row)
    ]


def _told(reply: Reply) -> dict[str, Mapping[str, Any]]:
    """ "namespace/name" → what the agent says of it."""
    return {_key(row): row for row in (reply.answer or {}).get("pods", ())}


def _key(row: Mapping[str, Any]) -> str:
    """Agents give no uid to a pod that they are not to take in."""
    return pod_key(str(row.get("uid", ""))) or str(row.get("workload", ""))


def pod_key(uid: str) -> str:
    """The "namespace/name" in CLUSTER//Pod/NAMESPACE/NAME; the uid itself if it is of another form."""
    return uid.partition("//Pod/")[2] or uid


def _is_in(row: Mapping[str, Any]) -> bool:
    """Agents from before enrolment by label tell only of pods that are in or failed, and have no `state`."""
    return row.get("state", "in") == "in" and not row.get("error")


def _verdict(pod: FoundPod, reply: Reply | None, told: Mapping[str, Any]) -> tuple[bool | None, str]:
    """Whether the pod is in, and why not."""
    if not pod.node:
        return False, "no node is chosen for it yet"
    if pod.host_network:
        return False, "it uses the node's network, which is never in the mesh"
    if reply is None or not reply.agent:
        return False, f"no agent runs on node {pod.node}"
    if reply.answer is None:
        return None, f"its node's agent does not answer: {reply.error}"
    if told:
        return (True, "") if _is_in(told) else (False, str(told.get("error") or told.get("why") or told.get("state")))
    if pod.mode == "none":
        return False, "its label istio.io/dataplane-mode=none keeps it out"
    if not pod.addresses:
        return False, "it has no address yet"
    return (
        False,
        "its node's agent was not told to take it in: has its namespace, or the pod, the label istio.io/dataplane-mode=ambient?",
    )
