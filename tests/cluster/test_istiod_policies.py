"""Our translation of AuthorizationPolicy and PeerAuthentication serves what a real istiod serves to nodes of an ambient mesh.

Both read the same objects from the same API server.  Policies are compared as what they mean: rules, clauses, matches and values
are sets.  Where istiod would widen access beyond what is written we are narrower; each such place is named here with what istiod
serves, and a test fails if istiod no longer does.
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import CliRunner

from nodeproxy.agent.sources.mesh_file import parse_mesh
from nodeproxy.cli.compile import compile_
from nodeproxy.model.policy import Match, Policy, StringMatch
from nodeproxy.proto import authorization_pb2 as pb
from nodeproxy.translate.policies import PolicyTable
from tests.cluster.apiserver import ApiServer
from tests.cluster.istiod import NAMESPACE as ROOT
from tests.cluster.istiod import Istiod
from tests.cluster.kinds import Object, ambient, list_path, make, node, pod
from tests.cluster.policy_shapes import (
    Spec,
    all_specs,
    kubernetes_name,
    layer_7_rules,
    operation,
    source,
    unreadable_rules,
    widened_rules,
)
from tests.cluster.served import Served
from tests.mesh.cluster import wait_until

Canonical = tuple[object, ...]
_SERVED_S = 30.0
_EMPTY: frozenset[Any] = frozenset()
EVERYTHING = frozenset((_EMPTY,))
_FIELDS = Match.__struct_fields__


# ── both sides in one form ──


def text(match: StringMatch | pb.StringMatch) -> tuple[str, str]:
    if isinstance(match, pb.StringMatch):
        kind = match.WhichOneof("match_type") or ""
        return kind, "" if kind == "presence" else getattr(match, kind)
    if match.presence:
        return "presence", ""
    return next((kind, value) for kind in ("exact", "prefix", "suffix") if (value := getattr(match, kind)) is not None)


def canonical_value(value: Any) -> object:
    if isinstance(value, StringMatch | pb.StringMatch):
        return text(value)
    if isinstance(value, pb.Address):
        return str(ipaddress.ip_network((value.address, value.length), strict=False))
    if isinstance(value, int | str):
        return value
    return value.namespace, value.service_account


def canonical_match(match: Any) -> frozenset[object]:
    fields = ((name, frozenset(map(canonical_value, getattr(match, name)))) for name in _FIELDS)
    return frozenset((name, values) for name, values in fields if values)


def canonical(policy: Policy | pb.Authorization) -> Canonical:
    if isinstance(policy, Policy):
        rules: Any = policy.rules
        kind = policy.scope.value, policy.action.value
    else:
        rules = [[clause.matches for clause in rule.clauses] for rule in policy.rules]
        kind = pb.Scope.Name(policy.scope), pb.Action.Name(policy.action)
    canonical_rules = frozenset(frozenset(frozenset(map(canonical_match, clause)) for clause in rule) for rule in rules)
    return (policy.namespace, policy.name, *kind, policy.dry_run, canonical_rules)


def without_empty(policy: Canonical) -> Canonical:
    """A DENY without the clauses that have an empty match: a node skips such a match, so that it never denies."""
    rules: Any = policy[-1]
    return (*policy[:-1], frozenset(frozenset(clause for clause in rule if _EMPTY not in clause) for rule in rules))


class Ours:
    """The mesh file that `nodeproxy compile` makes of all that the API server has."""

    def __init__(self, api: ApiServer) -> None:
        kinds = ("Namespace", "Node", "Pod", *PolicyTable.KINDS)
        items = [{"apiVersion": make(kind, "")["apiVersion"], "kind": kind, **item} for kind in kinds for item in api.list(kind)]
        manifest = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
        result = CliRunner().invoke(compile_, ["--root-namespace", ROOT, "-"], input=manifest, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        mesh = parse_mesh("compiled", result.stdout_bytes).everything
        self.policies = {policy.key: canonical(policy) for policy in mesh.policies}
        self.lists = {workload.uid: workload.policies for workload in mesh.workloads}


def compare(served: Served, expected: dict[str, Canonical], lists: dict[str, tuple[str, ...]]) -> None:
    """Waits until istiod serves `expected` and `lists`; fails with what differs."""

    def same() -> bool:
        return actual() == (expected, lists)

    def actual() -> tuple[dict[str, Canonical], dict[str, tuple[str, ...]]]:
        workloads = {uid: tuple(workload.authorization_policies) for uid, workload in served.workloads().items()}
        return {key: canonical(policy) for key, policy in served.policies().items()}, workloads

    try:
        wait_until(same, "istiod serves what we do", _SERVED_S)
    except AssertionError:
        policies, workloads = actual()
        differing = {
            key: (expected.get(key), policies.get(key)) for key in expected | policies if expected.get(key) != policies.get(key)
        }
        listed = {uid: (lists.get(uid), workloads.get(uid)) for uid in lists | workloads if lists.get(uid) != workloads.get(uid)}
        pytest.fail(f"ours, istiod's:\n{differing}\n{listed}")


@pytest.fixture
def served(istiod: Istiod) -> Iterator[Served]:
    client = Served(istiod)
    yield client
    client.close()


@contextlib.contextmanager
def afresh(istiod: Istiod) -> Iterator[Served]:
    """What istiod serves once it has started anew: it makes a policy of a workload's PeerAuthentication when that changes, and
    does not make it again when the one of the namespace or the mesh does.
    """
    istiod.kill()
    istiod.start()
    client = Served(istiod)
    try:
        yield client
    finally:
        client.close()


@pytest.fixture
def emptied(api: ApiServer) -> Iterator[ApiServer]:
    """The API server, and afterwards none of the objects that a test here makes."""
    yield api
    for kind in (*PolicyTable.KINDS, "Pod"):
        for space in {item["metadata"]["namespace"] for item in api.list(kind)}:
            api.request("DELETE", f"{list_path(kind, space)}?gracePeriodSeconds=0")


# ── PeerAuthentication ──

MODES = (None, "UNSET", "DISABLE", "PERMISSIVE", "STRICT")
PORTS = ("80", "443")
# Which port has which mode makes no difference.
WORKLOADS = [*itertools.product(MODES, itertools.combinations_with_replacement(MODES, len(PORTS)))]


def authentication(name: str, space: str, mode: str | None, **spec: Any) -> Object:
    return make("PeerAuthentication", name, space, spec={**({"mtls": {"mode": mode}} if mode else {}), **spec})


def istiod_leaves_open(mesh: str | None, namespace: str | None, workload: str | None, ports: dict[str, str]) -> bool:
    """Where istiod makes no policy of a workload's PeerAuthentication, though the workload lists it and a port is STRICT.

    The mesh is STRICT and the namespace does not say otherwise; then istiod takes a port that is STRICT for covered by that
    though the workload is not, and forgets exceptions if the namespace has a PeerAuthentication that is UNSET.
    """
    if mesh != "STRICT" or namespace not in (None, "UNSET"):
        return False
    if workload in ("PERMISSIVE", "DISABLE"):
        return "STRICT" in ports.values()
    return workload != "STRICT" and namespace == "UNSET" and not {"PERMISSIVE", "DISABLE"}.isdisjoint(ports.values())


@pytest.mark.timeout(300)  # some 800 objects, and five starts of istiod: 25 s on an idle machine, 100 on a busy one
def test_every_mixture_of_modes(emptied: ApiServer, istiod: Istiod, unique: Callable[[str], str]) -> None:
    emptied.create(node("n1"))
    spaces = {mode: unique("space") for mode in MODES}
    addresses = (f"10.1.{index // 250}.{index % 250 + 1}" for index in itertools.count())
    cases: dict[str, tuple[str | None, str | None, dict[str, str]]] = {}
    for mode, space in spaces.items():
        emptied.create(ambient(space))
        if mode:
            emptied.create(authentication("namespace", space, mode))
        for index, (workload, modes) in enumerate(WORKLOADS):
            ports = {port: mode for port, mode in zip(PORTS, modes, strict=True) if mode}
            name, labels = f"w{index}", {"app": f"w{index}"}
            levels = {"portLevelMtls": {port: {"mode": mode} for port, mode in ports.items()}} if ports else {}
            emptied.create(
                authentication(name, space, workload, selector={"matchLabels": labels}, **levels),
                pod(name, space, node="n1", ips=[next(addresses)], labels=labels),
            )
            cases[f"{space}/converted_peer_authentication_{name}"] = mode, workload, ports
        emptied.create(pod("other", space, node="n1", ips=[next(addresses)]))
    left_open = 0
    for mesh in MODES:
        if mesh:
            emptied.apply(authentication("mesh", ROOT, mesh))
        ours = Ours(emptied)
        missing = {key for key, case in cases.items() if istiod_leaves_open(mesh, *case)}
        assert missing <= {*ours.policies}
        left_open += len(missing)
        with afresh(istiod) as served:
            compare(served, {key: policy for key, policy in ours.policies.items() if key not in missing}, ours.lists)
    assert left_open


def test_of_several_the_oldest_is_in_force(emptied: ApiServer, istiod: Istiod, unique: Callable[[str], str]) -> None:
    space = unique("space")
    labels = {"app": "web"}
    emptied.create(ambient(space), pod("p", space, node="n1", ips=["10.1.0.1"], labels=labels))
    web = {"selector": {"matchLabels": labels}}
    for name, modes in (("b", ("STRICT", "UNSET", "PERMISSIVE")), ("a", ("PERMISSIVE", "STRICT", "STRICT"))):
        mesh, namespace, workload = modes
        emptied.create(
            authentication(f"mesh-{name}", ROOT, mesh),
            authentication(f"namespace-{name}", space, namespace),
            authentication(f"workload-{name}", space, workload, portLevelMtls={"80": {"mode": "STRICT"}}, **web),
        )
        second = int(time.time())  # which is how exact creations are dated
        wait_until(lambda second=second: int(time.time()) > second, "the next second", 5)
    ours = Ours(emptied)
    assert [policies for uid, policies in ours.lists.items() if f"/{space}/" in uid] == [
        (f"{space}/converted_peer_authentication_workload-b",)
    ]
    # As in `istiod_leaves_open`: the mesh is STRICT, the namespace UNSET.
    missing = f"{space}/converted_peer_authentication_workload-b"
    with afresh(istiod) as served:
        compare(served, {key: policy for key, policy in ours.policies.items() if key != missing}, ours.lists)
    for name in ("mesh-a", "mesh-b"):
        emptied.delete("PeerAuthentication", name, ROOT)
    ours = Ours(emptied)
    with afresh(istiod) as served:
        compare(served, ours.policies, ours.lists)


def test_selectors_of_peer_authentications(emptied: ApiServer, served: Served, unique: Callable[[str], str]) -> None:
    space = unique("space")
    labels = {"app": "web", "version": "1"}
    emptied.create(ambient(space))
    for name, where in (("p", space), ("q", ROOT)):
        emptied.create(pod(name, where, node="n1", ips=["10.1.0.1"], labels=labels))
    emptied.create(
        authentication(
            "root", ROOT, "STRICT", selector={"matchLabels": {"app": "web"}}, portLevelMtls={"80": {"mode": "PERMISSIVE"}}
        ),
        authentication("empty", space, "STRICT", selector={}),
        authentication("other", space, "PERMISSIVE", selector={"matchLabels": {"app": "web", "version": "2"}}),
    )
    ours = Ours(emptied)
    compare(served, ours.policies, ours.lists)


# ── AuthorizationPolicy ──


def authorization(name: str, space: str, spec: Spec, **annotations: str) -> Object:
    named = {"annotations": {"istio.io/dry-run": annotations["dry_run"]}} if annotations else {}
    return make("AuthorizationPolicy", name, space, spec=spec, **named)


def test_every_shape_of_rules(emptied: ApiServer, served: Served, unique: Callable[[str], str]) -> None:
    space = unique("space")
    emptied.create(ambient(space))
    for name, spec in all_specs().items():
        emptied.create(authorization(name, space, spec))
    # These DENY policies would never match at a node as istiod serves them: ours are without what can't be asked for.
    narrower = {f"{space}/{kubernetes_name('DENY', name)}" for name in (*layer_7_rules(), *unreadable_rules())}
    ours = Ours(emptied)
    wait_until(lambda: served.policies().keys() == ours.policies.keys(), "istiod serves as many policies as we do", _SERVED_S)
    theirs = {key: canonical(policy) for key, policy in served.policies().items()}
    differing = {key for key, policy in theirs.items() if policy != ours.policies[key]}
    # What has a field that a node can ask for in each match differs in nothing.
    alike = {f"{space}/{kubernetes_name('DENY', name)}" for name in layer_7_rules() if name.endswith("-beside")}
    assert {key: (ours.policies[key], theirs[key]) for key in differing - (narrower - alike)} == {}
    assert differing == narrower - alike
    # Of a list of which a value can't be read istiod leaves out that value; here it may be any.
    denying_all = {f"{space}/{kubernetes_name('DENY', name)}" for name in ("bad-port", "bad-block")}
    for key in differing:
        expected = (*theirs[key][:-1], EVERYTHING) if key in denying_all else without_empty(theirs[key])
        assert ours.policies[key] == expected, key


def test_what_istiod_drops_of_an_allow_policy_allows_nothing(
    emptied: ApiServer, served: Served, unique: Callable[[str], str]
) -> None:
    space = unique("space")
    emptied.create(ambient(space))
    widened = widened_rules()
    for name, (rules, left) in widened.items():
        emptied.create(authorization(name, space, {"rules": rules}), authorization(f"{name}-left", space, {"rules": left}))
    emptied.create(authorization("provider", space, {"rules": [{}], "provider": {"name": "x"}}))
    emptied.create(authorization("provider-left", space, {"rules": [{}]}))
    ours = Ours(emptied)
    wait_until(lambda: served.policies().keys() == ours.policies.keys(), "istiod serves as many policies as we do", _SERVED_S)
    for name in (*widened, "provider"):
        rest = f"{space}/{name}-left"
        theirs = canonical(served.policies()[f"{space}/{name}"])
        assert canonical(served.policies()[rest]) == ours.policies[rest]
        assert theirs[-1] == ours.policies[rest][-1], name
        narrower: Any = ours.policies[f"{space}/{name}"][-1]
        # A clause of nothing but empty matches never holds.
        assert all(any(clause == {_EMPTY} for clause in rule) for rule in narrower), name


def test_whom_policies_are_for(emptied: ApiServer, served: Served, unique: Callable[[str], str]) -> None:
    space, other = unique("space"), unique("space")
    emptied.create(ambient(space), ambient(other))
    web = {"app": "web", "version": "1"}
    # Each pod has a label: istiod lists for a pod that has none at all whatever selects by labels, or not, by what came first.
    for index, (where, labels) in enumerate(
        itertools.product((space, other, ROOT), (web, {"app": "web"}, {"app": "db"}, {"x": ""}))
    ):
        emptied.create(pod(f"p{index}", where, node="n1", ips=[f"10.1.0.{index + 1}"], labels=labels))
    target = {"kind": "Service", "name": "s", "group": ""}
    specs: dict[str, Spec] = {
        "none": {},
        "whole": {"rules": [{}]},
        "whole-deny": {"rules": [{}], "action": "DENY"},
        "web": {"selector": {"matchLabels": {"app": "web"}}},
        "web-1": {"selector": {"matchLabels": web}, "action": "DENY", "rules": [operation(ports=["80"])]},
        "no-labels": {"selector": {"matchLabels": {}}, "rules": [{}]},
        "empty-selector": {"selector": {}, "rules": [{}]},
        "target": {"targetRef": target, "rules": [{}]},
        "targets": {"targetRefs": [target, {**target, "name": "t"}], "rules": [{}]},
        "no-targets": {"targetRefs": [], "rules": [source(namespaces=["a"])]},
        "audit": {"action": "AUDIT", "rules": [{}]},
        "custom": {"action": "CUSTOM", "provider": {"name": "x"}, "rules": [operation(ports=["80"], paths=["/x"])]},
    }
    for (name, spec), where in itertools.product(specs.items(), (space, ROOT)):
        emptied.create(authorization(name, where, spec))
    for value in ("true", "T", "false", "0", "perhaps"):
        emptied.create(authorization(f"dry-{value.lower()}", space, {"rules": [{}]}, dry_run=value))
    ours = Ours(emptied)
    assert {key.partition("/")[2] for key in ours.policies} == {
        *specs,
        *(f"dry-{v}" for v in ("true", "t", "false", "0", "perhaps")),
    } - {
        "target",
        "targets",
        "audit",
    }
    # Nobody asks an authorizer, and so what CUSTOM is about is denied here, where istiod has no policy.
    custom = {f"{where}/custom" for where in (space, ROOT)}
    assert all(ours.policies[key][3] == "DENY" and ours.policies[key][-1] for key in custom)
    # A selector without `matchLabels` is not there, by Istio's documentation; at istiod no workload lists the policy.
    unlisted = {f"{where}/empty-selector" for where in (space, ROOT)}
    assert all(f"{ROOT}/empty-selector" in keys for keys in ours.lists.values())
    compare(
        served,
        {key: policy for key, policy in ours.policies.items() if key not in custom},
        {uid: tuple(key for key in keys if key not in unlisted) for uid, keys in ours.lists.items()},
    )
