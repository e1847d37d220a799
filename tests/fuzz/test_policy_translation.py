"""Whatever a policy resource says: nothing raises, and what can't be read never widens access."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeproxy.policy.authorize import authorize, check_policy
from nodeproxy.translate.notes import MAX_NOTES
from nodeproxy.translate.policies import PolicyTable
from tests.unit.translate.policy_specs import ROOT, Enforced, connection

pytestmark = pytest.mark.fuzz

AUTHORIZATION, AUTHENTICATION = PolicyTable.KINDS
# Enough to meet the rare places; the whole file takes some seconds.
EXAMPLES = settings(max_examples=300, deadline=None, database=None, derandomize=True)

# ── anything ──

_WORDS = st.sampled_from(
    [
        *(
            "action",
            "rules",
            "selector",
            "matchLabels",
            "targetRef",
            "targetRefs",
            "kind",
            "name",
            "provider",
            "from",
            "to",
            "when",
        ),
        *("source", "operation", "key", "values", "notValues", "principals", "notPrincipals", "namespaces", "notNamespaces"),
        *(
            "ipBlocks",
            "notIpBlocks",
            "serviceAccounts",
            "notServiceAccounts",
            "ports",
            "notPorts",
            "methods",
            "paths",
            "trustDomains",
        ),
        *("remoteIpBlocks", "mtls", "mode", "portLevelMtls", "ALLOW", "DENY", "AUDIT", "CUSTOM", "STRICT", "PERMISSIVE", "UNSET"),
        *("source.ip", "destination.port", "request.headers[a]", "10.0.0.0/8", "::1", "80", "*", "a*", "", "app", "web", "x"),
    ]
)
_SCALARS = st.one_of(
    _WORDS, _WORDS, st.none(), st.booleans(), st.integers(), st.just(1 << 5000), st.floats(), st.text(max_size=5)
)
_ANYTHING = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.one_of(_WORDS, _WORDS, _SCALARS), inner, max_size=4)),
    max_leaves=25,
)


@EXAMPLES
@given(st.sampled_from(PolicyTable.KINDS), _ANYTHING, _ANYTHING)
def test_nothing_raises(kind: str, before: Any, after: Any) -> None:
    table = Enforced()
    for key in ("ns/p", f"{ROOT}/p"):
        for spec in (before, after, ..., after):
            table.set(kind, key, spec)
            for policy in table.policies.values():
                check_policy(policy)
                msgspec.json.encode(policy)
            assert {*table.table.holding("ns", {"app": "web"})} <= {*table.policies}
            notes = table.table.notes()
            assert len(notes) <= 2 * (MAX_NOTES + 2)
            assert all(len(str(note)) < 1000 for note in notes)
    for key in ("ns/p", f"{ROOT}/p"):
        table.set(kind, key, ...)
    assert table.policies == {}


# ── what is well-formed, and then not ──

# Nothing that is good at some place: another text would be another policy.
GARBAGE = st.sampled_from([7, True, 1.5, {"unheardOf": 1}, {7: []}, [7], ["\ud800"], [[]], [{"unheardOf": ["x"]}]]).map(
    copy.deepcopy
)
NAMES = ("unheardOf", "notUnheardOf", "excludePorts", 7)


def places(tree: Any) -> list[tuple[Any, Any]]:
    """All (container, key) of a tree."""
    found: list[tuple[Any, Any]] = []
    for key in [*tree] if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        found += [(tree, key), *places(tree[key])]
    return found


@st.composite
def spoilt(draw: st.DrawFn, spec: dict[str, Any]) -> dict[str, Any]:
    """`spec` with something at some place that does not belong there: beside what is there, or instead."""
    spoiling = copy.deepcopy(spec)
    for _ in range(draw(st.integers(1, 2))):
        garbage = draw(GARBAGE)
        where = places(spoiling)
        # The deeper, the more of them there are, and the more there is to get wrong.
        if draw(st.booleans()):
            containers = [container[key] for container, key in where if isinstance(container[key], dict | list)]
            container = draw(st.sampled_from([*containers, spoiling]))
            if isinstance(container, list):
                container.insert(draw(st.integers(0, len(container))), garbage)
            else:
                container[draw(st.sampled_from(NAMES))] = garbage
        else:
            container, key = draw(st.sampled_from(where))
            container[key] = garbage
    return spoiling


def some(values: list[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.sampled_from(values), max_size=2, unique=True)


WEB, DB = "cluster.local/ns/prod/sa/web", "cluster.local/ns/prod/sa/db"
_TEXTS = {"principals": [WEB, "*", "cluster.local/*", "*/sa/db"], "namespaces": ["prod", "*", "te*"]}
_SOURCE = {
    **_TEXTS,
    "ipBlocks": ["10.0.0.0/8", "10.0.0.1", "::/0"],
    "serviceAccounts": ["prod/web", "web"],
}
_OPERATION = {"ports": ["80", "443"]}
_CONDITIONS = {
    "source.ip": _SOURCE["ipBlocks"],
    "source.namespace": _TEXTS["namespaces"],
    "source.principal": _TEXTS["principals"],
    "destination.ip": ["10.0.1.0/24", "10.0.1.1"],
    "destination.port": _OPERATION["ports"],
}


def part(name: str, inner: str, fields: dict[str, list[str]]) -> st.SearchStrategy[list[Any]]:
    twins = {both: values for field, values in fields.items() for both in (field, f"not{field[0].upper()}{field[1:]}")}
    strategies = {field: some(values) for field, values in twins.items()}
    one = st.lists(st.sampled_from([*strategies]), min_size=1, max_size=3, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({each: strategies[each] for each in names})
    )
    return st.lists(one.map(lambda values: {inner: values}), min_size=1, max_size=2)


_CONDITION = st.sampled_from([*_CONDITIONS]).flatmap(
    lambda key: st.fixed_dictionaries(
        {"key": st.just(key), "values": some(_CONDITIONS[key]), "notValues": some(_CONDITIONS[key])}
    )
)
_RULE = st.fixed_dictionaries(
    {},
    optional={
        "from": part("from", "source", _SOURCE),
        "to": part("to", "operation", _OPERATION),
        "when": st.lists(_CONDITION, max_size=2),
    },
)
_SELECTOR = st.sampled_from([{}, {"matchLabels": {}}, {"matchLabels": {"app": "web"}}, {"matchLabels": {"app": "db", "v": "1"}}])
SPECS = st.fixed_dictionaries(
    {"action": st.sampled_from(["ALLOW", "DENY"]), "rules": st.lists(_RULE, min_size=1, max_size=2)},
    optional={"selector": _SELECTOR},
)
CONNECTIONS = [
    connection(f"spiffe://{principal}" if principal else "", port, source)
    for principal, port, source in itertools.product(
        ("", WEB, DB, "cluster.local/ns/test/sa/web"), (80, 443), ("10.0.0.1", "10.9.0.1", "fd00::1")
    )
]
LABELS: list[dict[str, str]] = [{}, {"app": "web"}, {"app": "db", "v": "1"}]
OTHERS = [[], [{"action": "ALLOW", "rules": [{"to": [{"operation": {"ports": ["80"]}}]}]}]]


def admitted(*resources: tuple[str, str, Any, str]) -> set[tuple[str, int, int]]:
    """Who gets where, with these resources: (kind, key, spec, created)."""
    table = Enforced()
    for kind, key, spec, created in resources:
        table.set(kind, key, spec, created=created)
    found = set()
    for namespace, (which, labels) in itertools.product(("ns", "other"), enumerate(LABELS)):
        holding = table.holding(namespace, labels)
        found |= {(namespace, which, index) for index, each in enumerate(CONNECTIONS) if authorize(holding, each).allowed}
    return found


@EXAMPLES
@given(st.data(), SPECS, st.sampled_from(OTHERS), st.sampled_from(["ns/p", f"{ROOT}/p"]))
def test_what_spoils_an_authorization_policy_admits_nobody(data: st.DataObject, spec: Any, others: list[Any], key: str) -> None:
    beside = [(AUTHORIZATION, "ns/other", other, "") for other in others]
    before = admitted((AUTHORIZATION, key, spec, ""), *beside)
    for _ in range(4):
        place = data.draw(spoilt(spec))
        assert admitted((AUTHORIZATION, key, place, ""), *beside) <= before, place


_MODE = st.sampled_from([None, "UNSET", "DISABLE", "PERMISSIVE", "STRICT"])
_MTLS = _MODE.map(lambda mode: {"mode": mode} if mode else {})
AUTHENTICATIONS = st.fixed_dictionaries(
    {"mtls": _MTLS},
    optional={"selector": _SELECTOR, "portLevelMtls": st.dictionaries(st.sampled_from(["80", "443"]), _MTLS, min_size=1)},
)
_CREATED = st.sampled_from(["1", "2", "3"])


@EXAMPLES
@given(
    st.data(),
    st.sampled_from([f"{ROOT}/p", "ns/p"]),
    AUTHENTICATIONS,
    st.lists(
        st.tuples(st.sampled_from([f"{ROOT}/a", "ns/a", "ns/b"]), AUTHENTICATIONS, _CREATED),
        max_size=3,
        unique_by=lambda each: each[0],
    ),
)
def test_what_spoils_a_peer_authentication_admits_nobody(data: st.DataObject, key: str, spec: Any, others: list[Any]) -> None:
    beside = [(AUTHENTICATION, *other) for other in others]
    before = admitted((AUTHENTICATION, key, spec, "2"), *beside)
    for _ in range(4):
        place = data.draw(spoilt(spec))
        assert admitted((AUTHENTICATION, key, place, "2"), *beside) <= before, place
