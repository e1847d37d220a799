"""What policies say about a source before it connects: for which ports of the destination no connection needs to be judged.

A rule is looked at with what is known of a source for as long as it lives, its identity, and in three values: it matches, it does
not, or it depends on an address, which only a connection has.  Invariant: where no hindrance is named, `authorize` allows every
connection of that identity to that port, whatever its addresses, and no dry-run policy has a word to say about it.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from nodeproxy.model.policy import Action, Clause, Match, Policy, StringMatch
from nodeproxy.policy.match import Facts, Subject, Test, compile_match

# The values of a three-valued logic (Kleene's): "and" is the smaller one, "or" the greater.
_NO, _PERHAPS, _YES = 0, 1, 2
_EMPTY = Match()
_Key = tuple[str, str]
# Stands for every port that no rule names: a number that no rule can name.
ANY_OTHER_PORT = -1


class Hindrance(msgspec.Struct, frozen=True):
    """Why a connection must be judged one by one.  resource: the policy (or whatever else) that wants it, "" if none does."""

    detail: str
    resource: str = ""


class _Match:
    """A match, parted by what can be known when: `identity` is None where any will do."""

    __slots__ = ("by_address", "identity", "keys", "not_ports", "ports")

    def __init__(self, match: Match) -> None:
        self.ports = frozenset(match.destination_ports)
        self.not_ports = frozenset(match.not_destination_ports)
        addresses = (match.source_ips, match.not_source_ips, match.destination_ips, match.not_destination_ips)
        self.by_address = any(addresses)
        self.identity: Test | None = compile_match(
            Match(
                namespaces=match.namespaces,
                not_namespaces=match.not_namespaces,
                principals=match.principals,
                not_principals=match.not_principals,
                service_accounts=match.service_accounts,
                not_service_accounts=match.not_service_accounts,
            )
        )

        self.keys: frozenset[_Key] = _exact(match)

    def value(self, port: int) -> int:
        """For a source whose identity matches."""
        if (self.ports and port not in self.ports) or port in self.not_ports:
            return _NO
        return _PERHAPS if self.by_address else _YES


def _exact(match: Match) -> frozenset[_Key]:
    """Where a match names its identities outright: one of these it must be; empty: it does not."""
    for field, name in ((match.principals, "principal"), (match.namespaces, "namespace")):
        if field and all(value.exact is not None and value == StringMatch(exact=value.exact) for value in field):
            return frozenset((name, value.exact) for value in field if value.exact is not None)
    return frozenset((account.namespace, account.service_account) for account in match.service_accounts)


_Clauses = tuple[tuple[_Match, ...], ...]
_Kind = tuple[Action, bool]  # what a policy does, and whether in dry-run


class _Rule:
    """A rule of a policy, or what is left of it for one identity: clauses, each with the matches that may hold."""

    __slots__ = ("clauses", "policy")

    def __init__(self, policy: Policy, clauses: _Clauses) -> None:
        self.policy = policy
        self.clauses = clauses

    def rest(self, facts: Facts) -> _Rule | None:
        """What `facts`, of which only the identity is asked for, leave open; None: it can't match."""
        left = []
        for matches in self.clauses:
            held = tuple([match for match in matches if match.identity is None or match.identity(facts)])
            if not held:
                return None
            left.append(held)
        return _Rule(self.policy, tuple(left))

    def value(self, port: int) -> int:
        """Whether it matches a connection to `port`, once `rest` has looked at the identity."""
        return min((max(match.value(port) for match in matches) for matches in self.clauses), default=_YES)

    def ports(self) -> set[int]:
        """Those that it names."""
        return {port for matches in self.clauses for match in matches for port in match.ports | match.not_ports}

    def identities(self) -> frozenset[_Key] | None:
        """What an identity must have one of for the rule to match; None: that can't be said."""
        for matches in self.clauses:
            if all(match.keys for match in matches):
                return frozenset().union(*(match.keys for match in matches))
        return None


class Beforehand:
    """What one set of policies says about one identity."""

    __slots__ = ("_kinds", "_rules", "ports")

    def __init__(self, kinds: frozenset[_Kind], rules: Iterable[_Rule]) -> None:
        """kinds: of all policies in the set; rules: those that may match this identity."""
        self._kinds = kinds
        self._rules: dict[_Kind, list[_Rule]] = {}
        self.ports: set[int] = set()  # that these rules name
        for rule in rules:
            self._rules.setdefault((rule.policy.action, rule.policy.dry_run), []).append(rule)
            self.ports |= rule.ports()

    def hindrance(self, port: int = ANY_OTHER_PORT) -> Hindrance | None:
        """Why connections to `port` (by default to one that no rule names) must be judged one by one; None: they needn't."""
        for dry_run in (False, True):
            for rule in self._rules.get((Action.DENY, dry_run), ()):
                if value := rule.value(port):
                    return _wants(rule.policy, value)
        perhaps = None
        for rule in self._rules.get((Action.ALLOW, False), ()):
            if (value := rule.value(port)) == _YES:
                return None  # dry-run ALLOWs are not asked where one of the others matches
            perhaps = rule if value else perhaps
        if (Action.ALLOW, False) in self._kinds:
            return (
                Hindrance("no ALLOW policy matches, whatever the address")
                if perhaps is None
                else _wants(perhaps.policy, _PERHAPS)
            )
        dry_allow = self._rules.get((Action.ALLOW, True), ())
        if (Action.ALLOW, True) in self._kinds and not any(rule.value(port) == _YES for rule in dry_allow):
            return Hindrance("ALLOW policies in dry-run want to tell of it")
        return None


def _wants(policy: Policy, value: int) -> Hindrance:
    kind = f"{policy.action.value} policy {policy.key}"
    if policy.dry_run:
        return Hindrance(f"{kind}, in dry-run, wants to tell of it", policy.key)
    if value == _PERHAPS:
        return Hindrance(f"{kind} decides by an address, which only a connection has", policy.key)
    return Hindrance(f"{kind} matches", policy.key)


class PoliciesBeforehand:
    """Policies that hold together; their rules by the identities that they are about, so that one does not walk all others'."""

    def __init__(self, policies: tuple[Policy, ...]) -> None:
        self._kinds = frozenset((policy.action, policy.dry_run) for policy in policies)
        self._about: dict[_Key, list[_Rule]] = {}
        self._others: list[_Rule] = []
        for policy in policies:
            for clauses in policy.rules:
                self._file(_Rule(policy, tuple(map(_compiled, filter(None, clauses)))))  # an empty clause is true: it is left out

    def ask(self, identity: str) -> Beforehand:
        """What they say about a SPIFFE ID."""
        facts = Facts(Subject(identity, "", "", ANY_OTHER_PORT))
        keys = ("principal", facts.principal), ("namespace", facts.namespace), (facts.namespace, facts.service_account)
        rules = [*self._others, *(rule for key in keys for rule in self._about.get(key, ()))]
        return Beforehand(self._kinds, [rest for rule in rules if (rest := rule.rest(facts)) is not None])

    def _file(self, rule: _Rule) -> None:
        keys = rule.identities()
        if keys is None:
            self._others.append(rule)
        for key in keys or ():
            self._about.setdefault(key, []).append(rule)


def _compiled(clause: Clause) -> tuple[_Match, ...]:
    return tuple(_Match(match) for match in clause if match != _EMPTY)  # as in `authorize`, an empty Match is skipped
