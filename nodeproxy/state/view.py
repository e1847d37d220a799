"""Look-ups in one snapshot of the state.

Invariant: everything that a View answers is of one epoch.  What it has looked up it keeps (bounded), so that asking again is
one dictionary access; the caches die with the epoch.
A View is valid until its reader's next `view()` or `release()`.  Knows nothing of writing, nor of what an answer means for a
connection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import lmdb

from nodeproxy.errors import StateError
from nodeproxy.model.policy import Policy
from nodeproxy.model.workload import Protocol, Service, Workload
from nodeproxy.state.layout import GLOBAL_SCOPE, MAX_KEY_BYTES, decode_policy, decode_service, decode_workload

# Each kind of look-up keeps so many answers; a full cache is emptied.  A decoded workload takes about 1 KiB, so a worker's
# caches stay under some 20 MiB whatever the size of the mesh.
MAX_CACHED = 8192
# Endpoints kept in all services' lists together.
MAX_CACHED_ENDPOINTS = 16384

Endpoint = tuple[Workload, dict[int, int]]  # a workload and its own map service port -> target port

_K = TypeVar("_K")
_V = TypeVar("_V")


def _keep(cache: dict[_K, _V], key: _K, value: _V) -> _V:
    if len(cache) >= MAX_CACHED:
        cache.clear()
    cache[key] = value
    return value


def _rank(workload: Workload) -> tuple[bool, bool]:
    """Which of several workloads with one address answers to it, as in ztunnel: pods, as they can't be forged; then members."""
    return "//Pod/" in workload.uid, workload.protocol is Protocol.HBONE


class View:
    """The state at `epoch`."""

    def __init__(self, txn: lmdb.Transaction, tables: dict[str, Any], decoded_policies: dict[bytes, Policy]) -> None:
        self.epoch: int = txn.id()
        self._txn = txn
        self._tables = tables
        self._cursors: dict[str, lmdb.Cursor] = {}
        # Shared by the views of a reader: an unchanged policy stays the same object, and so stays compiled (policy.authorize).
        self._decoded_policies = decoded_policies
        self._workloads: dict[str, Workload | None] = {}
        self._services: dict[str, Service | None] = {}
        self._workloads_at: dict[tuple[str, str], Workload | None] = {}
        self._services_at: dict[tuple[str, str], Service | None] = {}
        self._services_by_host: dict[tuple[str, str], Service | None] = {}
        self._endpoints: dict[str, tuple[Endpoint, ...]] = {}
        self._endpoints_kept = 0
        self._policies_for: dict[tuple[str, tuple[str, ...]], tuple[Policy, ...]] = {}
        self._is_empty: bool | None = None

    def renew(self, txn: lmdb.Transaction) -> None:
        """Go on with another transaction of the same epoch: for the reader only."""
        self._txn = txn
        self._cursors.clear()

    def forget(self) -> None:
        """Drop LMDB's handle; nothing but what is cached can be asked any more.  For the reader only."""
        self._cursors.clear()
        del self._txn

    def _get(self, table: str, key: bytes) -> bytes | None:
        if not 0 < len(key) <= MAX_KEY_BYTES:
            return None
        try:
            return cast("bytes | None", self._txn.get(key, db=self._tables[table]))  # bytes: no buffers were asked for
        except lmdb.Error as exc:
            raise StateError(f"can't read {table} in the state: {exc}; restart `nodeproxy run`, which makes it anew") from exc

    def _values(self, index: str, key: bytes) -> list[bytes]:
        if not 0 < len(key) <= MAX_KEY_BYTES:
            return []
        try:
            cursor = self._cursors.get(index)
            if cursor is None:  # kept: opening one costs as much as the look-up
                cursor = self._cursors[index] = self._txn.cursor(self._tables[index])
            return cast("list[bytes]", list(cursor.iternext_dup())) if cursor.set_key(key) else []
        except lmdb.Error as exc:
            raise StateError(f"can't read {index} in the state: {exc}; restart `nodeproxy run`, which makes it anew") from exc

    def workload(self, uid: str) -> Workload | None:
        """The workload with this uid."""
        try:
            return self._workloads[uid]
        except KeyError:
            raw = self._get("workloads", uid.encode())
            return _keep(self._workloads, uid, None if raw is None else decode_workload(raw))

    def service(self, key: str) -> Service | None:
        """The service with this key, "namespace/hostname"."""
        try:
            return self._services[key]
        except KeyError:
            raw = self._get("services", key.encode())
            return _keep(self._services, key, None if raw is None else decode_service(raw))

    def workload_at(self, network: str, ip: str) -> Workload | None:
        """Who has this address (text in canonical form); of several a pod, then a mesh member, then the first by uid."""
        try:
            return self._workloads_at[network, ip]
        except KeyError:
            found = self._all(self.workload, "addresses", f"{network}/{ip}")
            best = found[0] if len(found) == 1 else max(found, key=_rank, default=None)
            return _keep(self._workloads_at, (network, ip), best)

    def service_at(self, network: str, ip: str) -> Service | None:
        """The service with this virtual address; of several the first by key."""
        try:
            return self._services_at[network, ip]
        except KeyError:
            found = self._all(self.service, "vips", f"{network}/{ip}")
            return _keep(self._services_at, (network, ip), found[0] if found else None)

    def service_by_host(self, hostname: str, client_namespace: str) -> Service | None:
        """The service that `hostname` means to a client: its own namespace's, then the canonical one, then the first by key.

        Services that are visible in their own namespace only are not there for others.
        """
        try:
            return self._services_by_host[hostname, client_namespace]
        except KeyError:
            found = [
                service
                for service in self._all(self.service, "hosts", hostname.lower())
                if service.namespace == client_namespace or not service.namespace_only
            ]
            best = max(found, key=lambda service: (service.namespace == client_namespace, service.canonical), default=None)
            return _keep(self._services_by_host, (hostname, client_namespace), best)

    def _all(self, look_up: Callable[[str], _V | None], index: str, key: str) -> list[_V]:
        """What the index names, in the order of the keys, without what is not there (any more, or yet)."""
        return [found for value in self._values(index, key.encode()) if (found := look_up(value.decode())) is not None]

    def endpoints(self, service_key: str) -> tuple[Endpoint, ...]:
        """The workloads that list this service, in the order of their uids, each with its own map of ports."""
        try:
            return self._endpoints[service_key]
        except KeyError:
            members = self._all(self.workload, "endpoints", service_key)
            found = tuple((member, member.services.get(service_key, {})) for member in members)
            if self._endpoints_kept + len(found) > MAX_CACHED_ENDPOINTS:
                self._endpoints.clear()
                self._endpoints_kept = 0
            self._endpoints_kept += len(found)
            return _keep(self._endpoints, service_key, found)

    def policies_for(self, workload: Workload) -> tuple[Policy, ...]:
        """The policies that hold for a destination: global, its namespace's, those it lists; by key, the same tuple each time."""
        cached = workload.namespace, workload.policies
        try:
            return self._policies_for[cached]
        except KeyError:
            keys = {*self._values("scopes", GLOBAL_SCOPE), *self._values("scopes", workload.namespace.encode())}
            keys.update(key.encode() for key in workload.policies)
            found = tuple(policy for key in sorted(keys) if (policy := self._policy(key)) is not None)
            return _keep(self._policies_for, cached, found)

    def _policy(self, key: bytes) -> Policy | None:
        raw = self._get("policies", key)
        if raw is None:
            return None
        policy = self._decoded_policies.get(raw)
        return policy if policy is not None else _keep(self._decoded_policies, raw, decode_policy(raw))

    def policy(self, key: str) -> Policy | None:
        """The policy with this key, "namespace/name"."""
        return self._policy(key.encode())

    def counts(self) -> dict[str, int]:
        """How many workloads, services and policies there are."""
        return {name: int(self._txn.stat(self._tables[name])["entries"]) for name in ("workloads", "services", "policies")}

    @property
    def is_empty(self) -> bool:
        """Whether nothing is known at all, as before a source's first answer."""
        if self._is_empty is None:
            self._is_empty = not any(self.counts().values())
        return self._is_empty

    def workloads(self) -> Iterator[Workload]:
        """All workloads by uid, not cached: for commands and for the agent, never for a connection."""
        return (decode_workload(raw) for raw in self._raw("workloads"))

    def services(self) -> Iterator[Service]:
        """All services by key, not cached."""
        return (decode_service(raw) for raw in self._raw("services"))

    def policies(self) -> Iterator[Policy]:
        """All policies by key, not cached."""
        return (decode_policy(raw) for raw in self._raw("policies"))

    def _raw(self, table: str) -> Iterator[bytes]:
        with self._txn.cursor(self._tables[table]) as cursor:
            yield from cast("Iterator[bytes]", cursor.iternext(keys=False, values=True))
