"""The table of policies: what a change comes to, whatever came before it."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.unit.translate.policy_specs import ROOT, STRICT_KEY, Enforced, connection

AUTHORIZATION, AUTHENTICATION = "AuthorizationPolicy", "PeerAuthentication"
WEB = {"matchLabels": {"app": "web"}}
DB = {"matchLabels": {"app": "db"}}
CONVERTED = "ns/converted_peer_authentication_p"


def exempt(selector: Any = None, mode: str = "UNSET") -> dict[str, Any]:
    return {"selector": selector or WEB, "mtls": {"mode": mode}, "portLevelMtls": {"80": {"mode": "PERMISSIVE"}}}


def test_a_policy_comes_changes_and_goes() -> None:
    table = Enforced()
    change = table.set(AUTHORIZATION, "ns/p", {})
    assert ([policy.key for policy in change.policies], change.removed, change.namespaces) == (["ns/p"], (), frozenset())
    assert table.set(AUTHORIZATION, "ns/p", {"action": "ALLOW"}).policies == ()
    assert table.set(AUTHORIZATION, "ns/p", {"rules": [{}]}).policies[0].rules == ((),)
    change = table.set(AUTHORIZATION, "ns/p", {"action": "AUDIT"})
    assert (change.policies, change.removed, change.namespaces) == ((), ("ns/p",), frozenset())
    assert table.set(AUTHORIZATION, "ns/p", ...).removed == ()
    assert table.set(AUTHORIZATION, "ns/unheard-of", ...).removed == ()
    assert table.table.notes() == []


def test_a_selector_tells_whose_lists_change() -> None:
    table = Enforced()
    assert table.set(AUTHORIZATION, "ns/b", {"selector": WEB}).namespaces == {"ns"}
    assert table.set(AUTHORIZATION, "ns/a", {"selector": WEB}).namespaces == {"ns"}
    assert table.set(AUTHORIZATION, f"{ROOT}/c", {"selector": WEB}).namespaces == {""}
    assert table.set(AUTHORIZATION, "ns/a", {"selector": WEB, "rules": [{}]}).namespaces == frozenset()
    assert table.table.holding("ns", {"app": "web", "x": "y"}) == (f"{ROOT}/c", "ns/a", "ns/b")
    assert table.table.holding("other", {"app": "web"}) == (f"{ROOT}/c",)
    assert table.table.holding(ROOT, {"app": "web"}) == (f"{ROOT}/c",)
    assert table.table.holding("ns", {"app": "db"}) == ()
    assert table.set(AUTHORIZATION, "ns/a", {"selector": DB}).namespaces == {"ns"}
    assert table.table.holding("ns", {"app": "db"}) == ("ns/a",)
    assert table.set(AUTHORIZATION, "ns/a", {}).namespaces == {"ns"}
    assert table.set(AUTHORIZATION, "ns/b", ...).namespaces == {"ns"}
    assert table.set(AUTHORIZATION, f"{ROOT}/c", ...).namespaces == {""}
    assert table.table.holding("ns", {"app": "web"}) == ()


def test_strict_comes_with_the_first_peer_authentication_and_goes_with_the_last() -> None:
    table = Enforced()
    change = table.set(AUTHENTICATION, "ns/p", {})
    assert ([policy.key for policy in change.policies], change.namespaces) == ([STRICT_KEY], frozenset())
    assert table.set(AUTHENTICATION, f"{ROOT}/p", {"mtls": {"mode": "STRICT"}}).namespaces == {""}
    assert table.table.holding("any", {}) == (STRICT_KEY,)
    assert table.set(AUTHENTICATION, "ns/p", ...).removed == ()
    change = table.set(AUTHENTICATION, f"{ROOT}/p", ...)
    assert (change.removed, change.namespaces) == ((STRICT_KEY,), {""})
    assert table.table.holding("any", {}) == ()


def test_what_is_above_changes_what_is_made_below() -> None:
    table = Enforced()
    change = table.set(AUTHENTICATION, "ns/p", exempt())
    assert [policy.key for policy in change.policies] == [STRICT_KEY]
    change = table.set(AUTHENTICATION, f"{ROOT}/mesh", {"mtls": {"mode": "STRICT"}})
    assert ([policy.key for policy in change.policies], change.namespaces) == ([CONVERTED], {""})
    assert table.table.holding("ns", {"app": "web"}) == (CONVERTED,)
    change = table.set(AUTHENTICATION, "ns/own", {"mtls": {"mode": "PERMISSIVE"}})
    assert (change.removed, change.namespaces) == ((CONVERTED,), {"ns"})
    change = table.set(AUTHENTICATION, "ns/own", {"mtls": {"mode": "UNSET"}})
    assert ([policy.key for policy in change.policies], change.namespaces) == ([CONVERTED], {"ns"})
    change = table.set(AUTHENTICATION, "ns/p", exempt(DB))
    assert (change.policies, change.removed, change.namespaces) == ((), (), {"ns"})
    assert table.set(AUTHENTICATION, "ns/p", exempt(DB)).namespaces == frozenset()
    assert table.set(AUTHENTICATION, "ns/p", ...).removed == (CONVERTED,)


@pytest.mark.parametrize("seed", range(4))
def test_what_is_served_does_not_depend_on_what_came_before(seed: int) -> None:
    chance = random.Random(seed)
    modes = ("UNSET", "STRICT", "PERMISSIVE", "DISABLE")
    table = Enforced()
    resources: dict[tuple[str, str], tuple[Any, str]] = {}
    labels: list[dict[str, str]] = [{}, {"app": "web"}, {"app": "db"}, {"app": "web", "v": "1"}]
    for step in range(120):
        kind = chance.choice((AUTHORIZATION, AUTHENTICATION, AUTHENTICATION))
        key = f"{chance.choice((ROOT, 'ns', 'other'))}/{chance.choice('abc')}"
        spec: dict[str, Any] = {}
        selector = chance.choice((None, None, WEB, DB, {"matchLabels": {"app": "web", "v": "1"}}))
        if selector:
            spec["selector"] = selector
        if kind == AUTHENTICATION:
            spec["mtls"] = {"mode": chance.choice(modes)}
            if selector and chance.random() < 0.7:
                spec["portLevelMtls"] = {str(port): {"mode": chance.choice(modes)} for port in (80, 81)}
        else:
            spec["action"] = chance.choice(("ALLOW", "DENY", "AUDIT"))
        before = {
            (namespace, index): table.table.holding(namespace, each)
            for namespace in (ROOT, "ns", "other", "third")
            for index, each in enumerate(labels)
        }
        if (kind, key) in resources and chance.random() < 0.4:
            del resources[kind, key]
            change = table.set(kind, key, ...)
        else:
            resources[kind, key] = spec, f"2026-01-01T00:00:{chance.randrange(60):02}Z"
            change = table.set(kind, key, spec, created=resources[kind, key][1])
        fresh = Enforced()
        shuffled = chance.sample([*resources.items()], len(resources))
        for (each_kind, each_key), (each_spec, created) in shuffled:
            fresh.set(each_kind, each_key, each_spec, created=created)
        assert table.policies == fresh.policies, step
        assert table.table.notes() == fresh.table.notes()
        for (namespace, index), was in before.items():
            now = table.table.holding(namespace, labels[index])
            assert now == fresh.table.holding(namespace, labels[index])
            assert {*now} <= {*table.policies}  # nothing is listed that is not served
            assert now == was or {namespace, ""} & change.namespaces


def test_access_is_what_the_table_says() -> None:
    table = Enforced()
    table.set(AUTHORIZATION, "ns/p", {"selector": WEB, "rules": [{"from": [{"source": {"namespaces": ["prod"]}}]}]})
    table.set(AUTHORIZATION, f"{ROOT}/deny", {"action": "DENY", "rules": [{"to": [{"operation": {"ports": ["22"]}}]}]})
    assert table.allows("ns", {"app": "web"}, connection())
    assert not table.allows("ns", {"app": "web"}, connection(identity=""))
    assert not table.allows("ns", {"app": "web"}, connection(port=22))
    assert table.allows("ns", {"app": "db"}, connection(identity=""))
