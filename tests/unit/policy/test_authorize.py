"""The authorization semantics, case by case: each field and its not_ twin, scope-free; actions; empty cases; dry run."""

from __future__ import annotations

import pytest

from nodeproxy.errors import ConfigError
from nodeproxy.model.policy import Action, Match, Policy, PolicyScope, Rule, ServiceAccountMatch, StringMatch
from nodeproxy.model.reason import Reason, Refusal
from nodeproxy.policy.authorize import MAX_NAMED, Candidates, Considered, Named, Verdict, authorize, check_policy
from nodeproxy.policy.match import Subject

WEB = Subject("spiffe://cluster.local/ns/prod/sa/web", "10.0.0.1", "10.0.1.1", 8080)
ANONYMOUS = Subject("", "10.0.0.1", "10.0.1.1", 8080)
WEB_6 = Subject("spiffe://cluster.local/ns/prod/sa/web", "2001:db8::1", "2001:db8:1::1", 8080)


def policy(name: str, action: Action, *rules: Rule, dry_run: bool = False) -> Policy:
    return Policy(name=name, namespace="ns", scope=PolicyScope.NAMESPACE, action=action, rules=rules, dry_run=dry_run)


def allow(*rules: Rule, name: str = "allow", dry_run: bool = False) -> Policy:
    return policy(name, Action.ALLOW, *rules, dry_run=dry_run)


def deny(*rules: Rule, name: str = "deny", dry_run: bool = False) -> Policy:
    return policy(name, Action.DENY, *rules, dry_run=dry_run)


def rule(**fields: object) -> Rule:
    return ((Match(**fields),),)  # type: ignore[arg-type]


def exact(text: str) -> StringMatch:
    return StringMatch(exact=text)


PRODUCTION = (exact("prod"),)
OTHER = (exact("other"),)
WEB_PRINCIPAL = (exact("cluster.local/ns/prod/sa/web"),)
WEB_ACCOUNT = (ServiceAccountMatch("prod", "web"),)
NOT_WEB_ACCOUNT = (ServiceAccountMatch("other", "web"), ServiceAccountMatch("prod", "other"))

# (fields of the one match, subject, does it match?)
FIELDS = [
    ({"namespaces": PRODUCTION}, WEB, True),
    ({"namespaces": OTHER}, WEB, False),
    ({"namespaces": OTHER + PRODUCTION}, WEB, True),
    ({"namespaces": PRODUCTION}, ANONYMOUS, False),
    ({"namespaces": (StringMatch(prefix="pr"),)}, WEB, True),
    ({"namespaces": (StringMatch(suffix="od"),)}, WEB, True),
    ({"namespaces": (StringMatch(presence=True),)}, WEB, True),
    ({"namespaces": (StringMatch(presence=True),)}, ANONYMOUS, False),
    ({"not_namespaces": PRODUCTION}, WEB, False),
    ({"not_namespaces": OTHER}, WEB, True),
    ({"not_namespaces": OTHER + PRODUCTION}, WEB, False),
    ({"not_namespaces": PRODUCTION}, ANONYMOUS, True),
    ({"principals": WEB_PRINCIPAL}, WEB, True),
    ({"principals": (exact("spiffe://cluster.local/ns/prod/sa/web"),)}, WEB, False),  # without the scheme
    ({"principals": (exact("other.domain/ns/prod/sa/web"),)}, WEB, False),
    ({"principals": (StringMatch(prefix="cluster.local/"),)}, WEB, True),
    ({"principals": (StringMatch(prefix="spiffe://"),)}, WEB, False),
    ({"principals": (StringMatch(suffix="/sa/web"),)}, WEB, True),
    ({"principals": (StringMatch(presence=True),)}, WEB, True),
    ({"principals": (StringMatch(presence=True),)}, ANONYMOUS, False),
    ({"principals": (StringMatch(prefix=""),)}, ANONYMOUS, False),  # nobody is no principal
    ({"not_principals": WEB_PRINCIPAL}, WEB, False),
    ({"not_principals": (exact("cluster.local/ns/prod/sa/db"),)}, WEB, True),
    ({"not_principals": (StringMatch(presence=True),)}, WEB, False),
    ({"not_principals": (StringMatch(presence=True),)}, ANONYMOUS, True),
    ({"service_accounts": WEB_ACCOUNT}, WEB, True),
    ({"service_accounts": NOT_WEB_ACCOUNT}, WEB, False),
    ({"service_accounts": WEB_ACCOUNT}, ANONYMOUS, False),
    ({"service_accounts": (ServiceAccountMatch("", ""),)}, ANONYMOUS, False),
    ({"not_service_accounts": WEB_ACCOUNT}, WEB, False),
    ({"not_service_accounts": NOT_WEB_ACCOUNT}, WEB, True),
    ({"not_service_accounts": WEB_ACCOUNT}, ANONYMOUS, True),
    ({"source_ips": ("10.0.0.0/24",)}, WEB, True),
    ({"source_ips": ("10.0.1.0/24",)}, WEB, False),
    ({"source_ips": ("10.0.1.0/24", "10.0.0.1/32")}, WEB, True),
    ({"source_ips": ("2001:db8::/48",)}, WEB_6, True),
    ({"source_ips": ("0.0.0.0/0",)}, WEB_6, False),
    ({"source_ips": ("10.0.0.0/24",)}, Subject("", "::ffff:10.0.0.1", "10.0.1.1", 80), True),
    ({"not_source_ips": ("10.0.0.0/24",)}, WEB, False),
    ({"not_source_ips": ("10.0.1.0/24",)}, WEB, True),
    ({"not_source_ips": ("2001:db8::/48",)}, WEB_6, False),
    ({"destination_ips": ("10.0.1.1/32",)}, WEB, True),
    ({"destination_ips": ("10.0.0.0/24",)}, WEB, False),
    ({"destination_ips": ("2001:db8:1::/48",)}, WEB_6, True),
    ({"not_destination_ips": ("10.0.1.1/32",)}, WEB, False),
    ({"not_destination_ips": ("10.0.0.0/24",)}, WEB, True),
    ({"destination_ports": (8080,)}, WEB, True),
    ({"destination_ports": (80, 443)}, WEB, False),
    ({"not_destination_ports": (8080,)}, WEB, False),
    ({"not_destination_ports": (80, 443)}, WEB, True),
    # the fields of a match AND
    ({"namespaces": PRODUCTION, "destination_ports": (8080,)}, WEB, True),
    ({"namespaces": PRODUCTION, "destination_ports": (80,)}, WEB, False),
    # a field and its twin AND
    ({"source_ips": ("10.0.0.0/8",), "not_source_ips": ("10.0.0.1/32",)}, WEB, False),
    ({"source_ips": ("10.0.0.0/8",), "not_source_ips": ("10.0.0.2/32",)}, WEB, True),
]


@pytest.mark.parametrize(("fields", "subject", "matches"), FIELDS)
def test_each_field_allows_and_denies(fields: dict[str, object], subject: Subject, matches: bool) -> None:
    assert authorize((allow(rule(**fields)),), subject).allowed is matches
    assert authorize((deny(rule(**fields)),), subject).allowed is not matches


def test_every_field_of_a_match_is_in_the_table() -> None:
    assert {name for fields, _, _ in FIELDS for name in fields} == set(Match.__struct_fields__)


YES = Match(namespaces=PRODUCTION)
NO = Match(namespaces=OTHER)


@pytest.mark.parametrize(
    ("rules", "matches"),
    [
        ((), False),  # empty rules never match
        (((),), True),  # a rule without clauses asks for nothing
        ((((),),), True),  # an empty clause is true
        ((((), ()),), True),
        ((((), (NO,)),), False),
        ((((), (YES,)),), True),
        ((((Match(),),),), False),  # an empty match is skipped, and then the clause has none that holds
        ((((Match(), Match()),),), False),
        ((((Match(), YES),),), True),
        ((((NO, YES),),), True),  # matches OR
        ((((NO, NO),),), False),
        ((((YES,), (YES,)),), True),  # clauses AND
        ((((YES,), (NO,)),), False),
        ((((NO,),), ((YES,),)), True),  # rules OR
        ((((NO,),), ((NO,),)), False),
    ],
)
def test_how_rules_clauses_and_matches_combine(rules: tuple[Rule, ...], matches: bool) -> None:
    assert authorize((allow(*rules),), WEB).allowed is matches
    assert authorize((deny(*rules),), WEB).allowed is not matches


ANY: Rule = ()


@pytest.mark.parametrize(
    ("policies", "reason", "resource"),
    [
        ((), None, ""),  # no policy: allow
        ((deny(rule(namespaces=OTHER)),), None, ""),  # no ALLOW policy: allow
        ((allow(),), Reason.POLICY_NO_ALLOW, "ns/allow"),  # an ALLOW that never matches denies all
        ((deny(),), None, ""),  # a DENY that never matches denies nothing
        ((allow(ANY), deny(ANY)), Reason.POLICY_DENY, "ns/deny"),  # DENY first
        ((deny(rule(namespaces=OTHER)), allow(ANY)), None, ""),
        ((allow(rule(namespaces=OTHER), name="a"), allow(ANY, name="b")), None, ""),  # any ALLOW will do
        ((allow(name="a"), allow(rule(namespaces=OTHER), name="b")), Reason.POLICY_NO_ALLOW, "ns/a"),
    ],
)
def test_actions(policies: tuple[Policy, ...], reason: Reason | None, resource: str) -> None:
    verdict = authorize(policies, WEB)
    assert verdict.allowed is (reason is None)
    assert (verdict.refusal.reason if verdict.refusal else None) is reason
    assert (verdict.refusal.resource if verdict.refusal else "") == resource


def test_a_denial_names_policy_and_rule() -> None:
    refusal = authorize([deny(rule(namespaces=OTHER), rule(destination_ports=(8080,)))], WEB).refusal
    assert refusal is not None
    assert refusal.detail == "denied by DENY policy ns/deny, rule 1"


def test_a_refusal_names_every_allow_policy_that_did_not_match() -> None:
    refusal = authorize([allow(name="a"), allow(name="b")], WEB).refusal
    assert refusal is not None
    assert refusal.detail == "no ALLOW policy matched: ns/a, ns/b"


def test_of_many_policies_the_refusal_names_some() -> None:
    refusal = authorize([allow(name=f"p{number}") for number in range(MAX_NAMED + 5)], WEB).refusal
    assert refusal is not None
    assert refusal.resource == "ns/p0"
    assert refusal.detail.endswith(f", ns/p{MAX_NAMED - 1} and 5 more")


def test_candidates_decide_with_those_that_were_left_out() -> None:
    def candidates(*policies: Policy, allow: Named = NONE, dry_allow: Named = NONE) -> Verdict:
        return authorize(Candidates(policies, allow, dry_allow, 7), WEB)

    left_out = Named(("ns/left-out",), 1)
    assert candidates().allowed
    refusal = candidates(allow=left_out).refusal
    assert refusal == Refusal(Reason.POLICY_NO_ALLOW, "no ALLOW policy matched: ns/left-out", "ns/left-out")
    assert candidates(allow(ANY), allow=left_out).allowed
    assert not candidates(deny(ANY), allow(ANY), allow=left_out).allowed
    assert [each.reason for each in candidates(dry_allow=left_out).dry_run] == [Reason.POLICY_NO_ALLOW]


NONE = Named()
STRICT = deny(rule(not_principals=(StringMatch(presence=True),)), name="strict")
STRICT_BUT_9090 = deny(rule(not_principals=(StringMatch(presence=True),), not_destination_ports=(9090,)), name="strict-but-9090")


@pytest.mark.parametrize(
    ("peer_authentication", "subject", "allowed"),
    [
        (STRICT, WEB, True),
        (STRICT, ANONYMOUS, False),
        (STRICT_BUT_9090, ANONYMOUS, False),
        (STRICT_BUT_9090, Subject("", "10.0.0.1", "10.0.1.1", 9090), True),
        (STRICT_BUT_9090, WEB, True),
    ],
)
def test_strict_peer_authentication(peer_authentication: Policy, subject: Subject, allowed: bool) -> None:
    assert authorize((peer_authentication,), subject).allowed is allowed


@pytest.mark.parametrize(
    ("policies", "allowed", "dry_run"),
    [
        ((deny(ANY, dry_run=True),), True, [Reason.POLICY_DENY]),
        ((deny(rule(namespaces=OTHER), dry_run=True),), True, []),
        ((allow(dry_run=True),), True, [Reason.POLICY_NO_ALLOW]),
        ((allow(ANY, dry_run=True),), True, []),
        ((allow(dry_run=True, name="dry"), allow(ANY)), True, []),  # the enforced one would still allow
        ((allow(dry_run=True, name="dry"), allow()), False, [Reason.POLICY_NO_ALLOW]),
        ((allow(ANY, dry_run=True, name="dry"), allow()), False, []),  # it does not allow what is not allowed
        ((deny(ANY), allow(dry_run=True, name="dry"), allow(ANY)), False, []),
        ((deny(ANY, dry_run=True, name="dry"), deny(ANY)), False, [Reason.POLICY_DENY]),
    ],
)
def test_dry_run_tells_and_never_decides(policies: tuple[Policy, ...], allowed: bool, dry_run: list[Reason]) -> None:
    verdict = authorize(policies, WEB)
    assert verdict.allowed is allowed
    assert [refusal.reason for refusal in verdict.dry_run] == dry_run


def test_trace_tells_each_policy_that_was_looked_at() -> None:
    denying, first, second, third = (
        deny(rule(namespaces=OTHER)),
        allow(name="a"),
        allow(rule(namespaces=OTHER), ANY, name="b"),
        allow(ANY, name="c"),
    )
    trace: list[Considered] = []
    authorize((first, denying, second, third), WEB, trace)
    assert trace == [Considered(denying, -1), Considered(first, -1), Considered(second, 1)]


def test_the_same_tuple_again_and_another_subject() -> None:
    policies = (allow(rule(namespaces=PRODUCTION)),)
    assert [authorize(policies, subject).allowed for subject in (WEB, ANONYMOUS, WEB)] == [True, False, True]


def test_a_policy_that_cannot_be_compiled_is_told_to_its_source() -> None:
    check_policy(allow(rule(source_ips=("10.0.0.0/8",))))
    with pytest.raises(ConfigError, match="CIDR"):
        check_policy(allow(rule(source_ips=("10.0.0.0/99",))))
