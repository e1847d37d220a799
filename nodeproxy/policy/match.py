"""One `Match` of a policy, compiled: a policy is written once and asked for every connection.

Invariant: a compiled match answers as the fields of `nodeproxy.model.policy.Match` are defined: all non-empty fields hold, a
field holds when any of its values does, its `not_` twin when none does.  An empty Match compiles to None: the caller skips it.
Knows nothing of rules, actions or scopes (`authorize`), nor where an identity came from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import msgspec

from nodeproxy.model.policy import Match, ServiceAccountMatch, StringMatch
from nodeproxy.policy.address import ip_number, parse_cidr

_SPIFFE = "spiffe://"
# spiffe://trust-domain/ns/namespace/sa/service-account, split at "/" after the scheme
_IDENTITY_PARTS = 5


class Subject(msgspec.Struct, frozen=True):
    """Whom a policy judges: a connection on its way into a pod.

    source_identity: the SPIFFE ID that the client proved, "" if it proved none.
    destination_ip, destination_port: the pod's own, after service mapping.
    """

    source_identity: str
    source_ip: str
    destination_ip: str
    destination_port: int


class Facts:
    """A `Subject` as the fields of a Match ask for it."""

    __slots__ = ("destination", "namespace", "port", "principal", "service_account", "source")

    def __init__(self, subject: Subject) -> None:
        identity = subject.source_identity
        self.source = ip_number(subject.source_ip)
        self.destination = ip_number(subject.destination_ip)
        self.port = subject.destination_port
        self.principal = identity[len(_SPIFFE) :] if identity.startswith(_SPIFFE) else ""
        self.namespace = self.service_account = ""
        parts = self.principal.split("/")
        if len(parts) == _IDENTITY_PARTS and parts[1] == "ns" and parts[3] == "sa":
            self.namespace, self.service_account = parts[2], parts[4]


Test = Callable[[Facts], bool]
_T = TypeVar("_T")


def compile_match(match: Match) -> Test | None:
    """The test that `match` amounts to, None for an empty one.  Raises ConfigError for a CIDR that is none."""
    tests = [
        *_field(match.destination_ports, match.not_destination_ports, _ports),
        *_field(match.namespaces, match.not_namespaces, _namespaces),
        *_field(match.principals, match.not_principals, _principals),
        *_field(match.service_accounts, match.not_service_accounts, _service_accounts),
        *_field(match.source_ips, match.not_source_ips, _source_ips),
        *_field(match.destination_ips, match.not_destination_ips, _destination_ips),
    ]
    if not tests:
        return None
    if len(tests) == 1:
        return tests[0]
    frozen = tuple(tests)
    return lambda facts: all(test(facts) for test in frozen)


def _field(positive: tuple[_T, ...], negative: tuple[_T, ...], compile_values: Callable[[tuple[_T, ...]], Test]) -> list[Test]:
    """A field and its `not_` twin: no test for what is empty."""
    tests = [compile_values(positive)] if positive else []
    if negative:
        excluded = compile_values(negative)
        tests.append(lambda facts: not excluded(facts))
    return tests


def compile_strings(values: Iterable[StringMatch]) -> Callable[[str], bool]:
    """A test whether any of `values` matches a text."""
    values = tuple(values)
    exact = frozenset(value.exact for value in values if value.exact is not None)
    prefixes = tuple(value.prefix for value in values if value.prefix is not None)
    suffixes = tuple(value.suffix for value in values if value.suffix is not None)
    presence = any(value.presence for value in values)
    if not prefixes and not suffixes and not presence:
        return exact.__contains__
    return lambda text: text in exact or (presence and text != "") or text.startswith(prefixes) or text.endswith(suffixes)


def _namespaces(values: tuple[StringMatch, ...]) -> Test:
    matches = compile_strings(values)
    return lambda facts: matches(facts.namespace)


def _principals(values: tuple[StringMatch, ...]) -> Test:
    matches = compile_strings(values)
    # No principal matches nothing, not even an empty prefix: ztunnel's matches_principal fails without the spiffe:// scheme.
    return lambda facts: facts.principal != "" and matches(facts.principal)


def _service_accounts(values: tuple[ServiceAccountMatch, ...]) -> Test:
    pairs = frozenset((value.namespace, value.service_account) for value in values)
    return lambda facts: facts.service_account != "" and (facts.namespace, facts.service_account) in pairs


def _ports(values: tuple[int, ...]) -> Test:
    ports = frozenset(values)
    return lambda facts: facts.port in ports


def _source_ips(values: tuple[str, ...]) -> Test:
    inside = _blocks(values)
    return lambda facts: inside(facts.source)


def _destination_ips(values: tuple[str, ...]) -> Test:
    inside = _blocks(values)
    return lambda facts: inside(facts.destination)


def _blocks(values: tuple[str, ...]) -> Callable[[int], bool]:
    """A test whether any of the blocks holds an address: one set look-up for each distinct prefix length."""
    by_mask: dict[int, set[int]] = {}
    for value in values:
        network, mask = parse_cidr(value)
        by_mask.setdefault(mask, set()).add(network)
    tables = tuple((mask, frozenset(networks)) for mask, networks in by_mask.items())
    return lambda number: number >= 0 and any(number & mask in networks for mask, networks in tables)
