"""`why` across nodes: who is asked what, and what comes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, cast

import pytest

from nodeproxy.errors import ConfigError
from nodeproxy.fleet import why as module
from nodeproxy.fleet.agents import Fleet, Reply
from nodeproxy.fleet.names import parse
from nodeproxy.fleet.pods import FoundPod
from tests.unit.fleet.builders import found

WAY = {"kind": "hbone", "workload": "K//Pod/shop/orders", "node": "b", "address": "10.0.0.2:80", "authority": "10.0.0.2:80"}
PASSES = {"destination": "10.96.0.1:80", "outcome": "tunnelled", "refusal": None, "steps": [], "enrolled": True, "way": WAY}
LET_IN = {"outcome": "let in", "refusal": None, "steps": []}
DENIED = {
    "outcome": "refused",
    "refusal": {"reason": "policy_deny", "detail": "no", "resource": "shop/p"},
    "steps": [],
    "enrolled": True,
}


class FakeFleet:
    """agents: by node.  answers: by node and path; a ConfigError is raised.  asked: node, path and query of each."""

    def __init__(self, answers: Mapping[tuple[str, str], Any], nodes: str = "ab") -> None:
        self.client = None
        self.agents = {node: found(f"system/{node}", node) for node in nodes}
        self.answers, self.asked = answers, []  # type: Mapping[tuple[str, str], Any], list[tuple[str, str, dict[str, str]]]

    async def ask(self, node: str, path: str, query: Mapping[str, str]) -> Reply:
        self.asked.append((node, path, dict(query)))
        if node not in self.agents:
            return Reply(node=node, error=f"no agent runs on node {node}")
        answer = self.answers[node, path]
        if callable(answer):
            answer = answer(query)
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, Reply) else Reply(node=node, agent=f"system/{node}", answer=answer)


@pytest.fixture(autouse=True)
def pods(monkeypatch: pytest.MonkeyPatch) -> list[FoundPod]:
    listed = [
        found("web", "a"),
        found("far", "c"),
        found("host", "a", host_network=True),
        found("orders-1", "b", workload="deployment/orders"),
        found("new", ""),
        found("other/web", "b"),
    ]

    async def list_pods(_client: object, namespace: str = "", *, fields: str = "") -> list[FoundPod]:
        address = fields.partition("=")[2]
        return [pod for pod in listed if pod.namespace == (namespace or pod.namespace) and (not address or address == "10.0.0.1")]

    monkeypatch.setattr(module, "list_pods", list_pods)
    return listed


def explain(fleet: FakeFleet, source: str, destination: str, namespace: str = "", default: str = "shop") -> dict[str, Any]:
    run = module.explain(cast(Fleet, fleet), parse(source), parse(destination), namespace=namespace, default=default)
    return asyncio.run(run)


def test_both_nodes_are_asked() -> None:
    fleet = FakeFleet({("a", "/why"): PASSES, ("b", "/why/arrival"): LET_IN})
    told = explain(fleet, "web", "orders:80")
    assert fleet.asked == [
        ("a", "/why", {"source": "shop/web", "destination": "orders.shop:80"}),
        ("b", "/why/arrival", {name: WAY.get(name, "") for name in module._ARRIVAL}),
    ]
    assert (told["passes"], told["refusal"], told["notes"], told["source"], told["source_node"]) == (
        True,
        None,
        [],
        "shop/web",
        "a",
    )
    assert [part["side"] for part in told["parts"]] == ["source", "destination"]


def test_what_the_destination_refuses_is_the_verdict_and_disagreement_is_said() -> None:
    told = explain(FakeFleet({("a", "/why"): PASSES, ("b", "/why/arrival"): DENIED}), "web", "orders")
    assert (told["passes"], told["refusal"]["resource"], told["outcome"]) == (False, "shop/p", "refused (policy_deny): no")
    assert "do not agree" in told["notes"][0]
    outside = explain(FakeFleet({("a", "/why"): PASSES, ("b", "/why/arrival"): DENIED | {"enrolled": False}}), "web", "orders")
    assert outside["notes"] == []  # what is not in the mesh there is no matter of opinion


@pytest.mark.parametrize(
    ("way", "note"),
    [
        (None, ""),
        ({"kind": "passthrough", "workload": ""}, ""),
        ({"kind": "local", "workload": "x", "node": "a"}, ""),
        (WAY | {"via_waypoint": True}, "waypoint K//Pod/shop/orders decides"),
        (WAY | {"node": ""}, "which node K//Pod/shop/orders runs on is not known"),
        (WAY | {"kind": "plain", "node": "z"}, "no agent runs on z, where it arrives: nobody stands before the pod"),
    ],
)
def test_when_nobody_else_is_asked(way: dict[str, Any] | None, note: str) -> None:
    told = explain(FakeFleet({("a", "/why"): PASSES | {"way": way}}), "web", "orders")
    assert len(told["parts"]) == 1
    assert note in "".join(told["notes"])
    assert told["passes"]


def test_an_older_agent_does_not_say_the_way() -> None:
    older = {name: value for name, value in PASSES.items() if name not in ("way", "enrolled")}
    told = explain(FakeFleet({("a", "/why"): older}), "web", "orders")
    assert "of an older version" in told["notes"][0]


def test_a_tunnel_to_a_node_without_an_agent_is_not_known_to_pass() -> None:
    told = explain(FakeFleet({("a", "/why"): PASSES | {"way": WAY | {"node": "z"}}}), "web", "orders")
    assert (told["passes"], told["outcome"]) == (None, "not known: z: no agent runs on node z")


def test_a_source_outside_is_explained_by_whoever_can() -> None:
    fleet = FakeFleet({("a", "/why"): PASSES, ("b", "/why"): PASSES, ("b", "/why/arrival"): LET_IN})
    told = explain(fleet, "far", "orders")
    assert fleet.asked[0][0] in ("a", "b")
    assert fleet.asked[0][2]["outside"] == "no agent runs on c, the node of shop/far"
    assert told["notes"] == ["no agent runs on c, the node of shop/far"]
    assert explain(fleet, "host", "orders")["notes"] == ["shop/host uses the node's network, which is never in the mesh"]
    with pytest.raises(ConfigError, match="has no node yet"):
        explain(fleet, "new", "orders")


def test_a_destination_is_read_in_several_ways() -> None:
    def only(*known: str) -> dict[tuple[str, str], Any]:
        def answer(query: Mapping[str, str]) -> Any:
            return PASSES | {"way": None} if query["destination"] in known else ConfigError(f"{query['destination']} is nobody")

        return {("a", "/why"): answer}

    for text, known in {
        "orders.store:80": "orders.store:80",
        "store/orders:80": "store/orders:80",
        "svc/orders": "orders.shop",
        "pod/orders-1:80": "shop/orders-1:80",
        "deploy/orders:80": "shop/orders-1:80",
        "orders:80": "shop/orders-1:80",
        "10.0.0.7:80": "10.0.0.7:80",
    }.items():
        assert explain(FakeFleet(only(known)), "web", text)["passes"], text
    with pytest.raises(ConfigError, match=r"^nothing\.shop is nobody$"):
        explain(FakeFleet(only()), "web", "nothing")
    with pytest.raises(ConfigError, match="orders.shop is nobody"):
        explain(FakeFleet(only()), "web", "svc/orders")


def test_the_namespace_is_the_named_one_else_the_option_else_the_contexts() -> None:
    for source, namespace, wanted in (("web", "", "shop/web"), ("web", "other", "other/web"), ("other/web", "shop", "other/web")):
        fleet = FakeFleet({("a", "/why"): PASSES | {"way": None}, ("b", "/why"): PASSES | {"way": None}})
        explain(fleet, source, "orders", namespace)
        assert fleet.asked[0][2]["source"] == wanted
        assert fleet.asked[0][2]["destination"] == f"orders.{namespace or 'shop'}"


def test_by_address_if_one_pod_has_it(pods: list[FoundPod]) -> None:
    fleet = FakeFleet({("a", "/why"): PASSES | {"way": None}})
    with pytest.raises(ConfigError, match="10.0.0.9' is what no pods have"):
        explain(fleet, "10.0.0.9", "orders")
    del pods[1:]
    assert explain(fleet, "10.0.0.1", "orders")["source"] == "shop/web"
    with pytest.raises(ConfigError, match="is a service, which connects to nobody"):
        explain(fleet, "svc/web", "orders")


def test_a_node_that_knows_only_what_it_asks_for_is_given_the_sources_address() -> None:
    def answer(query: Mapping[str, str]) -> Any:
        known = query["source"] == "10.0.0.1"
        return PASSES | {"way": None} if known else ConfigError(f"no workload is called {query['source']!r}")

    fleet = FakeFleet({("a", "/why"): answer})
    assert explain(fleet, "web", "orders")["passes"]
    assert [query["source"] for _, _, query in fleet.asked] == ["shop/web", "10.0.0.1"]
    with pytest.raises(ConfigError, match="no workload is called 'shop/host'"):
        explain(fleet, "host", "orders")
