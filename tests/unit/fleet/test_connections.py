"""Connections of many nodes in one list."""

from __future__ import annotations

from typing import Any

from nodeproxy.fleet.connections import merge
from tests.unit.fleet.builders import reply, silent


def row(started: float, source: str, destination: str) -> dict[str, Any]:
    def end(key: str) -> dict[str, Any]:
        workload = {"uid": f"K//Pod/{key}", "namespace": key.partition("/")[0]} if key else None
        return {"address": "10.0.0.1:1", "workload": workload} if workload else {"address": "10.0.0.1:1"}

    return {"started": started, "source": end(source), "destination": end(destination)}


REPLIES = [
    reply("a", connections=[row(3, "shop/web", "store/db"), row(1, "shop/web", "")]),
    reply("b", connections=[row(2, "shop/web", "store/db")]),
    silent("c"),
]


def test_the_oldest_first_each_with_its_node() -> None:
    assert [(each["started"], each["node"]) for each in merge(REPLIES)] == [(1, "a"), (2, "b"), (3, "a")]


def test_of_a_pod_or_a_namespace() -> None:
    assert [each["started"] for each in merge(REPLIES, pod="store/db")] == [2, 3]
    assert [each["started"] for each in merge(REPLIES, namespace="shop")] == [1, 2, 3]
    assert merge(REPLIES, namespace="other") == merge(REPLIES, pod="shop/db") == []
