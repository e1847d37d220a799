"""Look-ups in one snapshot of the state.

Invariant: everything that a View answers is of one epoch.  What it has looked up is kept (`kept`), and its reader drops of that
what a change touches.
A View is valid until its reader's next `view()` or `release()`.  Knows nothing of writing, nor of what an answer means for a
connection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import merge
from itertools import islice
from typing import Any, TypeVar

import lmdb

from nodeproxy.model.policy import Policy
from nodeproxy.model.workload import Protocol, Service, Workload
from nodeproxy.policy.authorize import MAX_NAMED, Candidates, Named
from nodeproxy.policy.index import digest, values_of
from nodeproxy.policy.match import Facts, Subject
from nodeproxy.state.changes import epoch_of
from nodeproxy.state.kept import MAX_CACHED_POLICIES, Endpoint, Kept, Many, keep
from nodeproxy.state.layout import (
    ABSENT,
    GLOBAL_SCOPE,
    GROUPS,
    PARTIAL,
    decode_policy,
    decode_service,
    decode_workload,
    group_of,
    scope_key,
    scope_of,
)
from nodeproxy.state.snapshot import Snapshot

# So many policies are looked at one by one; of more, the index says which.  Measured: to ask it takes 9 us, which is as long as 6
# policies of 10 rules take, or some 30 of one rule.
MAX_WALKED = 16

_V = TypeVar("_V")


def _rank(workload: Workload) -> tuple[bool, bool]:
    """Which of several workloads with one address answers to it, as in ztunnel: pods, as they can't be forged; then members."""
    return "//Pod/" in workload.uid, workload.protocol is Protocol.HBONE


class View(Snapshot):
    """The state at `epoch`."""

    def __init__(self, txn: lmdb.Transaction, tables: dict[str, Any], kept: Kept) -> None:
        super().__init__(txn, tables)
        self.epoch = epoch_of(txn, tables)
        self._kept = kept
        self._is_incomplete: bool | None = None

    def workload(self, uid: str) -> Workload | None:
        """The workload with this uid."""
        try:
            return self._kept.workloads[uid]
        except KeyError:
            raw = self._get("workloads", uid.encode())
            return keep(self._kept.workloads, uid, None if raw is None else decode_workload(raw))

    def service(self, key: str) -> Service | None:
        """The service with this key, "namespace/hostname"."""
        try:
            return self._kept.services[key]
        except KeyError:
            raw = self._get("services", key.encode())
            return keep(self._kept.services, key, None if raw is None else decode_service(raw))

    def workload_at(self, network: str, ip: str) -> Workload | None:
        """Who has this address (text in canonical form); of several a pod, then a mesh member, then the first by uid."""
        try:
            return self._kept.workloads_at[network, ip]
        except KeyError:
            found = self._all(self.workload, "addresses", f"{network}/{ip}")
            best = found[0] if len(found) == 1 else max(found, key=_rank, default=None)
            return keep(self._kept.workloads_at, (network, ip), best)

    def service_at(self, network: str, ip: str) -> Service | None:
        """The service with this virtual address; of several the first by key."""
        try:
            return self._kept.services_at[network, ip]
        except KeyError:
            found = self._all(self.service, "vips", f"{network}/{ip}")
            return keep(self._kept.services_at, (network, ip), found[0] if found else None)

    def service_by_host(self, hostname: str, client_namespace: str) -> Service | None:
        """The service that `hostname` means to a client: its own namespace's, then the canonical one, then the first by key.

        Services that are visible in their own namespace only are not there for others.
        """
        try:
            return self._kept.services_by_host[hostname, client_namespace]
        except KeyError:
            found = [
                service
                for service in self._all(self.service, "hosts", hostname.lower())
                if service.namespace == client_namespace or not service.namespace_only
            ]
            best = max(found, key=lambda service: (service.namespace == client_namespace, service.canonical), default=None)
            return keep(self._kept.services_by_host, (hostname, client_namespace), best)

    def is_absent(self, name: str) -> bool:
        """On demand: whether a source has said that nobody has this name ("network/ip", uid or service key).  Not cached.

        What is there wins over it: ask for that first.
        """
        return self._get("asked", name.encode()) == ABSENT

    def asked(self) -> Iterator[str]:
        """On demand: all names that a source has answered for, not cached."""
        return self._keys("asked")

    def _all(self, look_up: Callable[[str], _V | None], index: str, key: str) -> list[_V]:
        """What the index names, in the order of the keys, without what is not there (any more, or yet)."""
        return [found for value in self._values(index, key.encode()) if (found := look_up(value.decode())) is not None]

    def endpoints(self, service_key: str) -> tuple[Endpoint, ...]:
        """The workloads that list this service, in the order of their uids, each with its own map of ports."""
        try:
            return self._kept.endpoints[service_key]
        except KeyError:
            members = self._all(self.workload, "endpoints", service_key)
            found = tuple((member, member.services.get(service_key, {})) for member in members)
            return self._kept.keep_endpoints(service_key, found)

    def count_endpoints(self, service_key: str) -> int:
        """How many workloads list this service."""
        return self._count("endpoints", service_key.encode())

    def count_policies(self, workload: Workload) -> int:
        """How many policies hold for a destination; those that it lists and that hold anyway are counted twice."""
        return len(workload.policies) + self._count_scopes((GLOBAL_SCOPE, workload.namespace))

    def _count_scopes(self, scopes: tuple[str, ...]) -> int:
        return sum(self._count("scopes", scope_key(scope, group)) for scope in scopes for group in GROUPS)

    def policies_for(self, workload: Workload) -> tuple[Policy, ...]:
        """The policies that hold for a destination: global, its namespace's, those it lists; by key, the same tuple each time."""
        held = workload.namespace, workload.policies
        try:
            return self._kept.policies_for[held]
        except KeyError:
            scopes = (GLOBAL_SCOPE, workload.namespace)
            keys = {key for scope in scopes for group in GROUPS for key in self._values("scopes", scope_key(scope, group))}
            keys.update(map(str.encode, workload.policies))
            return keep(self._kept.policies_for, held, self._existing(keys))

    def relevant_policies(self, workload: Workload, subject: Subject) -> tuple[Policy, ...] | Candidates:
        """For `authorize`: what `policies_for` says or, of many policies, those that may match `subject`."""
        held = workload.namespace, workload.policies
        try:
            many = self._kept.many[held]
        except KeyError:
            many = keep(self._kept.many, held, self._many(workload))
        if many is None:
            return self.policies_for(workload)
        facts = Facts(subject)
        keys = set(map(str.encode, workload.policies))
        for scope in (GLOBAL_SCOPE, workload.namespace):
            for group, shape in self._shapes(scope):
                values = values_of(shape)(facts)
                if values is not None:
                    keys.update(self._values("rules", digest(scope.encode(), group, shape, values)))
        policies = self._existing(keys)
        return Candidates(policies, many.allow, many.dry_allow, many.total - len(policies))

    def _many(self, workload: Workload) -> Many | None:
        """None: the policies that hold for the workload are few."""
        scopes = (GLOBAL_SCOPE, workload.namespace)
        count = self._count_scopes(scopes)
        if count + len(workload.policies) <= MAX_WALKED:
            return None
        # Those that the workload lists and that hold anyway are not to be told twice.
        listed = [policy for policy in self._existing(set(map(str.encode, workload.policies))) if scope_of(policy) not in scopes]
        return Many(self._named(scopes, b"A", listed), self._named(scopes, b"a", listed), count + len(listed))

    def _named(self, scopes: tuple[str, ...], group: bytes, listed: list[Policy]) -> Named:
        """The ALLOW policies of one group, by key."""
        keys = [[policy.key.encode() for policy in listed if group_of(policy) == group]]
        keys += [self._values("scopes", scope_key(scope, group), MAX_NAMED) for scope in scopes]
        count = len(keys[0]) + sum(self._count("scopes", scope_key(scope, group)) for scope in scopes)
        return Named(tuple(key.decode() for key in islice(merge(*keys), MAX_NAMED)), count)

    def _shapes(self, scope: str) -> tuple[tuple[bytes, str], ...]:
        """The groups of a scope's policies, each with the shapes of keys that there are in it."""
        try:
            return self._kept.shapes[scope]
        except KeyError:
            found = [(group, shape) for group in GROUPS for shape in self._tails("shapes", scope_key(scope, group))]
            return keep(self._kept.shapes, scope, tuple(found))

    def _existing(self, keys: set[bytes]) -> tuple[Policy, ...]:
        return tuple(policy for key in sorted(keys) if (policy := self.policy(key.decode())) is not None)

    def policy(self, key: str) -> Policy | None:
        """The policy with this key, "namespace/name"."""
        try:
            return self._kept.policies[key]
        except KeyError:
            raw = self._get("policies", key.encode())
            return keep(self._kept.policies, key, None if raw is None else decode_policy(raw), MAX_CACHED_POLICIES)

    def global_namespaces(self) -> frozenset[str]:
        """The namespaces of the policies that hold for all; costs by their number."""
        keys = (key for group in GROUPS for key in self._values("scopes", scope_key(GLOBAL_SCOPE, group)))
        return frozenset(key.decode().partition("/")[0] for key in keys)

    def counts(self) -> dict[str, int]:
        """How many workloads, services and policies there are."""
        return {name: self._entries(name) for name in ("workloads", "services", "policies")}

    @property
    def is_incomplete(self) -> bool:
        """Whether nothing is known at all, as before a source's first answer, or that answer is not there as a whole.

        What is unknown then may be known soon.
        """
        if self._is_incomplete is None:
            self._is_incomplete = self._get("meta", PARTIAL.encode()) is not None or not any(self.counts().values())
        return self._is_incomplete

    def workloads(self) -> Iterator[Workload]:
        """All workloads by uid, not cached: for commands and for the agent, never for a connection."""
        return (decode_workload(raw) for raw in self._raw("workloads"))

    def services(self) -> Iterator[Service]:
        """All services by key, not cached."""
        return (decode_service(raw) for raw in self._raw("services"))

    def policies(self) -> Iterator[Policy]:
        """All policies by key, not cached."""
        return (decode_policy(raw) for raw in self._raw("policies"))
