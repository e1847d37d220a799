"""What services there are, from Kubernetes' Services and Istio's ServiceEntries, and which of several counts.

Invariant: one host has at most one service a namespace: Kubernetes' own, else the oldest entry, as istiod chooses; equally old
ones by name, so that the order of arrival never matters.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Hashable, Iterator
from typing import TypeVar

import msgspec

from nodeproxy.model.workload import LoadBalancer

_K = TypeVar("_K", bound=Hashable)


class HostPort(msgspec.Struct, frozen=True, gc=False):
    """A port of a service.

    target: the endpoints' port, 0 if it has `target_name` (a container's port of that name, and no other).
    name: the port's own; entries have the endpoints' port of that name, if there is one.
    """

    number: int
    target: int
    name: str = ""
    target_name: str = ""


class Host(msgspec.Struct, frozen=True, eq=False, gc=False, kw_only=True):
    """One host of a Service or ServiceEntry, with what a service and its endpoints need of it.  Equal only to itself.

    source: kind and key of the resource.  created: when, RFC 3339 text.
    distribution: a preference among endpoints of the Service's spec, in lower case.
    labels, annotations: those few that say something about waypoints and balancing.
    """

    source: tuple[str, str]
    namespace: str
    name: str
    hostname: str
    created: str = ""
    selector: dict[str, str] = {}
    ports: tuple[HostPort, ...] = ()
    vips: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    subject_alt_names: tuple[str, ...] = ()
    distribution: str = ""
    balancer: LoadBalancer = LoadBalancer()

    @property
    def key(self) -> str:
        """The service key, "namespace/hostname"."""
        return f"{self.namespace}/{self.hostname}"

    @property
    def kubernetes(self) -> bool:
        """Whether it is a Kubernetes Service."""
        return self.source[0] == "Service"

    def same(self, other: Host) -> bool:
        """Whether both say the same."""
        return msgspec.structs.astuple(self) == msgspec.structs.astuple(other)

    def selects_as(self, other: Host) -> bool:
        """Whether both have the same endpoints with the same ports."""
        return (self.key, self.selector, self.ports) == (other.key, other.selector, other.ports)

    def pod_ports(self, named: dict[str, int]) -> dict[int, int]:
        """The ports of a pod that is an endpoint; named: its containers' ports by name."""
        found = {}
        for port in self.ports:
            target = port.target
            if port.target_name:
                if port.target_name not in named:
                    continue
                target = named[port.target_name]
            elif not self.kubernetes:
                target = named.get(port.name, target)
            found[port.number] = target
        return found

    def entry_ports(self, named: dict[str, int]) -> dict[int, int]:
        """The ports of an endpoint that is no pod; named: its own, by name."""
        found = {}
        for port in self.ports:
            if port.target_name and port.target_name not in named:
                continue
            found[port.number] = named.get(port.target_name or port.name, port.target)
        return found


# For Kubernetes' own, then the older, then the first by name.  No two of one hostname are equal.
_Age = tuple[bool, str, tuple[str, str]]
_Ranked = list[tuple[_Age, Host]]  # the one that counts for most first


class Hosts:
    """All hosts, and those that count.  A change costs the same however many there are of its name."""

    def __init__(self) -> None:
        self._by_source: dict[tuple[str, tuple[str, str]], Host] = {}
        self._in_namespace: dict[tuple[str, str], _Ranked] = {}  # by namespace and hostname
        self._counting: dict[str, _Ranked] = {}  # by hostname, one a namespace

    def put(self, host: Host) -> list[Host]:
        """A host is new or changed; those that began or ceased to count, the changed one among them if it counts."""
        former = self.get(host.namespace, host.hostname)
        self._remove(host)
        self._by_source[host.hostname, host.source] = host
        _rank(self._in_namespace, (host.namespace, host.hostname), host)
        return self._settle(host, former)

    def drop(self, host: Host) -> list[Host]:
        """A host is gone; those that began or ceased to count."""
        former = self.get(host.namespace, host.hostname)
        self._remove(host)
        return self._settle(host, former)

    def counts(self, host: Host) -> bool:
        """Whether it is the one that counts of its host in its namespace."""
        return self.get(host.namespace, host.hostname) is host

    def get(self, namespace: str, hostname: str) -> Host | None:
        """The one that counts."""
        ranked = self._in_namespace.get((namespace, hostname))
        return None if ranked is None else ranked[0][1]

    def named(self, hostname: str) -> Iterator[tuple[Host, bool]]:
        """Those of a name that count, each in its namespace, and whether it is the canonical one, for clients elsewhere."""
        for place, (_, host) in enumerate(self._counting.get(hostname, ())):
            yield host, place == 0

    def _remove(self, host: Host) -> None:
        """The former one of its source."""
        former = self._by_source.pop((host.hostname, host.source), None)
        if former is not None:
            _strike(self._in_namespace, (former.namespace, former.hostname), former)

    def _settle(self, host: Host, former: Host | None) -> list[Host]:
        now = self.get(host.namespace, host.hostname)
        if now is former:
            return []
        if former is not None:
            _strike(self._counting, former.hostname, former)
        if now is not None:
            _rank(self._counting, now.hostname, now)
        return [each for each in (former, now) if each is not None]


def _age(host: Host) -> _Age:
    return (not host.kubernetes, host.created, host.source)


def _rank(ranks: dict[_K, _Ranked], key: _K, host: Host) -> None:
    insort(ranks.setdefault(key, []), (_age(host), host))


def _strike(ranks: dict[_K, _Ranked], key: _K, host: Host) -> None:
    ranked = ranks[key]
    del ranked[bisect_left(ranked, (_age(host),))]
    if not ranked:
        del ranks[key]
