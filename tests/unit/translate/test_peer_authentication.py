"""PeerAuthentication: what is read of it, and that what nodes decide by it is what Istio's documentation says of the modes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from nodeproxy.model.policy import Match, StringMatch
from nodeproxy.translate.peer_authentication import Mode, PeerAuthentication, convert, read_peer_authentication
from nodeproxy.translate.selectors import Selector
from tests.unit.translate.policy_specs import ROOT, STRICT_KEY, Enforced, connection, resource

KIND = "PeerAuthentication"
MODES = (None, *Mode)
WEB = {"matchLabels": {"app": "web"}}
PORTS = (80, 443)


def spec(mode: str | None, ports: dict[Any, str | None] | None = None, selector: Any = None) -> dict[str, Any]:
    written: dict[str, Any] = {"mtls": {"mode": mode}} if mode else {}
    if selector:
        written["selector"] = selector
    if ports:
        written["portLevelMtls"] = {port: {"mode": mode} for port, mode in ports.items()}
    return written


def read(written: Any, key: str = "ns/p") -> PeerAuthentication:
    return read_peer_authentication(key, resource(written), ROOT)


# ── what it means, against Istio's documentation in the plainest words ──


def in_force(mesh: str | None, namespace: str | None, workload: str | None, port: str | None) -> str:
    """The narrowest level that sets a mode sets it; PERMISSIVE where none does."""
    for mode in (port, workload, namespace, mesh):
        if mode is not None and mode != Mode.UNSET:
            return mode
    return Mode.PERMISSIVE


@pytest.mark.parametrize("mesh", MODES)
@pytest.mark.parametrize("namespace", MODES)
def test_every_mixture_of_modes(mesh: str | None, namespace: str | None) -> None:
    table = Enforced()
    if mesh:
        table.set(KIND, f"{ROOT}/mesh", spec(mesh))
    if namespace:
        table.set(KIND, "ns/namespace", spec(namespace))
    for workload, *modes in itertools.product(MODES, repeat=1 + len(PORTS)):
        ports = {port: mode for port, mode in zip(PORTS, modes, strict=True) if mode}
        table.set(KIND, "ns/workload", spec(workload, ports, WEB))
        for port in (*PORTS, 8080):
            assert table.allows("ns", {"app": "web"}, connection(port=port))
            expected = in_force(mesh, namespace, workload, ports.get(port)) != Mode.STRICT
            taken = table.allows("ns", {"app": "web"}, connection(identity="", port=port))
            if taken != expected:
                # The one place where Istio's control plane is narrower than its documentation.
                assert not taken
                assert ports[port] == Mode.DISABLE
                assert Mode.PERMISSIVE not in ports.values()
                assert in_force(mesh, namespace, workload, None) == Mode.STRICT
                assert workload in (None, Mode.UNSET)
                assert "spec.portLevelMtls" in [note.field for note in table.table.notes()]
            other = in_force(mesh, namespace, None, None) != Mode.STRICT
            assert table.allows("ns", {"app": "other"}, connection(identity="", port=port)) is other
            assert table.allows("elsewhere", {"app": "web"}, connection(identity="", port=port)) is (mesh != Mode.STRICT)


@pytest.mark.parametrize(
    ("older", "younger", "taken"), [("STRICT", "PERMISSIVE", False), ("PERMISSIVE", "STRICT", True), ("UNSET", "STRICT", True)]
)
@pytest.mark.parametrize(("namespace", "selector"), [(ROOT, None), ("ns", None), ("ns", WEB)])
def test_the_oldest_of_a_level_is_in_force(older: str, younger: str, taken: bool, namespace: str, selector: Any) -> None:
    for order in itertools.permutations([("b", older, "2026-01-01T00:00:00Z"), ("a", younger, "2026-01-01T00:00:01Z")]):
        table = Enforced()
        for name, mode, created in order:
            table.set(KIND, f"{namespace}/{name}", spec(mode, selector=selector), created=created)
        assert table.allows("ns", {"app": "web"}, connection(identity="")) is taken
        assert [note.key for note in table.table.notes()] == ([] if selector else [f"{namespace}/a"])


def test_of_the_same_age_the_first_by_name() -> None:
    table = Enforced()
    table.set(KIND, "ns/b", spec("PERMISSIVE"))
    table.set(KIND, "ns/a", spec("STRICT"))
    assert not table.allows("ns", {}, connection(identity=""))


# ── the form ──

NO_IDENTITY = Match(not_principals=(StringMatch(presence=True),))


def test_exceptions_to_strict_are_said_in_one_rule() -> None:
    made = convert(read(spec("STRICT", {80: "DISABLE", 81: "STRICT", 82: "PERMISSIVE", 83: None}, WEB)), False)
    assert made is not None
    assert made.key == "ns/converted_peer_authentication_p"
    assert made.rules == (((NO_IDENTITY,), (Match(not_destination_ports=(80,)),), (Match(not_destination_ports=(82,)),)),)
    assert convert(read(spec(None, {80: "PERMISSIVE"}, WEB)), True) is not None
    assert convert(read(spec(None, {80: "PERMISSIVE"}, WEB)), False) is None


def test_each_strict_port_is_a_rule() -> None:
    made = convert(read(spec("PERMISSIVE", {81: "STRICT", 80: "STRICT", 82: "DISABLE"}, WEB)), True)
    assert made is not None
    assert made.rules == tuple(
        ((Match(not_principals=NO_IDENTITY.not_principals, destination_ports=(port,)),),) for port in (80, 81)
    )


def test_what_is_strict_all_over_lists_the_one_policy() -> None:
    table = Enforced()
    table.set(KIND, "ns/p", spec("STRICT", {80: "STRICT"}, WEB))
    assert [*table.policies] == [STRICT_KEY]
    assert table.policies[STRICT_KEY].rules == (((NO_IDENTITY,),),)
    assert table.table.holding("ns", {"app": "web"}) == (STRICT_KEY,)
    assert table.table.holding("ns", {}) == ()


# ── what can't be read is STRICT ──


@pytest.mark.parametrize(
    ("written", "mode", "ports", "fields"),
    [
        (None, Mode.UNSET, {}, []),
        ({}, Mode.UNSET, {}, []),
        ({"mtls": None, "portLevelMtls": None}, Mode.UNSET, {}, []),
        ({"mtls": {}}, Mode.UNSET, {}, []),
        ({"mtls": {"mode": "DISABLE"}}, Mode.DISABLE, {}, []),
        ([], Mode.STRICT, {}, ["spec"]),
        ({"mtls": "PERMISSIVE"}, Mode.STRICT, {}, ["spec.mtls"]),
        ({"mtls": {"mode": "permissive"}}, Mode.STRICT, {}, ["spec.mtls.mode"]),
        ({"mtls": {"mode": ["PERMISSIVE"]}}, Mode.STRICT, {}, ["spec.mtls.mode"]),
        ({"mtls": {"mode": "PERMISSIVE", "since": "noon"}}, Mode.STRICT, {}, ["spec.mtls.since"]),
        ({"mtls": {"mode": "PERMISSIVE"}, "unless": {}}, Mode.STRICT, {}, ["spec.unless"]),
        ({"selector": "web", "mtls": {"mode": "PERMISSIVE"}}, Mode.STRICT, {}, ["spec.selector"]),
        ({"portLevelMtls": {"80": {"mode": "DISABLE"}}}, Mode.UNSET, {}, ["spec.portLevelMtls.80"]),
        ({"portLevelMtls": {"80": {"mode": "STRICT"}}}, Mode.STRICT, {}, ["spec.portLevelMtls.80"]),
        ({"selector": WEB, "portLevelMtls": {80: None, "81": {}}}, Mode.UNSET, {80: Mode.UNSET, 81: Mode.UNSET}, []),
        ({"selector": WEB, "portLevelMtls": []}, Mode.STRICT, {}, ["spec.portLevelMtls"]),
        ({"selector": WEB, "portLevelMtls": {"http": {"mode": "DISABLE"}}}, Mode.STRICT, {}, ["spec.portLevelMtls.http"]),
        ({"selector": WEB, "portLevelMtls": {True: {"mode": "DISABLE"}}}, Mode.STRICT, {}, ["spec.portLevelMtls[True]"]),
        (
            {"selector": WEB, "portLevelMtls": {0: {}, 2**64: {}}},
            Mode.STRICT,
            {},
            ["spec.portLevelMtls[0]", "spec.portLevelMtls[a number]"],
        ),
        (
            {"selector": WEB, "portLevelMtls": {"80": {"mode": "DISABLE"}, 80: {"mode": "PERMISSIVE"}, "81": {"mode": 1}}},
            Mode.UNSET,
            {80: Mode.STRICT, 81: Mode.STRICT},
            ["spec.portLevelMtls[80]", "spec.portLevelMtls.81.mode"],
        ),
    ],
)
def test_reading(written: Any, mode: Mode, ports: dict[int, Mode], fields: list[str]) -> None:
    found = read(written)
    assert (found.mode, dict(found.ports)) == (mode, ports)
    assert [note.field for note in found.notes] == fields


def test_what_can_t_be_read_lifts_nothing_on_a_port() -> None:
    for spoilt in ({"mtls": 7}, {"portLevelMtls": {"80": {"mode": "DISABLE"}, "http": {}}}):
        table = Enforced()
        table.set(KIND, f"{ROOT}/mesh", spec("STRICT"))
        table.set(KIND, "ns/p", {"selector": WEB, "portLevelMtls": {"80": {"mode": "DISABLE"}}} | spoilt)
        assert not table.allows("ns", {"app": "web"}, connection(identity="", port=80))


def test_a_selector_without_labels_is_none() -> None:
    for selector in ({}, {"matchLabels": {}}):
        assert read({"selector": selector}).selector is None
    assert read({"selector": WEB}).selector == Selector((("app", "web"),))


def test_a_selector_that_can_t_be_read_is_still_one() -> None:
    table = Enforced()
    table.set(KIND, "ns/all", spec("PERMISSIVE"), created="1")
    table.set(KIND, "ns/web", spec("STRICT", selector={"matchLabels": {"app": ["web"]}}), created="2")
    # Else it would be the younger one of two for the namespace, and not in force.
    assert not table.allows("ns", {"app": "web"}, connection(identity=""))
    table.set(KIND, f"{ROOT}/mesh", spec("PERMISSIVE", selector="web"), created="1")
    assert not table.allows("elsewhere", {}, connection(identity=""))


def test_a_selector_in_the_root_namespace_is_not_in_force() -> None:
    table = Enforced()
    table.set(KIND, f"{ROOT}/p", spec("STRICT", {80: "PERMISSIVE"}, WEB))
    assert table.table.holding(ROOT, {"app": "web"}) == ()
    assert [*table.policies] == [STRICT_KEY]
    assert [note.field for note in table.table.notes()] == ["spec.selector"]
