"""What services there are, from Kubernetes' Services and Istio's ServiceEntries, and which of several counts.

Invariant: one host has at most one service a namespace: Kubernetes' own, else the oldest entry, as istiod chooses; equally old
ones by name, so that the order of arrival never matters.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from nodeproxy.model.workload import LoadBalancer


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


class Hosts:
    """All hosts, and those that count."""

    def __init__(self) -> None:
        self._by_name: dict[str, dict[tuple[str, str], Host]] = {}
        self._winners: dict[str, dict[str, Host]] = {}
        self._canonical: dict[str, str] = {}

    def put(self, host: Host) -> list[Host]:
        """A host is new or changed; those that began or ceased to count, the changed one among them if it counts."""
        self._by_name.setdefault(host.hostname, {})[host.source] = host
        return self._settle(host.hostname)

    def drop(self, host: Host) -> list[Host]:
        """A host is gone; those that began or ceased to count."""
        hosts = self._by_name.get(host.hostname, {})
        hosts.pop(host.source, None)
        if not hosts:
            self._by_name.pop(host.hostname, None)
        return self._settle(host.hostname)

    def counts(self, host: Host) -> bool:
        """Whether it is the one that counts of its host in its namespace."""
        return self._winners.get(host.hostname, {}).get(host.namespace) is host

    def get(self, namespace: str, hostname: str) -> Host | None:
        """The one that counts."""
        return self._winners.get(hostname, {}).get(namespace)

    def named(self, hostname: str) -> Iterator[tuple[Host, bool]]:
        """Those of a name that count, each in its namespace, and whether it is the canonical one, for clients elsewhere."""
        canonical = self._canonical.get(hostname)
        for namespace, host in self._winners.get(hostname, {}).items():
            yield host, namespace == canonical

    def _settle(self, hostname: str) -> list[Host]:
        former = self._winners.pop(hostname, {})
        now: dict[str, Host] = {}
        for host in sorted(self._by_name.get(hostname, {}).values(), key=_age):
            now.setdefault(host.namespace, host)
        if now:
            self._winners[hostname] = now
            self._canonical[hostname] = min(now.values(), key=_age).namespace
        else:
            self._canonical.pop(hostname, None)
        changed = [host for namespace, host in former.items() if now.get(namespace) is not host]
        return changed + [host for namespace, host in now.items() if former.get(namespace) is not host]


def _age(host: Host) -> tuple[bool, str, tuple[str, str]]:
    return (not host.kubernetes, host.created, host.source)
