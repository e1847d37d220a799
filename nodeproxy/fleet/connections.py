"""Live connections of many nodes in one list.  Pure.

A connection between two nodes is told by both, outbound by one and inbound by the other: both rows stay, each with its node.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nodeproxy.fleet.agents import Reply
from nodeproxy.fleet.status import pod_key


def merge(replies: Iterable[Reply], *, pod: str = "", namespace: str = "") -> list[dict[str, Any]]:
    """Every row with its `node`, the oldest first.

    pod: "namespace/name" of one that must be an end; namespace: which one end must be of.
    """
    found = [
        {"node": reply.node, **row}
        for reply in replies
        for row in (reply.answer or {}).get("connections", ())
        if _has_end(row, pod, namespace)
    ]
    return sorted(found, key=lambda row: float(row.get("started", 0)))


def _has_end(row: dict[str, Any], pod: str, namespace: str) -> bool:
    if not pod and not namespace:
        return True
    ends = [row.get(side, {}).get("workload") or {} for side in ("source", "destination")]
    return any(pod_key(str(end.get("uid", ""))) == pod if pod else end.get("namespace") == namespace for end in ends)
