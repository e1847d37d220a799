"""Whose certificate a caller gets."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from nodeproxy.controller.ca import identity as ca_identity
from nodeproxy.controller.ca.identity import Authorizer
from nodeproxy.controller.ca.settings import CaSettings
from nodeproxy.controller.token_review import Caller
from nodeproxy.errors import CallerError
from tests.unit.controller.fakes import Pods

AGENT = Caller("nodeproxy-system", "nodeproxy", "agent-1", "u1", "n1")
SETTINGS = CaSettings(placement_wait_s=0.0)
CART = "spiffe://cluster.local/ns/shop/sa/cart"


def pods() -> Pods:
    return Pods(
        {
            ("nodeproxy-system", "agent-1", "u1"): ("n1", "nodeproxy"),
            ("istio-system", "z", "z1"): ("n1", "ztunnel"),
            ("shop", "cart-1", "c1"): ("n1", "cart"),
            ("shop", "waypoint-1", "w1"): ("n2", "waypoint"),
            ("shop", "till-1", "t1"): ("n2", "till"),
        }
    )


def decide(caller: Caller, impersonated: str, placement: Pods | None = None, settings: CaSettings = SETTINGS) -> str:
    authorizer = Authorizer(placement or pods(), settings)
    return str(asyncio.run(authorizer.identity(caller, impersonated)))


def test_its_own() -> None:
    waypoint = Caller("shop", "waypoint", "waypoint-1", "w1", "n2")
    own = "spiffe://cluster.local/ns/shop/sa/waypoint"
    assert decide(waypoint, "") == own
    assert decide(waypoint, own) == own


def test_that_of_a_pod_on_its_node() -> None:
    assert decide(AGENT, CART) == CART
    assert decide(replace_node(AGENT, ""), CART) == CART  # by the pod that it is
    assert decide(Caller("istio-system", "ztunnel", "z", "z1", "n1"), CART) == CART


def replace_node(caller: Caller, node: str, uid: str = "") -> Caller:
    return Caller(caller.namespace, caller.service_account, caller.pod, uid or caller.pod_uid, node)


REFUSED: dict[str, tuple[Caller, str, str, str]] = {
    "a pod of another node": (AGENT, "spiffe://cluster.local/ns/shop/sa/till", "not_on_node", "PERMISSION_DENIED"),
    "no pod at all": (AGENT, "spiffe://cluster.local/ns/shop/sa/nobody", "not_on_node", "PERMISSION_DENIED"),
    "the account of another namespace": (AGENT, "spiffe://cluster.local/ns/other/sa/cart", "not_on_node", "PERMISSION_DENIED"),
    "a foreign trust domain": (AGENT, "spiffe://elsewhere/ns/shop/sa/cart", "foreign_trust_domain", "PERMISSION_DENIED"),
    "no identity": (AGENT, "spiffe://cluster.local/shop/cart", "bad_identity", "INVALID_ARGUMENT"),
    "two in one": (AGENT, CART + "\n" + CART, "bad_identity", "INVALID_ARGUMENT"),
    "an application": (Caller("shop", "cart", "cart-1", "c1", "n1"), CART + "2", "not_trusted", "PERMISSION_DENIED"),
    "an account of the right name elsewhere": (
        Caller("shop", "nodeproxy", "agent-1", "u1", "n1"),
        CART,
        "not_trusted",
        "PERMISSION_DENIED",
    ),
    "an agent on no known node": (replace_node(AGENT, "", "u0"), CART, "node_unknown", "PERMISSION_DENIED"),
    "an agent on another node": (
        replace_node(AGENT, "n2"),
        "spiffe://cluster.local/ns/shop/sa/till",
        "node_unknown",
        "PERMISSION_DENIED",
    ),
    "an agent that is gone": (replace_node(AGENT, "n1", "u0"), CART, "node_unknown", "PERMISSION_DENIED"),
    "its own, but gone": (Caller("shop", "cart", "cart-1", "c0", "n1"), "", "node_unknown", "PERMISSION_DENIED"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    caller, asked, reason, code = REFUSED[case]
    with pytest.raises(CallerError) as caught:
        decide(caller, asked)
    assert (caught.value.reason, caught.value.code) == (reason, code)


def test_before_the_pods_are_seen() -> None:
    placement = pods()
    placement.is_synced = False
    with pytest.raises(CallerError) as caught:
        decide(AGENT, CART, placement)
    assert (caught.value.reason, caught.value.code) == ("not_synced", "UNAVAILABLE")


def test_a_pod_that_is_seen_a_moment_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ca_identity, "POLL_S", 0.001)

    async def run() -> None:
        placement = pods()
        cart = placement.pods.pop(("shop", "cart-1", "c1"))
        authorizer = Authorizer(placement, replace(SETTINGS, placement_wait_s=60.0))
        asking = asyncio.create_task(authorizer.identity(AGENT, CART))
        while placement.asked < 3:
            await asyncio.sleep(0)
        assert not asking.done()
        placement.pods["shop", "cart-2", "c2"] = cart
        assert str(await asking) == CART
        assert not authorizer._waiting

    asyncio.run(run())


def test_waiting_is_bounded_for_each_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ca_identity, "POLL_S", 0.001)
    nobody = "spiffe://cluster.local/ns/shop/sa/nobody"

    async def run() -> None:
        placement: Any = pods()
        authorizer = Authorizer(placement, replace(SETTINGS, placement_wait_s=60.0))
        asking = [asyncio.create_task(authorizer.identity(AGENT, nobody)) for _ in range(ca_identity.MAX_WAITING)]
        while placement.asked < len(asking):
            await asyncio.sleep(0)
        with pytest.raises(CallerError) as caught:
            await authorizer.identity(AGENT, nobody)
        assert caught.value.code == "UNAVAILABLE"
        other = Caller("istio-system", "ztunnel", "z", "z1", "n1")
        assert await authorizer.identity(other, CART)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        assert not authorizer._waiting

    asyncio.run(run())
