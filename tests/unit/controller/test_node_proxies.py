from __future__ import annotations

import asyncio

import pytest

from nodeproxy.controller import node_proxies as module
from nodeproxy.controller.ca.settings import CaSettings
from nodeproxy.controller.node_proxies import NodeProxies
from nodeproxy.controller.placement import PodPlacement
from nodeproxy.controller.token_review import Caller
from nodeproxy.errors import CallerError
from tests.unit.translate.resources import pod

pytestmark = pytest.mark.unit

AGENT = Caller("nodeproxy-system", "nodeproxy", "agent-1", "u1", "n1")


def placed(node: str = "n1", uid: str = "u1") -> PodPlacement:
    placement = PodPlacement()
    placement.apply("nodeproxy-system/agent-1", pod("nodeproxy-system/agent-1", uid=uid, spec={"nodeName": node}))
    return placement


def node_of(placement: PodPlacement, caller: Caller = AGENT) -> str:
    times = iter(range(100))
    proxies = NodeProxies(placement, CaSettings(), clock=lambda: float(next(times)))
    return asyncio.run(proxies.node_of(caller))


def test_a_nodes_proxy_is_of_the_node_of_its_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.0)
    assert node_of(placed()) == "n1"
    assert node_of(placed(), Caller("nodeproxy-system", "nodeproxy", "agent-1", "u1")) == "n1"  # an older API server
    for placement in (placed(node="n2"), placed(uid="u0"), PodPlacement()):
        with pytest.raises(CallerError) as caught:
            node_of(placement)
        assert (caught.value.reason, caught.value.code) == ("unplaced", "UNAVAILABLE")


def test_others_are_of_none_and_do_not_wait() -> None:
    assert node_of(PodPlacement(), Caller("shop", "web", "web-1", "u1", "n1")) == ""
    assert node_of(PodPlacement(), Caller("shop", "nodeproxy", "agent-1", "u1", "n1")) == ""


def test_a_pod_that_is_seen_a_moment_late_is_waited_for() -> None:
    async def body() -> str:
        placement = PodPlacement()
        asked = asyncio.create_task(NodeProxies(placement, CaSettings()).node_of(AGENT))
        await asyncio.sleep(0)
        assert not asked.done()
        placement.apply("nodeproxy-system/agent-1", pod("nodeproxy-system/agent-1", uid="u1", spec={"nodeName": "n1"}))
        return await asked

    assert asyncio.run(asyncio.wait_for(body(), 5.0)) == "n1"
