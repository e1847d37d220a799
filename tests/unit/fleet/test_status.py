"""Agents' statuses and the API server's pods in one."""

from __future__ import annotations

from typing import Any

import pytest

from nodeproxy.fleet.pods import FoundPod
from nodeproxy.fleet.status import nodes_of, pods_of, strangers
from tests.unit.fleet.builders import found, reply, silent

ROW = {"uid": "K//Pod/shop/web", "error": "", "identity": "spiffe://x", "certificate_until": 7.0}


def status(*pods: dict[str, Any], **more: Any) -> dict[str, Any]:
    full = {"version": "0.1.0", "ready": True, "pending": [], "state": {}, "workers": [], "certificates": []}
    return full | {"pods": list(pods)} | more


def test_a_row_for_each_node_with_an_agent_or_without() -> None:
    rows = nodes_of([reply("b", **status(ROW, {"error": "x"})), silent("a", "refused")], ["c", "b"])
    assert [(row["node"], row["ready"], row["pods_in"], row["error"]) for row in rows] == [
        ("a", False, 0, "refused"),
        ("b", True, 1, ""),
        ("c", False, 0, "no agent runs on it"),
    ]


def test_another_versions_answer_is_taken_as_it_is_and_what_lacks_is_named() -> None:
    (row,) = nodes_of([reply("a", version="9", ready=True, novel={"x": 1})], [])
    assert row["missing"] == ["pending", "state", "pods", "workers", "certificates"]
    assert row["status"] == {"version": "9", "ready": True, "novel": {"x": 1}}
    assert (row["pending"], row["pods_in"]) == ([], 0)


@pytest.mark.parametrize(
    ("pod", "in_mesh", "why"),
    [
        (found("web"), True, ""),
        (found("bad"), False, "no such workload"),
        (found("other"), False, "has its namespace, or the pod, the label"),
        (found("out", mode="none"), False, "dataplane-mode=none keeps it out"),
        (found("host", host_network=True), False, "the node's network"),
        (found("new", node=""), False, "no node is chosen"),
        (found("bare", addresses=()), False, "no address yet"),
        (found("far", node="z"), False, "no agent runs on node z"),
        (found("late"), False, "it has not been looked for yet"),
        (found("plain"), False, "its namespace is not labelled"),
        (found("dark", node="b"), None, "does not answer: refused"),
    ],
)
def test_every_pod_is_in_or_says_why_not(pod: FoundPod, in_mesh: bool | None, why: str) -> None:
    bad = ROW | {"uid": "K//Pod/shop/bad", "error": "no such workload"}
    late = ROW | {"uid": "K//Pod/shop/late", "state": "waiting", "why": "it has not been looked for yet"}
    plain = {"uid": "", "workload": "shop/plain", "state": "unlabelled", "why": "its namespace is not labelled", "error": ""}
    (row,) = pods_of([pod], [reply("a", **status(ROW, bad, late, plain)), silent("b", "refused")])
    assert row["in_mesh"] is in_mesh
    assert why in row["why"]
    assert bool(row["why"]) == (in_mesh is not True)


def test_pods_that_have_ended_are_not_told_of() -> None:
    assert pods_of([found("job", phase="Succeeded")], []) == []


def test_pods_that_only_an_agent_knows() -> None:
    replies = [reply("a", **status(ROW, ROW | {"uid": "K//Pod/b/x"}, ROW | {"uid": "shop/file"}))]
    rows = strangers([found("web")], replies, "")
    assert [(row["namespace"], row["name"]) for row in rows] == [("b", "x"), ("shop", "file")]
    assert [row["name"] for row in strangers([found("web")], replies, "b")] == ["x"]
    waiting = [reply("a", **status(ROW | {"state": "waiting"}))]
    assert strangers([], waiting, "") == []
    assert nodes_of(waiting, [])[0]["pods_in"] == 0
    assert len(strangers([found("web", node="other")], replies, "shop")) == 2  # it has moved, and its old node still has it
