"""What is said before a connection is there never goes further than what `authorize` says when it is."""

from __future__ import annotations

import random

import pytest

from nodeproxy.model.policy import Action, Match, Policy, PolicyScope, Rule, ServiceAccountMatch, StringMatch
from nodeproxy.policy.authorize import authorize
from nodeproxy.policy.beforehand import ANY_OTHER_PORT, Hindrance, PoliciesBeforehand
from nodeproxy.policy.match import Subject

WEB = "spiffe://cluster.local/ns/prod/sa/web"
DB = "spiffe://cluster.local/ns/back/sa/db"
IDENTITIES = (WEB, DB, "spiffe://other.domain/ns/prod/sa/web")
ADDRESSES = ("10.0.0.1", "10.0.0.2", "fd00::1")
PORTS = (80, 443, 8080, 9000)
STRINGS = (
    StringMatch(exact="prod"),
    StringMatch(prefix="ba"),
    StringMatch(presence=True),
    StringMatch(exact=WEB.removeprefix("spiffe://")),
    StringMatch(suffix="/sa/db"),
)
ACCOUNTS = (ServiceAccountMatch("prod", "web"), ServiceAccountMatch("back", "db"))
BLOCKS = ("10.0.0.1/32", "10.0.0.0/8", "fd00::/64")


def policy(action: Action, *rules: Rule, name: str = "p", dry_run: bool = False) -> Policy:
    return Policy(name=name, namespace="ns", scope=PolicyScope.NAMESPACE, action=action, rules=rules, dry_run=dry_run)


def hindrance(identity: str, port: int, *policies: Policy) -> Hindrance | None:
    return PoliciesBeforehand(policies).ask(identity).hindrance(port)


def some(rng: random.Random, values: tuple[object, ...], chance: float) -> tuple[object, ...]:
    return tuple(rng.sample(values, rng.randint(1, 2))) if rng.random() < chance else ()


def random_match(rng: random.Random, addresses: bool) -> Match:
    given: dict[str, object] = {}
    for prefix in ("", "not_"):
        chance = 0.25 if prefix else 0.35
        given[f"{prefix}namespaces"] = some(rng, STRINGS, chance / 2)
        given[f"{prefix}principals"] = some(rng, STRINGS, chance / 2)
        given[f"{prefix}service_accounts"] = some(rng, ACCOUNTS, chance / 2)
        if addresses:
            given[f"{prefix}source_ips"] = some(rng, BLOCKS, chance / 4)
            given[f"{prefix}destination_ips"] = some(rng, BLOCKS, chance / 4)
        given[f"{prefix}destination_ports"] = some(rng, PORTS, chance)
    return Match(**given)  # type: ignore[arg-type]


def random_policies(rng: random.Random, *, addresses: bool = True) -> tuple[Policy, ...]:
    policies = []
    for number in range(rng.randint(0, 4)):
        rules = tuple(
            tuple(tuple(random_match(rng, addresses) for _ in range(rng.randint(0, 2))) for _ in range(rng.randint(0, 2)))
            for _ in range(rng.randint(0, 3))
        )
        action = rng.choice((Action.ALLOW, Action.ALLOW, Action.DENY))
        policies.append(policy(action, *rules, name=f"p{number}", dry_run=rng.random() < 0.2))
    return tuple(policies)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_not_hindered_is_allowed_whatever_the_addresses(seed: int) -> None:
    rng = random.Random(seed)
    free = 0
    for _ in range(60):
        policies = random_policies(rng)
        identity = rng.choice(IDENTITIES)
        beforehand = PoliciesBeforehand(policies).ask(identity)
        for port in (*PORTS, 1, 65535):
            named = port if port in beforehand.ports else ANY_OTHER_PORT
            verdicts = [authorize(policies, Subject(identity, a, b, port)) for a in ADDRESSES for b in ADDRESSES]
            if beforehand.hindrance(named) is None:
                free += 1
                assert all(verdict.allowed and not verdict.dry_run for verdict in verdicts), (policies, identity, port)
    assert free > 40  # it does not hold because everything is hindered


@pytest.mark.parametrize("seed", range(10))
def test_without_addresses_in_rules_nothing_is_hindered_without_need(seed: int) -> None:
    rng = random.Random(1000 + seed)
    for _ in range(60):
        policies = random_policies(rng, addresses=False)
        identity = rng.choice(IDENTITIES)
        beforehand = PoliciesBeforehand(policies).ask(identity)
        for port in (*PORTS, 1):
            verdict = authorize(policies, Subject(identity, "10.0.0.1", "10.0.0.2", port))
            named = port if port in beforehand.ports else ANY_OTHER_PORT
            assert (beforehand.hindrance(named) is None) == (verdict.allowed and not verdict.dry_run)


def rule(**fields: object) -> Rule:
    return ((Match(**fields),),)  # type: ignore[arg-type]


NAMESPACE = {"namespaces": (StringMatch(exact="prod"),)}


@pytest.mark.parametrize(
    ("policies", "identity", "port", "detail"),
    [
        ((policy(Action.DENY, rule(**NAMESPACE)),), WEB, 80, "DENY policy ns/p matches"),
        ((policy(Action.DENY, rule(**NAMESPACE)),), DB, 80, None),
        ((policy(Action.DENY, rule(source_ips=BLOCKS)),), DB, 80, "DENY policy ns/p decides by an address"),
        ((policy(Action.DENY, rule(source_ips=BLOCKS, **NAMESPACE)),), DB, 80, None),
        ((policy(Action.DENY, rule(**NAMESPACE), dry_run=True),), WEB, 80, "DENY policy ns/p, in dry-run"),
        ((policy(Action.DENY, rule(source_ips=BLOCKS), dry_run=True),), WEB, 80, "DENY policy ns/p, in dry-run"),
        ((policy(Action.ALLOW, rule(**NAMESPACE)),), WEB, 80, None),
        ((policy(Action.ALLOW, rule(**NAMESPACE)),), DB, 80, "no ALLOW policy matches"),
        ((policy(Action.ALLOW, rule(source_ips=BLOCKS)),), DB, 80, "ALLOW policy ns/p decides by an address"),
        ((policy(Action.ALLOW, rule(destination_ports=(80,))),), DB, 80, None),
        ((policy(Action.ALLOW, rule(destination_ports=(80,))),), DB, ANY_OTHER_PORT, "no ALLOW policy matches"),
        ((policy(Action.ALLOW, rule(**NAMESPACE), dry_run=True),), DB, 80, "ALLOW policies in dry-run"),
        ((policy(Action.ALLOW, rule(**NAMESPACE), dry_run=True),), WEB, 80, None),
        ((policy(Action.ALLOW),), WEB, 80, "no ALLOW policy matches"),
        ((policy(Action.DENY, ((),)),), WEB, 80, "DENY policy ns/p matches"),  # an empty clause is true
        ((policy(Action.DENY, ((Match(),),)),), WEB, 80, None),  # an empty Match is skipped
    ],
)
def test_what_hinders_is_named(policies: tuple[Policy, ...], identity: str, port: int, detail: str | None) -> None:
    found = hindrance(identity, port, *policies)
    assert found is None if detail is None else found is not None and found.detail.startswith(detail)


def test_ports_of_rules_for_others_do_not_count() -> None:
    rules = (rule(destination_ports=(1, 2), principals=(StringMatch(exact="nobody"),)), rule(destination_ports=(3,)))
    assert PoliciesBeforehand((policy(Action.ALLOW, *rules),)).ask(WEB).ports == {3}
