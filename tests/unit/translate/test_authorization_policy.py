"""What an AuthorizationPolicy means to nodes: every field, and that nothing that can't be enforced widens access."""

from __future__ import annotations

from typing import Any

import pytest

from nodeproxy.model.policy import Action, Match, Policy, PolicyScope, Rule, ServiceAccountMatch, StringMatch
from nodeproxy.translate.authorization_policy import Translated, translate_authorization_policy
from nodeproxy.translate.selectors import Selector
from tests.unit.translate.policy_specs import ROOT, Enforced, connection, resource

NEVER = Match()
EVERYTHING: tuple[Rule, ...] = ((),)


def translated(spec: Any, key: str = "ns/p", **annotations: str) -> Translated:
    return translate_authorization_policy(key, resource(spec, **annotations), ROOT)


def policy(spec: Any) -> Policy:
    found = translated(spec).policy
    assert found is not None
    return found


def rules(action: str, *written: Any) -> tuple[tuple[Rule, ...], list[str]]:
    """What becomes of rules, and the fields that notes name."""
    found = translated({"action": action, "rules": [*written]})
    assert found.policy is not None
    assert found.policy.action == action
    return found.policy.rules, [note.field for note in found.notes]


def exact(*texts: str) -> tuple[StringMatch, ...]:
    return tuple(StringMatch(exact=text) for text in texts)


# ── whom it holds for ──


def test_scope_follows_namespace_and_selector() -> None:
    assert policy({}).scope is PolicyScope.NAMESPACE
    everywhere = translated({}, f"{ROOT}/p").policy
    assert everywhere
    assert everywhere.scope is PolicyScope.GLOBAL
    selected = translated({"selector": {"matchLabels": {"app": "web"}}}, f"{ROOT}/p")
    assert selected.policy
    assert selected.policy.scope is PolicyScope.WORKLOAD_SELECTOR
    assert selected.selector == Selector((("app", "web"),))


@pytest.mark.parametrize(
    "spec", [{"targetRef": {"kind": "Gateway", "name": "w"}}, {"targetRefs": [{"kind": "Service", "name": "s", "group": ""}]}]
)
def test_what_is_for_waypoints_is_not_for_nodes(spec: Any) -> None:
    found = translated(spec)
    assert found.policy is None
    assert [note.consequence for note in found.notes] == ["nodes do not enforce it"]


@pytest.mark.parametrize(
    "spec",
    [
        {"targetRef": {}},
        {"targetRef": "w"},
        {"targetRefs": "w"},
        {"targetRefs": [{"kind": "Service", "name": "s"}, {}]},
        {"targetRefs": [{"kind": "Service", "name": "s"}], "selector": {"matchLabels": {"app": "web"}}},
    ],
)
def test_a_target_that_can_t_be_read_leaves_the_policy_to_nodes(spec: Any) -> None:
    found = translated(spec)
    assert found.policy
    assert [note.consequence for note in found.notes] == ["the policy is for workloads"]


def test_no_targets_are_none() -> None:
    assert translated({"targetRefs": [], "targetRef": None}).notes == ()


def test_a_selector_that_can_t_be_read_never_widens() -> None:
    selector = {"matchLabels": {"app": "web"}, "matchExpressions": []}
    allow = translated({"selector": selector, "rules": [{}]})
    assert allow.policy
    assert allow.policy.rules == ()
    deny = translated({"selector": selector, "action": "DENY", "rules": [{}]})
    assert deny.policy
    assert deny.policy.rules == EVERYTHING
    assert allow.selector == deny.selector == Selector((("app", "web"),), sure=False)


def test_a_name_that_kubernetes_refuses_is_no_one_else_s() -> None:
    found = translated({}, f"{ROOT}/istio_converted_static_strict")
    assert found.policy
    assert found.policy.name == "authorization_policy_istio_converted_static_strict"
    assert [note.field for note in found.notes] == ["metadata.name"]


# ── action ──


@pytest.mark.parametrize("spec", [{}, None, {"action": "ALLOW"}, {"rules": []}, {"rules": None}])
def test_allow_without_rules_allows_nothing(spec: Any) -> None:
    found = translated(spec)
    assert found.policy == Policy(name="p", namespace="ns", scope=PolicyScope.NAMESPACE, action=Action.ALLOW)
    assert found.notes == ()


def test_deny_without_rules_denies_nothing_and_says_so() -> None:
    assert rules("DENY") == ((), ["spec.rules"])


def test_audit_decides_nothing() -> None:
    found = translated({"action": "AUDIT", "rules": [{}]})
    assert found.policy is None
    assert [note.field for note in found.notes] == ["spec.action"]


def test_custom_denies_what_nobody_can_be_asked_about() -> None:
    rule = {"to": [{"operation": {"ports": ["80"], "paths": ["/admin"]}}]}
    found = translated({"action": "CUSTOM", "provider": {"name": "ext"}, "rules": [rule]})
    assert found.policy
    assert found.policy.action is Action.DENY
    assert found.policy.rules == ((((Match(destination_ports=(80,)),)),),)
    assert [note.field for note in found.notes] == ["spec.action", "spec.rules[0].to[0].operation.paths"]


@pytest.mark.parametrize("action", ["allow", "", 0, ["ALLOW"], {}])
def test_an_unknown_action_denies_everything(action: Any) -> None:
    found = translated({"action": action, "rules": []})
    assert found.policy
    assert (found.policy.action, found.policy.rules) == (Action.DENY, EVERYTHING)
    assert [note.field for note in found.notes] == ["spec.action"]


@pytest.mark.parametrize("spec", [[], "spec", 7])
def test_a_spec_that_can_t_be_read_denies_everything(spec: Any) -> None:
    found = translated(spec)
    assert found.policy
    assert (found.policy.action, found.policy.rules) == (Action.DENY, EVERYTHING)
    assert [note.field for note in found.notes] == ["spec"]


@pytest.mark.parametrize("field", ["provider", "excludes"])
def test_an_unknown_field_beside_the_rules(field: str) -> None:
    allow = translated({"rules": [{}], field: {"name": "x"}})
    assert allow.policy
    assert allow.policy.rules == ()
    deny = translated({"rules": [{}], field: {"name": "x"}, "action": "DENY"})
    assert deny.policy
    assert deny.policy.rules == EVERYTHING
    assert [note.field for note in (*allow.notes, *deny.notes)] == [f"spec.{field}"] * 2


@pytest.mark.parametrize(
    ("value", "dry_run", "noted"),
    [("true", True, False), ("T", True, False), ("0", False, False), ("", False, False), ("yes", False, True)],
)
def test_dry_run(value: str, dry_run: bool, noted: bool) -> None:
    found = translated({}, dry_run=value)
    assert found.policy
    assert found.policy.dry_run is dry_run
    assert bool(found.notes) is noted


# ── what a node can ask ──

SOURCE = {
    "principals": ["cluster.local/ns/prod/sa/web", "*/sa/db"],
    "notPrincipals": ["cluster.local/ns/prod/*"],
    "namespaces": ["prod"],
    "notNamespaces": ["*"],
    "ipBlocks": ["10.0.0.1", "10.1.0.0/16"],
    "notIpBlocks": ["2001:db8::/32"],
    "serviceAccounts": ["web", "prod/db"],
    "notServiceAccounts": ["other"],
}
SOURCE_MATCH = Match(
    principals=(*exact("cluster.local/ns/prod/sa/web"), StringMatch(suffix="/sa/db")),
    not_principals=(StringMatch(prefix="cluster.local/ns/prod/"),),
    namespaces=exact("prod"),
    not_namespaces=(StringMatch(presence=True),),
    source_ips=("10.0.0.1/32", "10.1.0.0/16"),
    not_source_ips=("2001:db8::/32",),
    service_accounts=(ServiceAccountMatch("ns", "web"), ServiceAccountMatch("prod", "db")),
    not_service_accounts=(ServiceAccountMatch("ns", "other"),),
)


@pytest.mark.parametrize("action", ["ALLOW", "DENY"])
def test_every_field_of_a_connection(action: str) -> None:
    written = {
        "from": [{"source": SOURCE}, {"source": {"namespaces": ["x"]}}],
        "to": [{"operation": {"ports": ["80", "443"], "notPorts": ["8080"]}}],
        "when": [
            {"key": "source.ip", "values": ["10.0.0.0/8"], "notValues": ["10.0.0.1"]},
            {"key": "source.namespace", "values": ["a*"]},
            {"key": "source.principal", "notValues": ["*"]},
            {"key": "destination.ip", "values": ["10.0.0.2"], "notValues": ["::1"]},
            {"key": "destination.port", "values": ["1"], "notValues": ["2"]},
        ],
    }
    assert rules(action, written, {}) == (
        (
            (
                (Match(destination_ports=(80, 443), not_destination_ports=(8080,)),),
                (SOURCE_MATCH, Match(namespaces=exact("x"))),
                (Match(source_ips=("10.0.0.0/8",), not_source_ips=("10.0.0.1/32",)),),
                (Match(namespaces=(StringMatch(prefix="a"),)),),
                (Match(not_principals=(StringMatch(presence=True),)),),
                (Match(destination_ips=("10.0.0.2/32",), not_destination_ips=("::1/128",)),),
                (Match(destination_ports=(1,), not_destination_ports=(2,)),),
            ),
            (),
        ),
        [],
    )


def test_what_is_empty_says_nothing() -> None:
    written = {"from": None, "to": [{"operation": {"ports": ["80"], "notPorts": [], "paths": [], "hosts": None}}], "when": []}
    assert rules("ALLOW", written) == (((((Match(destination_ports=(80,)),)),),), [])


# ── what a node can't ask ──

LAYER_7 = [
    *(("to", "operation", field) for field in ("hosts", "notHosts", "methods", "notMethods", "paths", "notPaths")),
    *(
        ("from", "source", field)
        for field in ("requestPrincipals", "notRequestPrincipals", "remoteIpBlocks", "notRemoteIpBlocks")
    ),
    *(("from", "source", field) for field in ("trustDomains", "notTrustDomains", "unheardOf")),
    ("to", "operation", "unheardOf"),
]
READABLE = {
    "to": ("ports", "80", Match(destination_ports=(80,))),
    "from": ("namespaces", "prod", Match(namespaces=exact("prod"))),
}


@pytest.mark.parametrize(("part", "inner", "field"), LAYER_7)
def test_a_field_that_can_t_be_asked_for(part: str, inner: str, field: str) -> None:
    name, value, match = READABLE[part]
    written = {part: [{inner: {name: [value], field: ["x"]}}]}
    where = f"spec.rules[0].{part}[0].{inner}.{field}"
    assert rules("ALLOW", written, {}) == (((),), [where])
    assert rules("DENY", written) == ((((match,),),), [where])
    alone = {part: [{inner: {field: ["x"]}}]}
    assert rules("ALLOW", alone) == ((), [where])
    assert rules("DENY", alone) == (EVERYTHING, [where])
    # Beside what can be asked for: any of them will do, and so one of which nothing is left always does.
    assert rules("DENY", {part: [{inner: {field: ["x"]}}, {inner: {name: [value]}}]}) == (EVERYTHING, [where])


@pytest.mark.parametrize(
    "key",
    [
        "request.headers[x]",
        "request.auth.claims[a]",
        "remote.ip",
        "connection.sni",
        "source.serviceAccount",
        "source.trustDomain",
        "x",
    ],
)
def test_a_condition_that_can_t_be_asked_for(key: str) -> None:
    written = {"to": [{"operation": {"ports": ["80"]}}], "when": [{"key": key, "values": ["x"]}]}
    assert rules("ALLOW", written) == ((), ["spec.rules[0].when[0].key"])
    assert rules("DENY", written) == ((((Match(destination_ports=(80,)),),),), ["spec.rules[0].when[0].key"])


# ── what can't be read ──


@pytest.mark.parametrize(
    ("written", "field"),
    [
        (None, ""),
        ("x", ""),
        ([], ""),
        ({"form": []}, ".form"),
        ({"from": []}, ".from"),
        ({"to": []}, ".to"),
        ({"from": {}}, ".from"),
        ({"from": "x"}, ".from"),
        ({"from": [None]}, ".from[0]"),
        ({"from": [{}]}, ".from[0].source"),
        ({"from": [{"source": None}]}, ".from[0].source"),
        ({"from": [{"source": []}]}, ".from[0].source"),
        ({"from": [{"source": {}, "sauce": {}}]}, ".from[0].sauce"),
        ({"from": [{"source": {"principals": "x"}}]}, ".from[0].source.principals"),
        ({"from": [{"source": {"requestPrincipals": "x"}}]}, ".from[0].source.requestPrincipals"),
        ({"to": [{"operation": {"ports": 80}}]}, ".to[0].operation.ports"),
        ({"to": [{"operation": {80: []}}]}, ".to[0].operation[80]"),
        ({"when": {}}, ".when"),
        ({"when": [None]}, ".when[0]"),
        ({"when": [{"values": ["x"]}]}, ".when[0].key"),
        ({"when": [{"key": ["source.ip"], "values": ["x"]}]}, ".when[0].key"),
        ({"when": [{"key": "source.ip", "values": ["10.0.0.1"], "ifValues": []}]}, ".when[0].ifValues"),
    ],
)
def test_a_rule_that_can_t_be_read(written: Any, field: str) -> None:
    allowed, fields = rules("ALLOW", written, {"from": [{"source": {"namespaces": ["a"]}}]})
    assert allowed == ((((Match(namespaces=exact("a")),)),),)
    assert f"spec.rules[0]{field}" in fields
    denied, fields = rules("DENY", written)
    assert len(denied) == 1
    assert f"spec.rules[0]{field}" in fields
    if "ifValues" not in field:
        assert denied == EVERYTHING


@pytest.mark.parametrize("written", [{}, "x", 1])
def test_rules_that_are_no_list(written: Any) -> None:
    for action, outcome in (("ALLOW", ()), ("DENY", EVERYTHING)):
        found = translated({"action": action, "rules": written})
        assert found.policy
        assert found.policy.rules == outcome
        assert [note.field for note in found.notes] == ["spec.rules"]


@pytest.mark.parametrize(
    ("written", "allow", "deny"),
    [
        ({"ports": ["http", "80"]}, Match(destination_ports=(80,)), None),
        ({"ports": ["http"]}, NEVER, None),
        ({"ports": [80]}, NEVER, None),
        ({"ports": ["http"], "notPorts": ["81"]}, NEVER, Match(not_destination_ports=(81,))),
        ({"notPorts": ["http", "80"]}, NEVER, Match(not_destination_ports=(80,))),
        ({"notPorts": ["http"], "ports": ["80"]}, NEVER, Match(destination_ports=(80,))),
        ({}, NEVER, None),
        ({"ports": []}, NEVER, None),
    ],
)
def test_values_that_can_t_be_read(written: Any, allow: Match, deny: Match | None) -> None:
    """deny None: every connection is denied."""
    rule = {"to": [{"operation": written}]}
    allowed, fields = rules("ALLOW", rule)
    assert allowed == (((allow,),),)
    assert fields
    denied, fields = rules("DENY", rule)
    assert denied == (EVERYTHING if deny is None else (((deny,),),))
    assert fields


def test_a_condition_without_values() -> None:
    assert rules("ALLOW", {"when": [{"key": "source.ip"}]}) == ((((NEVER,),),), ["spec.rules[0].when[0]"])
    assert rules("DENY", {"when": [{"key": "source.ip", "values": []}]}) == (EVERYTHING, ["spec.rules[0].when[0]"])


def test_an_empty_namespace_lets_nobody_in_who_proved_none() -> None:
    table = Enforced()
    table.set("AuthorizationPolicy", "ns/p", {"rules": [{"from": [{"source": {"namespaces": [""]}}]}]})
    assert not table.allows("ns", {}, connection(identity=""))
