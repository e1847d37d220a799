"""EndpointSlices: the endpoints of services that select none by labels.

An endpoint that is a pod adds the service to that pod's; another one is a workload of its own, of which little is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from nodeproxy.model.workload import Workload
from nodeproxy.policy.address import canonical_ip
from nodeproxy.translate import names, objects
from nodeproxy.translate.source import Source

if TYPE_CHECKING:
    from nodeproxy.translate.cluster import Cluster


class EndpointSlice(Source):
    """One slice of a service's endpoints: those that are no pods.

    service: the name of its service.  pods: keys of the pods among its endpoints, and a hash of their uids (0: any).
    """

    __slots__ = ("endpoints", "pods", "ports", "service")

    def __init__(self, found: objects.EndpointSlice) -> None:
        metadata = found.metadata
        super().__init__(metadata.namespace, metadata.name)
        self.service = metadata.labels.get(names.SERVICE_NAME, "")
        ports = found.ports or ()
        self.ports = [(port.name, port.port) for port in ports if port.name is not None and port.port and port.protocol == "TCP"]
        self.pods: dict[str, int] = {}
        self.endpoints: dict[str, tuple[tuple[str, ...], bool]] = {}
        for endpoint in found.endpoints or ():
            target = endpoint.target_ref
            if target is not None and target.kind == "Pod":
                key = f"{target.namespace or self.namespace}/{target.name}"
                self.pods[key] = hash(target.uid) if target.uid else 0
                continue
            try:
                addresses = tuple(canonical_ip(text) for text in endpoint.addresses or ())
            except ValueError:
                continue  # not an address: as istiod, which leaves the endpoint out
            if addresses:
                self.endpoints.setdefault(addresses[0], (addresses, endpoint.conditions.ready is not False))

    def workloads(self, cluster: Cluster) -> Iterator[Workload]:
        """As `Source`.  They may share their addresses with others, so that they are not found by address."""
        settings = cluster.settings
        host = cluster.hosts.get(self.namespace, settings.hostname(self.namespace, self.service))
        if host is None or not host.kubernetes:
            return
        ports = {}
        for name, target in self.ports:
            for port in host.ports:
                if port.name == name:
                    ports[port.number] = target
                    break
        for first, (addresses, healthy) in self.endpoints.items():
            yield Workload(
                uid=f"{settings.cluster_id}/discovery.k8s.io/EndpointSlice/{self.namespace}/{self.name}/{first}",
                name=self.name,
                namespace=self.namespace,
                addresses=addresses,
                network=settings.network,
                trust_domain=settings.trust_domain,
                cluster=settings.cluster_id,
                host_network=True,
                healthy=healthy,
                services={host.key: ports},
            )


class Slices:
    """All slices, by their service and by the pods that are endpoints."""

    def __init__(self) -> None:
        self._of_service: dict[str, set[EndpointSlice]] = {}
        self._of_pod: dict[str, set[EndpointSlice]] = {}

    def add(self, found: EndpointSlice) -> None:
        """A slice is there."""
        self._of_service.setdefault(f"{found.namespace}/{found.service}", set()).add(found)
        for key in found.pods:
            self._of_pod.setdefault(key, set()).add(found)

    def discard(self, found: EndpointSlice) -> None:
        """A slice is gone."""
        _discard(self._of_service, f"{found.namespace}/{found.service}", found)
        for key in found.pods:
            _discard(self._of_pod, key, found)

    def of_service(self, key: str) -> Iterable[EndpointSlice]:
        """The slices of a service, "namespace/name"."""
        return self._of_service.get(key, ())

    def services_of_pod(self, key: str, uid: int) -> list[tuple[str, str]]:
        """Namespace and name of the services that have the pod, "namespace/name", as an endpoint; uid: its hash."""
        found = self._of_pod.get(key)
        if found is None:
            return []
        return sorted({(item.namespace, item.service) for item in found if item.pods[key] in (0, uid)})


def _discard(sets: dict[str, set[EndpointSlice]], key: str, found: EndpointSlice) -> None:
    slices = sets[key]
    slices.discard(found)
    if not slices:
        del sets[key]
