"""What workloads are made of, other than Pods: the form that WorkloadEntries, ServiceEntries and EndpointSlices share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from nodeproxy.model.workload import Workload

if TYPE_CHECKING:
    from nodeproxy.translate.cluster import Cluster


class Source:
    """A resource, other than a Pod, that workloads are made of.  Equal only to itself.

    labels: what services select it by.  references: keys of the gateways that matter to it.
    told: digests of its workloads that were last told of, by uid.
    """

    __slots__ = ("labels", "name", "namespace", "references", "told")

    def __init__(self, namespace: str, name: str) -> None:
        self.namespace = namespace
        self.name = name
        self.labels: dict[str, str] = {}
        self.references: tuple[str, ...] = ()
        self.told: dict[str, int] = {}

    @property
    def key(self) -> str:
        """The resource's key."""
        return f"{self.namespace}/{self.name}"

    def workloads(self, cluster: Cluster) -> Iterable[Workload]:
        """The workloads that it means now, each uid once."""
        raise NotImplementedError
