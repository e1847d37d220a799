"""What a reader has looked up and keeps: so that asking again is one dictionary access, and a change costs what it touches.

Invariant: after `drop` nothing is left that the changes which it is told of may have touched.  Each kind is bounded: a full one
is emptied.  Knows nothing of LMDB, nor how an answer is found (`view`).
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

from nodeproxy.model.policy import Policy
from nodeproxy.model.workload import Service, Workload
from nodeproxy.policy.authorize import Named
from nodeproxy.state.changes import Touched
from nodeproxy.state.layout import GLOBAL_SCOPE

# Each kind of look-up keeps so many answers.  A decoded workload takes about 1 KiB, so a worker's caches stay under some 20 MiB
# whatever the size of the mesh.
MAX_CACHED = 8192
# Endpoints kept in all services' lists together.
MAX_CACHED_ENDPOINTS = 16384
# A policy of 10 rules takes some 5 KiB, and as much again compiled.
MAX_CACHED_POLICIES = 1024

Endpoint = tuple[Workload, dict[int, int]]  # a workload and its own map service port -> target port
Held = tuple[
    str, tuple[str, ...]
]  # what decides which policies hold for a workload: its namespace and the policies that it lists


class Many(NamedTuple):
    """What is known beforehand of policies that are too many to look at all: `Candidates` without those of a subject."""

    allow: Named
    dry_allow: Named
    total: int


_K = TypeVar("_K")
_V = TypeVar("_V")


def keep(cache: dict[_K, _V], key: _K, value: _V, limit: int | None = None) -> _V:
    """Keep `value`; limit: how many there may be, `MAX_CACHED` if not given."""
    if len(cache) >= (MAX_CACHED if limit is None else limit):
        cache.clear()
    cache[key] = value
    return value


class Kept:
    """The caches of one reader.  None as a value: it was looked for and is not there."""

    def __init__(self) -> None:
        self.workloads: dict[str, Workload | None] = {}
        self.services: dict[str, Service | None] = {}
        self.workloads_at: dict[tuple[str, str], Workload | None] = {}
        self.services_at: dict[tuple[str, str], Service | None] = {}
        self.services_by_host: dict[tuple[str, str], Service | None] = {}
        self.endpoints: dict[str, tuple[Endpoint, ...]] = {}
        self.policies: dict[str, Policy | None] = {}
        self.policies_for: dict[Held, tuple[Policy, ...]] = {}
        self.many: dict[Held, Many | None] = {}
        self.shapes: dict[str, tuple[tuple[bytes, str], ...]] = {}
        self._endpoint_count = 0

    def keep_endpoints(self, service_key: str, endpoints: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
        """The endpoints of a service."""
        if self._endpoint_count + len(endpoints) > MAX_CACHED_ENDPOINTS or len(self.endpoints) >= MAX_CACHED:
            self.endpoints.clear()
            self._endpoint_count = 0
        self._endpoint_count += len(endpoints)
        self.endpoints[service_key] = endpoints
        return endpoints

    def drop(self, touched: Touched) -> None:
        """The state has changed, and the names in `touched` tell all of it."""
        for uid in touched.workloads:
            self.workloads.pop(uid, None)
        for address in touched.addresses:
            network, _, ip = address.rpartition("/")
            self.workloads_at.pop((network, ip), None)
        for key in touched.endpoints:
            self._endpoint_count -= len(self.endpoints.pop(key, ()))
        if touched.services:
            # Which of several services a hostname means depends on all of them.
            self.services_by_host.clear()
        for key in touched.services:
            self.services.pop(key, None)
        for vip in touched.vips:
            network, _, ip = vip.rpartition("/")
            self.services_at.pop((network, ip), None)
        if touched.policies:
            self._drop_policies(touched)

    def _drop_policies(self, touched: Touched) -> None:
        for key in touched.policies:
            self.policies.pop(key, None)
        for scope in touched.scopes:
            self.shapes.pop(scope, None)
        everywhere = GLOBAL_SCOPE in touched.scopes
        for held in {*self.policies_for, *self.many}:
            if everywhere or held[0] in touched.scopes or not touched.policies.isdisjoint(held[1]):
                self.policies_for.pop(held, None)
                self.many.pop(held, None)
