"""Finding agents and asking many; that they are reached by a real port-forward is shown by tests/cluster."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Any, cast

import msgspec
import pytest

from nodeproxy.errors import ClusterError, ConfigError
from nodeproxy.fleet import agents as module
from nodeproxy.fleet.agents import Fleet, Reply, find_agents
from nodeproxy.kube.client import KubeClient
from nodeproxy.kube.portforward import Answer


class FakeClient:
    """Lists of pods by path; the queries that came."""

    def __init__(self, **pods: list[dict[str, Any]]) -> None:
        self.pods, self.asked = pods, []  # type: tuple[dict[str, Any], list[Mapping[str, str]]]

    async def request(self, method: str, path: str, *, query: Mapping[str, str]) -> bytes:
        self.asked.append(query)
        items = self.pods.get(path.split("/")[4].replace("-", "_"), [])
        first = int(query.get("continue", "0"))
        metadata = {"resourceVersion": "1", "continue": f"{first + 1}" if first + 1 < len(items) else ""}
        return msgspec.json.encode({"metadata": metadata, "items": items[first : first + 1]})


def pod(
    name: str, node: str, *, ready: bool = True, leaving: bool = False, created: str = "2026-01-01T00:00:00Z"
) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "nodeproxy-system", "creationTimestamp": created}
    metadata |= {"deletionTimestamp": created} if leaving else {}
    status = {"phase": "Running", "podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True" if ready else "False"}]}
    return {"metadata": metadata, "spec": {"nodeName": node}, "status": status}


def find(client: FakeClient, *namespaces: str) -> dict[str, str]:
    found = asyncio.run(find_agents(cast(KubeClient, client), namespaces or module.SYSTEM_NAMESPACES))
    return {node: each.name for node, each in found.items()}


def test_of_two_agents_of_a_node_the_one_that_serves() -> None:
    client = FakeClient(
        nodeproxy_system=[
            pod("new", "a", created="2026-02-01T00:00:00Z"),
            pod("old", "a", leaving=True, ready=False),
            pod("starting", "b", ready=False, created="2026-02-01T00:00:00Z"),
            pod("serving", "b"),
            pod("unplaced", ""),
        ]
    )
    assert find(client) == {"a": "new", "b": "serving"}
    assert [query.get("continue") for query in client.asked] == [None, "1", "2", "3", "4"]
    assert client.asked[0]["labelSelector"] == "app in (nodeproxy,ztunnel)"


def test_the_first_namespace_that_has_agents() -> None:
    client = FakeClient(istio_system=[pod("ztunnel", "a")])
    assert find(client) == {"a": "ztunnel"}
    with pytest.raises(ConfigError, match="no agent's pod is in namespace elsewhere .* --system-namespace"):
        find(client, "elsewhere")


def test_a_namespace_that_this_user_may_not_see_is_passed_over() -> None:
    class Refusing(FakeClient):
        async def request(self, method: str, path: str, *, query: Mapping[str, str]) -> bytes:
            if "nodeproxy-system" in path:
                raise ClusterError("403: ask an admin", 403)
            return await super().request(method, path, query=query)

    assert find(Refusing(istio_system=[pod("ztunnel", "a")])) == {"a": "ztunnel"}
    with pytest.raises(ClusterError, match="ask an admin"):
        find(Refusing())


Answers = Callable[[str, str], Any]


def ask(
    monkeypatch: pytest.MonkeyPatch,
    answers: Answers,
    nodes: list[str],
    *,
    given: list[float] | None = None,
    **limits: float,
) -> list[Reply]:
    """given: gets the times that nodes are given."""

    async def get(
        _client: object, _namespace: str, name: str, port: int, path: str, _query: object, *, timeout_s: float
    ) -> Answer:
        assert port == 15000
        if given is not None:
            given.append(timeout_s)
        found = answers(name, path)
        return await found if asyncio.iscoroutine(found) else found

    monkeypatch.setattr(module.portforward, "get", get)
    pods = {node: module.FoundPod(namespace="system", name=node, node=node) for node in nodes if node != "bare"}
    return asyncio.run(Fleet(cast(KubeClient, None), pods, **limits).ask_all(nodes, "/status"))


def test_what_a_node_fails_at_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(node: str, path: str) -> Answer:
        if node == "gone":
            raise ClusterError("GET x: 500 error dialing backend: dial tcp 10.0.0.9:10250: connect: connection refused")
        if node == "starting":
            raise ClusterError("port 15000 of pod system/starting: connect: connection refused")
        return {
            "well": Answer(200, b'{"ready": true}'),
            "alien": Answer(404, b"not found"),
            "older": Answer(404, b'{"error": "GET /status: Not Found"}'),
            "busy": Answer(503, b'{"error": "later"}'),
            "deep": Answer(200, b'{"a":' * 100_000),
            "newer": Answer(200, b'{"pods": [{"uid": "K//Pod/shop/web"}, 7]}'),
            "lying": Answer(200, b'{"state": {"workloads": "\\u001b[2J"}}'),
            "odd": Answer(400, b'{"error": "used wrongly"}'),
        }[node]

    nodes = ["well", "gone", "starting", "alien", "older", "busy", "odd", "bare", "deep", "newer", "lying"]
    replies = {reply.node: reply for reply in ask(monkeypatch, answers, nodes)}
    assert list(replies) == nodes
    assert (replies["well"].answer, replies["well"].error) == ({"ready": True}, "")
    for node, said in {
        "gone": "does not reach the kubelet of node gone: is the node up?",
        "starting": "nothing listens there: .*kubectl logs -n system starting",
        "alien": "system/alien is no nodeproxy agent",
        "older": "of an older version that does not know GET /status",
        "busy": "later",
        "odd": "used wrongly",
        "deep": "system/deep is no nodeproxy agent",
        "newer": r"form that is not known here: Expected `object`, got `int` - at `\$.pods\[1\]`; is it of another version",
        "lying": r"Expected `int`, got `str` - at `\$.state.workloads`",
        "bare": "no agent runs on node bare",
    }.items():
        assert replies[node].answer is None
        assert re.search(said, replies[node].error), replies[node].error
    assert replies["older"].unknown


def test_so_many_at_once_and_no_longer_than_said(monkeypatch: pytest.MonkeyPatch) -> None:
    running, most = 0, 0

    async def slow() -> Answer:
        nonlocal running, most
        running, most = running + 1, max(most, running + 1)
        await asyncio.sleep(0)
        running -= 1
        return Answer(200, b"{}")

    nodes = [f"node{number}" for number in range(100)]
    replies = ask(monkeypatch, lambda node, path: slow(), nodes)
    assert [reply.node for reply in replies] == nodes
    assert most == module.MAX_AT_ONCE
    late = ask(monkeypatch, lambda node, path: slow(), nodes, deadline_s=0)
    assert all("not asked: the 0 s for all nodes were over" in reply.error for reply in late)


@pytest.mark.parametrize("body", [b'{"version": "\xff"}', b"[]", b""])
def test_what_is_no_object_of_json_is_no_agents(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    (reply,) = ask(monkeypatch, lambda _node, _path: Answer(200, body), ["a"])
    assert "system/a is no nodeproxy agent" in reply.error


def test_errors_have_an_end_and_a_pod_that_has_gone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(node: str, _path: str) -> Answer:
        if node == "gone":
            raise ClusterError('GET x: the API server says 404 pods "gone" not found', 404)
        return Answer(503, msgspec.json.encode({"error": "no" * 100_000}))

    long, gone = ask(monkeypatch, answers, ["long", "gone", "long"])
    assert len(long.error) < 2000
    assert "the pod has gone since it was listed, as while agents are rolled out: ask again" in gone.error


def test_a_node_gets_no_more_time_than_is_left_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []
    for deadline_s in (0.5, 5.0, 60.0):
        ask(monkeypatch, lambda _node, _path: Answer(200, b"{}"), ["a"], given=given, deadline_s=deadline_s)
    assert given[0] == module.LEAST_S
    assert 4 < given[1] <= 5
    assert given[2] == module.ASK_S


def test_agents_are_found_again_and_kept_if_nobody_says() -> None:
    client = FakeClient(nodeproxy_system=[pod("old", "a")])

    class Broken:
        async def request(self, *_: object, **__: object) -> bytes:
            raise ClusterError("away")

    async def main() -> list[str]:
        fleet = await Fleet.find(cast(KubeClient, client), module.SYSTEM_NAMESPACES, deadline_s=5)
        seen = [fleet.agents["a"].name]
        client.pods["nodeproxy_system"] = [pod("new", "a")]
        await fleet.find_again()
        seen.append(fleet.agents["a"].name)
        fleet.client = cast(KubeClient, Broken())
        await fleet.find_again()
        return [*seen, fleet.agents["a"].name]

    assert asyncio.run(main()) == ["old", "new", "new"]
