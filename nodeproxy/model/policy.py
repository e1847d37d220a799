"""Authorization policies: the shape of istio.security, source-neutral.

Rules OR; the clauses of a rule AND; the matches of a clause OR; the fields of a match AND (`nodeproxy.policy.authorize` applies
them).
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class PolicyScope(StrEnum):
    """Whom a policy holds for."""

    GLOBAL = "GLOBAL"
    NAMESPACE = "NAMESPACE"
    WORKLOAD_SELECTOR = "WORKLOAD_SELECTOR"


class Action(StrEnum):
    """What a matching policy means."""

    ALLOW = "ALLOW"
    DENY = "DENY"


class StringMatch(msgspec.Struct, frozen=True, omit_defaults=True):
    """One of the four is set.  `presence`: any non-empty value."""

    exact: str | None = None
    prefix: str | None = None
    suffix: str | None = None
    presence: bool = False


class ServiceAccountMatch(msgspec.Struct, frozen=True, omit_defaults=True):
    """A service account of a namespace, in whatever trust domain."""

    namespace: str
    service_account: str


class Match(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """All non-empty fields must hold; a field holds when any of its values does, its `not_` twin when none does.

    source_ips, destination_ips: CIDR text, "10.0.0.0/8".  principals: without the `spiffe://` prefix.
    """

    namespaces: tuple[StringMatch, ...] = ()
    not_namespaces: tuple[StringMatch, ...] = ()
    principals: tuple[StringMatch, ...] = ()
    not_principals: tuple[StringMatch, ...] = ()
    source_ips: tuple[str, ...] = ()
    not_source_ips: tuple[str, ...] = ()
    destination_ips: tuple[str, ...] = ()
    not_destination_ips: tuple[str, ...] = ()
    destination_ports: tuple[int, ...] = ()
    not_destination_ports: tuple[int, ...] = ()
    service_accounts: tuple[ServiceAccountMatch, ...] = ()
    not_service_accounts: tuple[ServiceAccountMatch, ...] = ()


Clause = tuple[Match, ...]
Rule = tuple[Clause, ...]


class Policy(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One authorization policy.

    stands_in: why the policy of this key can't be understood, if this one only holds its place; "" for a policy that was meant.
    """

    name: str
    namespace: str
    scope: PolicyScope
    action: Action
    rules: tuple[Rule, ...] = ()
    dry_run: bool = False
    stands_in: str = ""

    @property
    def key(self) -> str:
        """The policy key, "namespace/name"."""
        return f"{self.namespace}/{self.name}"
