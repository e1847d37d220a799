"""Policies and subjects by chance, of few values, so that they meet often."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from nodeproxy.model.policy import Action, Match, Policy, PolicyScope, ServiceAccountMatch, StringMatch
from nodeproxy.policy.match import Subject

NAMESPACES = ("a", "ab", "b", "")
ACCOUNTS = ("x", "xy", "")
# Longer than what of a prefix or suffix is looked up.
_LONG = "td/" + "".join(map(str, range(50)))
PRINCIPALS = (*(f"td/ns/{namespace}/sa/{account}" for namespace in NAMESPACES for account in ACCOUNTS), "odd", _LONG, _LONG)
# Whole values, their beginnings, their ends, and what none has.
_TEXTS = ("", "a", "td/", "td/ns/a", "/sa/x", "y", "other", "x" * 60, *PRINCIPALS, *(each[7:] for each in PRINCIPALS), _LONG[:60])
_BLOCKS = ("10.0.0.0/8", "10.0.0.1", "10.0.1.0/24", "0.0.0.0/0", "::/0", "2001:db8::/32", "::ffff:10.0.0.0/104", "2001:db8::1")
_IPS = ("10.0.0.1", "10.0.1.7", "192.0.2.1", "2001:db8::1", "fd00::1", "::ffff:10.0.0.1", "nonsense")
_PORTS = (80, 443, 8080)
SCOPES = tuple(PolicyScope)


class Chance:
    """The same for the same seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self._values: dict[str, Callable[[], object]] = {
            "namespaces": self.string,
            "principals": self.string,
            "source_ips": lambda: self.random.choice(_BLOCKS),
            "destination_ips": lambda: self.random.choice(_BLOCKS),
            "destination_ports": lambda: self.random.choice(_PORTS),
            "service_accounts": lambda: ServiceAccountMatch(self.random.choice(NAMESPACES), self.random.choice(ACCOUNTS)),
        }
        self._fields = [*self._values, *(f"not_{name}" for name in self._values)]

    def some(self, make: Callable[[], Any], most: int = 3, none: float = 0.25) -> tuple[Any, ...]:
        """Up to `most` of what `make` makes; none: how likely there is nothing at all."""
        if self.random.random() < none:
            return ()
        return tuple(make() for _ in range(self.random.randrange(most) + 1))

    def string(self) -> StringMatch:
        choice = self.random.randrange(12)
        if choice == 0:
            return StringMatch(presence=True)
        if choice == 1:
            return StringMatch()
        text = self.random.choice(_TEXTS)
        if choice == 2:
            return StringMatch(exact=text, prefix=self.random.choice(_TEXTS))
        return StringMatch(**{self.random.choice(("exact", "prefix", "suffix")): text})

    def match(self) -> Match:
        names = self.random.sample(self._fields, self.random.choice((0, 1, 1, 1, 1, 2, 2, 2, 3)))
        return Match(**{name: self.some(self._values[name.removeprefix("not_")]) for name in names})

    def policy(self, scopes: tuple[PolicyScope, ...] = SCOPES) -> Policy:
        return Policy(
            name=f"p{self.random.randrange(40)}",
            namespace=self.random.choice(("ns", "other", "root")),
            scope=self.random.choice(scopes),
            action=Action.DENY if self.random.random() < 0.15 else Action.ALLOW,
            # What is empty matches all, or nothing: seldom, or nothing else would be seen.
            rules=self.some(lambda: self.some(lambda: self.some(self.match, 2, 0.02), 2, 0.01), none=0.02),
            dry_run=self.random.random() < 0.3,
        )

    def subject(self) -> Subject:
        principal = self.random.choice(("", *PRINCIPALS))
        return Subject(
            f"spiffe://{principal}" if principal else "",
            self.random.choice(_IPS),
            self.random.choice(_IPS),
            self.random.choice(_PORTS),
        )
