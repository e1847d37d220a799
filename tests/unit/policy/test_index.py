"""What the index leaves out, and that it stays small; that it leaves out nothing which matches is shown in tests/fuzz."""

from __future__ import annotations

import pytest

from nodeproxy.errors import ConfigError
from nodeproxy.model.policy import Action, Match, Policy, PolicyScope, Rule, ServiceAccountMatch, StringMatch
from nodeproxy.policy.index import MAX_RULE_KEYS, index_keys, values_of
from nodeproxy.policy.match import Facts, Subject

WEB = Subject("spiffe://td/ns/prod/sa/web", "10.0.0.1", "10.0.1.1", 8080)


def policy(*rules: Rule) -> Policy:
    return Policy(name="p", namespace="ns", scope=PolicyScope.NAMESPACE, action=Action.DENY, rules=rules)


def finds(subject: Subject, found: Policy) -> bool:
    facts = Facts(subject)
    return any(values_of(shape)(facts) == values for shape, values in index_keys(found))


def exact(text: str) -> StringMatch:
    return StringMatch(exact=text)


@pytest.mark.parametrize(
    "match",
    [
        Match(principals=(exact("td/ns/prod/sa/db"),)),
        Match(principals=(StringMatch(prefix="td/ns/test/"), StringMatch(suffix="/sa/db"))),
        Match(namespaces=(exact("test"),)),
        Match(namespaces=(StringMatch(prefix="te"),)),
        Match(service_accounts=(ServiceAccountMatch("prod", "db"),)),
        Match(source_ips=("10.0.0.2", "10.1.0.0/16")),
        Match(destination_ips=("10.0.1.2",)),
        Match(destination_ports=(80, 443)),
        Match(namespaces=(exact("prod"),), destination_ports=(80,)),
        Match(principals=(StringMatch(presence=True),), destination_ports=(80,)),
    ],
)
def test_what_names_something_else_is_not_found(match: Match) -> None:
    assert not finds(WEB, policy(((match,),)))


def test_clauses_count_together() -> None:
    """From a namespace *and* to a port: Istio writes them as two clauses."""
    source, port = Match(namespaces=(exact("prod"),)), Match(destination_ports=(80,))
    assert not finds(WEB, policy(((source,), (port,))))
    assert finds(WEB, policy(((source,), (port,)), ((source,),)))


def test_what_never_matches_has_no_key_and_what_always_does_has_the_empty_one() -> None:
    assert index_keys(policy()) == index_keys(policy(((Match(),),))) == set()
    assert index_keys(policy(())) == index_keys(policy(((Match(not_namespaces=(exact("a"),)),),))) == {("", ())}


def test_keys_do_not_multiply_without_bound() -> None:
    principals = tuple(exact(f"td/ns/a/sa/{number}") for number in range(100))
    ports = Match(destination_ports=tuple(range(1, 101)))
    large = index_keys(policy(((Match(principals=principals),), (ports,), (ports,))))
    assert len(large) == 100
    assert {shape for shape, _ in large} == {"p="}
    small = index_keys(policy(((Match(principals=principals[:8]),), (Match(destination_ports=tuple(range(1, 9))),))))
    assert len(small) == MAX_RULE_KEYS
    many_clauses = index_keys(policy(tuple((Match(destination_ports=(port,)),) for port in range(1, 500))))
    assert max(len(shape) for shape, _ in many_clauses) < 50


def test_shapes_are_few_however_long_the_prefixes() -> None:
    prefixes = tuple(StringMatch(prefix="x" * length) for length in range(400))
    assert len({shape for shape, _ in index_keys(policy(((Match(principals=prefixes),),)))}) <= 49


def test_a_bad_block_is_an_error() -> None:
    with pytest.raises(ConfigError, match="CIDR"):
        index_keys(policy(((Match(source_ips=("10.0.0.0/99",)),),)))
