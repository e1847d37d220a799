"""From the resources of a Kubernetes cluster to the state of a mesh, change by change.

Resources come in any order, as often as they like, and what they mean together is the same.  A change marks what depends on it
(`indexing`); `take` works that out and tells what differs from what it told last.  So a pod's change costs that of the pod, a
node's that of its pods, and many changes between two calls of `take` cost one.

Invariant: all that was taken, in order, is exactly what the resources mean.  Knows no API server, no watch and no thread: whoever
calls it calls from one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from nodeproxy.model.delta import Delta
from nodeproxy.model.policy import Policy
from nodeproxy.model.workload import Service, Workload
from nodeproxy.translate import objects
from nodeproxy.translate.cluster import NOWHERE, Cluster
from nodeproxy.translate.indexing import Indexer
from nodeproxy.translate.node_pods import Namespaces, NodePods
from nodeproxy.translate.notes import Note
from nodeproxy.translate.pods import Derived, Pod, Template, canonical_name
from nodeproxy.translate.policies import PolicyTable
from nodeproxy.translate.remarks import remarks
from nodeproxy.translate.services import service_of
from nodeproxy.translate.settings import MeshSettings
from nodeproxy.translate.source import Source

_encode = msgspec.msgpack.Encoder().encode


def _digest(resource: Workload | Service | Policy) -> int:
    """A number that no two different resources share, but by a chance of one in 2^61; never 0."""
    return hash(_encode(resource)) or 1


class Translator:
    """The resources so far, and what has not been told yet."""

    def __init__(self, settings: MeshSettings) -> None:
        self._settings = settings
        self._policies = PolicyTable(settings)
        self._cluster = Cluster(settings, self._policies)
        self._node_pods = NodePods()
        self._namespaces = Namespaces()
        self._index = Indexer(self._cluster, lambda uids: self._gone.update(dict.fromkeys(uids)), self._node_pods.left)
        # Digests of what was told last: of services by hostname and key, of policies by key.
        self._told_services: dict[str, dict[str, int]] = {}
        self._told_policies: dict[str, int] = {}
        self._new_policies: dict[str, Policy | None] = {}
        self._gone: dict[str, None] = {}
        self._notes: dict[tuple[str, str], tuple[Note, ...]] = {}

    def apply(self, kind: str, key: str, resource: objects.Resource | None) -> None:
        """A resource is new, changed or (None) gone.  kind: a name of `objects.KINDS`; one without a meaning here is let go.

        It marks what depends on the resource, and works nothing out.
        """
        applier = self._index.appliers.get(kind)
        if applier is not None:
            applier(key, resource)
            found = () if resource is None else remarks(kind, key, resource)
            self._notes.pop((kind, key), None)
            if found:
                self._notes[kind, key] = found
        elif kind in PolicyTable.KINDS:
            self._apply_policy(kind, key, resource)

    def notes(self) -> list[Note]:
        """What was not understood in the resources that are there, and what was done about it."""
        return [*self._policies.notes(), *(note for notes in self._notes.values() for note in notes)]

    def take(self, limit: int | None = None) -> Delta:
        """What changed since the last call; an empty Delta: nothing.

        limit: about how many workloads at most; call again until nothing comes.  A cluster's hundred thousand need not all be
        there twice at once.
        """
        policies, removed_policies = self._take_policies()
        services, removed_services = self._take_services()
        workloads = self._take_workloads(limit)
        gone: dict[str, None] = {}
        left: dict[tuple[str, str], None] = {}
        if not (self._cluster.stale_sources or self._cluster.stale_pods):
            # Only now, for a uid that went may have come back, with what was still to be worked out.
            gone, self._gone = self._gone, {}
            left = self._node_pods.take_removed()
        namespaces, removed_namespaces = self._namespaces.take(self._cluster)
        return Delta(
            workloads=tuple(workloads),
            services=tuple(services),
            policies=tuple(policies),
            removed_workloads=tuple(gone),
            removed_services=tuple(removed_services),
            removed_policies=tuple(removed_policies),
            node_pods=tuple(self._node_pods.take_changed()),
            removed_node_pods=tuple(left),
            mesh_namespaces=tuple(namespaces),
            removed_mesh_namespaces=tuple(removed_namespaces),
        )

    def _apply_policy(self, kind: str, key: str, resource: Any) -> None:
        change = self._policies.apply(kind, key, resource)
        for policy in change.policies:
            self._new_policies[policy.key] = policy
        self._new_policies.update(dict.fromkeys(change.removed))
        for namespace in change.namespaces:
            self._cluster.touch_workloads(namespace)

    # ── policies and services ─────────────────────────────────────────────────────────────────────

    def _take_policies(self) -> tuple[list[Policy], list[str]]:
        new, self._new_policies = self._new_policies, {}
        changed: list[Policy] = []
        removed: list[str] = []
        for key, policy in new.items():
            former = self._told_policies.pop(key, 0)
            if policy is not None:
                digest = self._told_policies[key] = _digest(policy)
                if digest != former:
                    changed.append(policy)
            elif former:
                removed.append(key)
        return changed, removed

    def _take_services(self) -> tuple[list[Service], list[str]]:
        cluster = self._cluster
        stale, cluster.stale_hosts = cluster.stale_hosts, {}
        changed: list[Service] = []
        removed: list[str] = []
        for hostname in stale:
            former = self._told_services.pop(hostname, {})
            now: dict[str, int] = {}
            for host, canonical in cluster.hosts.named(hostname):
                home = cluster.home(host.namespace)
                service = service_of(host, canonical, (home.labels, home.annotations), cluster.waypoints)
                now[service.key] = _digest(service)
                if former.pop(service.key, 0) != now[service.key]:
                    changed.append(service)
            removed += former
            if now:
                self._told_services[hostname] = now
        return changed, removed

    # ── workloads ─────────────────────────────────────────────────────────────────────────────────

    def _take_workloads(self, limit: int | None) -> list[Workload]:
        cluster = self._cluster
        templates, cluster.stale_templates = cluster.stale_templates, {}
        for template in templates:
            self._derive(template)
        found: list[Workload] = []
        while cluster.stale_sources and (limit is None or len(found) < limit):
            source, _ = cluster.stale_sources.popitem()
            found += self._changed(source)
        # A pod that was marked and turns out as it was told is passed over, so that more of them may be looked at than told.
        while cluster.stale_pods and (limit is None or max(len(found), len(self._node_pods)) < limit):
            pod, _ = cluster.stale_pods.popitem()
            workload = self._workload(pod)
            digest = _digest(workload)
            self._node_pods.tell(pod, workload, digest)
            if not pod.addresses:
                if pod.digest:
                    pod.digest = 0
                    self._gone[workload.uid] = None
            elif digest != pod.digest:
                pod.digest = digest
                self._gone.pop(workload.uid, None)
                found.append(workload)
        if not cluster.stale_pods:
            cluster.stale_pods = {}  # an emptied dict keeps the room that it had
        return found

    def _derive(self, template: Template) -> None:
        """Work out what the template's pods have in common; they are stale if that has changed."""
        cluster = self._cluster
        namespace, labels = template.namespace, template.labels
        home = cluster.homes[namespace]
        instance = cluster.waypoints.of_instance(namespace, labels)
        waypoint = None if instance is not None else cluster.waypoints.for_workload(namespace, labels, home.labels)
        protocol, native = template.protocol(home.labels)
        derived = Derived(
            membership=template.membership(home.labels),
            protocol=protocol,
            native_tunnel=native,
            waypoint=waypoint,
            tunnel=None if instance is None else instance.tunnel,
            services={host.key: host.pod_ports(template.ports) for host in cluster.selecting(namespace, labels)},
            policies=cluster.policies.holding(namespace, labels),
        )
        if derived != template.derived:
            template.derived = derived
            cluster.stale_pods.update(dict.fromkeys(home.pods[name] for name in template.pods))

    def _workload(self, pod: Pod) -> Workload:
        settings, template, shape, derived = self._settings, pod.template, pod.template.shape, pod.template.derived
        name = shape.workload_name or pod.name
        canonical, revision = canonical_name(template.labels, name)
        return Workload(
            uid=pod.uid(settings.cluster_id),
            name=pod.name,
            namespace=template.namespace,
            addresses=pod.addresses,
            network=settings.network,
            protocol=derived.protocol,
            trust_domain=settings.trust_domain,
            service_account=shape.service_account or "default",
            node=pod.node,
            cluster=settings.cluster_id,
            canonical_name=canonical,
            canonical_revision=revision,
            workload_type=shape.workload_type,
            workload_name=name,
            waypoint=derived.waypoint,
            application_tunnel=derived.tunnel,
            native_tunnel=derived.native_tunnel,
            host_network=shape.host_network,
            healthy=pod.healthy,
            locality=self._cluster.localities.get(pod.node, NOWHERE),
            services=self._services(pod),
            policies=derived.policies,
        )

    def _services(self, pod: Pod) -> dict[str, dict[int, int]]:
        """The template's, which all of its pods share, and what slices add."""
        cluster, template = self._cluster, pod.template
        services = template.derived.services
        for namespace, name in cluster.slices.services_of_pod(f"{template.namespace}/{pod.name}", pod.marker):
            host = cluster.hosts.get(namespace, self._settings.hostname(namespace, name))
            if host is not None and host.kubernetes and host.key not in services:
                services = {**services, host.key: host.pod_ports(template.ports)}
        return services

    def _changed(self, source: Source) -> Iterable[Workload]:
        """Those of a source's workloads that are not as they were told last."""
        former, source.told = source.told, {}
        for workload in source.workloads(self._cluster):
            digest = source.told[workload.uid] = _digest(workload)
            if former.pop(workload.uid, 0) != digest:
                self._gone.pop(workload.uid, None)
                yield workload
        self._gone.update(dict.fromkeys(former))
