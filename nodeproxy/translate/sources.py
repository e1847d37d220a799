"""Workloads that are no pods: WorkloadEntries and the endpoints of ServiceEntries.

Each knows what its resource says and, given the cluster as it is now, the workloads that it means.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from nodeproxy.model.workload import Locality, Protocol, Workload
from nodeproxy.policy.address import canonical_ip
from nodeproxy.translate import names, objects
from nodeproxy.translate.cluster import Cluster
from nodeproxy.translate.hosts import Host
from nodeproxy.translate.pods import canonical_name
from nodeproxy.translate.source import Source
from nodeproxy.translate.waypoints import references

_GROUP = "networking.istio.io"
_BY_NAME = frozenset({"DNS", "DNS_ROUND_ROBIN", "DYNAMIC_DNS"})


class WorkloadEntry(Source):
    """One WorkloadEntry: one workload."""

    __slots__ = ("annotations", "spec")

    def __init__(self, entry: objects.WorkloadEntry) -> None:
        metadata = entry.metadata
        super().__init__(metadata.namespace, metadata.name)
        self.spec = entry.spec
        self.labels = {**entry.spec.labels, **metadata.labels}
        self.references = references(self.labels, self.namespace)
        wanted = (names.REDIRECTION, names.REGISTRATION_GROUP)
        self.annotations = {key: metadata.annotations[key] for key in wanted if key in metadata.annotations}

    def workloads(self, cluster: Cluster) -> Iterable[Workload]:
        """As `Source`."""
        hosts = cluster.selecting(self.namespace, self.labels)
        name = self.annotations.get(names.REGISTRATION_GROUP) or self.labels.get(names.WORKLOAD_NAME, self.name)
        uid = f"{cluster.settings.cluster_id}/{_GROUP}/WorkloadEntry/{self.namespace}/{self.name}"
        return [_entry(cluster, self, uid, self.spec, hosts, name, (self.labels, self.labels, self.annotations))]


class ServiceEntry(Source):
    """One ServiceEntry: a workload an endpoint or, without any, a host that DNS knows."""

    __slots__ = ("annotations", "by_name", "endpoints", "hosts")

    def __init__(self, entry: objects.ServiceEntry, hosts: list[Host]) -> None:
        metadata, spec = entry.metadata, entry.spec
        super().__init__(metadata.namespace, metadata.name)
        self.labels = metadata.labels
        self.hosts = hosts
        self.endpoints = spec.endpoints
        self.by_name = not spec.endpoints and spec.resolution in _BY_NAME and spec.workload_selector is None
        found = [key for endpoint in spec.endpoints for key in references(endpoint.labels, self.namespace)]
        self.references = tuple(dict.fromkeys(found))
        self.annotations = {key: value for key, value in metadata.annotations.items() if key == names.REDIRECTION}

    def workloads(self, cluster: Cluster) -> Iterator[Workload]:
        """As `Source`."""
        hosts = [host for host in self.hosts if cluster.hosts.counts(host)]
        if not hosts:
            return
        found = [(endpoint, hosts) for endpoint in self.endpoints]
        if self.by_name:
            found = [(objects.WorkloadEntrySpec(address=host.hostname), [host]) for host in hosts]
        seen: set[str] = set()
        for endpoint, its_hosts in found:
            uid = f"{cluster.settings.cluster_id}/{_GROUP}/ServiceEntry/{self.namespace}/{self.name}/{endpoint.address}"
            if uid not in seen:
                seen.add(uid)
                meaning = (self.labels, endpoint.labels, self.annotations)
                yield _entry(cluster, self, uid, endpoint, its_hosts, self.name, meaning, asks=not self.by_name)


def _entry(
    cluster: Cluster,
    source: Source,
    uid: str,
    spec: objects.WorkloadEntrySpec,
    hosts: list[Host],
    workload_name: str,
    meaning: tuple[dict[str, str], dict[str, str], dict[str, str]],
    *,
    asks: bool = True,
) -> Workload:
    """A workload; meaning: the labels that policies go by, those that waypoints go by, and the annotations.

    asks: it may have a waypoint.
    """
    settings, namespace = cluster.settings, source.namespace
    labels, own_labels, annotations = meaning
    instance = cluster.waypoints.of_instance(namespace, own_labels) if asks else None
    waypoint = None
    if asks and instance is None:
        waypoint = cluster.waypoints.for_workload(namespace, own_labels, cluster.labels(namespace))
    native = names.NATIVE_TUNNEL in labels.get(names.TUNNEL, "").split(",")
    hbone = native or annotations.get(names.REDIRECTION) == "enabled"
    address, hostname = _address(spec.address)
    region, zone, subzone = (*spec.locality.split("/", 2), "", "")[:3]
    name, revision = canonical_name(labels, workload_name)
    return Workload(
        uid=uid,
        name=source.name,
        namespace=namespace,
        addresses=address,
        hostname=hostname,
        network=spec.network or settings.network,
        protocol=Protocol.HBONE if hbone else Protocol.TCP,
        native_tunnel=native,
        trust_domain=settings.trust_domain,
        service_account=spec.service_account or "default",
        cluster=settings.cluster_id,
        canonical_name=name,
        canonical_revision=revision,
        workload_name=workload_name,
        waypoint=waypoint,
        application_tunnel=None if instance is None else instance.tunnel,
        capacity=spec.weight or 1,
        locality=Locality(region, zone, subzone.partition("/")[0]),
        services={host.key: host.entry_ports(spec.ports) for host in hosts},
        policies=cluster.policies.holding(namespace, labels),
    )


def _address(text: str) -> tuple[tuple[str, ...], str]:
    if "%" in text:  # a zone means nothing on another machine, and may be any text
        return (), text
    try:
        return (canonical_ip(text),), ""
    except ValueError:
        return (), text
