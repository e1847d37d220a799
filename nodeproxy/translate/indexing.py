"""Where a changed resource goes, and what it makes stale: one function a kind.

Invariant: after `apply` the cluster holds what the resource says now, every index finds it, none finds what it said before, and
whatever followed from either is marked.  Resources that say what they said before mark nothing, which is most of what an API
server tells (a node's heartbeat, a pod's conditions).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

from nodeproxy.model.workload import Locality
from nodeproxy.translate import names, objects
from nodeproxy.translate.cluster import Cluster
from nodeproxy.translate.hosts import Host
from nodeproxy.translate.pods import Pod, Shape, Template, addresses_of, has_ended, is_healthy, kubelet_uid, shape_of
from nodeproxy.translate.services import hosts_of_entry, hosts_of_service
from nodeproxy.translate.slices import EndpointSlice
from nodeproxy.translate.source import Source
from nodeproxy.translate.sources import ServiceEntry, WorkloadEntry
from nodeproxy.translate.waypoints import references

_NAMESPACE_ANNOTATIONS = (names.TRAFFIC_DISTRIBUTION, names.CANARY_WEIGHT)


class Indexer:
    """Puts resources into a cluster.

    gone: is called with the uids of workloads that were told of and are no more.  left: with pods that are no more.
    """

    def __init__(self, cluster: Cluster, gone: Callable[[Iterable[str]], None], left: Callable[[Pod], None]) -> None:
        self._cluster = cluster
        self._gone = gone
        self._left = left
        self._hosts: dict[tuple[str, str], list[Host]] = {}
        self._sources: dict[tuple[str, str], Source] = {}
        self._gateways: dict[str, str] = {}  # by key of a service: the gateway that it is
        self.appliers: dict[str, Callable[[str, Any], None]] = {
            "Pod": self._pod,
            "Node": self._node,
            "Namespace": self._namespace,
            "Service": self._service,
            "EndpointSlice": self._slice,
            "ServiceEntry": self._service_entry,
            "WorkloadEntry": self._workload_entry,
            "Gateway": self._gateway,
            "GatewayClass": self._class,
        }

    # ── pods and nodes ────────────────────────────────────────────────────────────────────────────

    def _pod(self, key: str, resource: objects.Pod | None) -> None:
        namespace, _, name = key.partition("/")
        if resource is None or has_ended(resource):
            self._drop_pod(namespace, name)
            return
        cluster = self._cluster
        addresses = addresses_of(resource)
        pods = cluster.home(namespace).pods
        template = self._template(namespace, shape_of(resource))
        node, healthy = sys.intern(resource.spec.node_name), is_healthy(resource)
        marker, uid = hash(resource.metadata.uid), kubelet_uid(resource.metadata)
        pod = pods.get(name)
        if pod is None:
            pod = pods[name] = Pod(name, template, addresses, node, healthy, marker, uid)
            template.pods[name] = None
            cluster.nodes.setdefault(node, {})[pod] = None
        elif pod.says() == (template, addresses, node, healthy, marker, uid):
            return
        else:
            if pod.template is not template:
                self._leave_template(pod)
                template.pods[name] = None
            if pod.node != node:
                self._leave_node(pod)
                cluster.nodes.setdefault(node, {})[pod] = None
            pod.template, pod.addresses, pod.node = template, addresses, node
            pod.healthy, pod.marker, pod.pod_uid = healthy, marker, uid
        cluster.stale_pods[pod] = None

    def _template(self, namespace: str, shape: Shape) -> Template:
        cluster = self._cluster
        home = cluster.home(namespace)
        template = home.templates.get(shape)
        if template is None:
            template = home.templates[shape] = Template(namespace, shape)
            home.selectable.add(template.labels, template)
            if template.asks:
                home.asking += 1
                cluster.stale_namespaces[namespace] = None
            cluster.add_user(template, references(template.labels, namespace))
            cluster.touch(template)
        return template

    def _drop_pod(self, namespace: str, name: str) -> None:
        cluster = self._cluster
        home = cluster.homes.get(namespace)
        pod = None if home is None else home.pods.pop(name, None)
        if pod is not None:
            self._leave_template(pod)
            self._leave_node(pod)
            cluster.stale_pods.pop(pod, None)
            if pod.digest:
                self._gone((pod.uid(cluster.settings.cluster_id),))
            self._left(pod)
            cluster.forget(namespace)

    def _leave_template(self, pod: Pod) -> None:
        template, cluster = pod.template, self._cluster
        template.pods.pop(pod.name, None)
        if not template.pods:
            home = cluster.homes[template.namespace]
            del home.templates[template.shape]
            home.selectable.discard(template.labels, template)
            if template.asks:
                home.asking -= 1
                cluster.stale_namespaces[template.namespace] = None
            cluster.discard_user(template, references(template.labels, template.namespace))
            cluster.stale_templates.pop(template, None)

    def _leave_node(self, pod: Pod) -> None:
        pods = self._cluster.nodes[pod.node]
        pods.pop(pod, None)
        if not pods:
            del self._cluster.nodes[pod.node]

    def _node(self, key: str, resource: objects.Node | None) -> None:
        labels = {} if resource is None else resource.metadata.labels
        region, zone, subzone = (labels.get(name, "") for name in (names.REGION, names.ZONE, names.SUBZONE))
        self._cluster.locate(key, Locality(region, zone, subzone))

    # ── namespaces and waypoints ──────────────────────────────────────────────────────────────────

    def _namespace(self, key: str, resource: objects.Namespace | None) -> None:
        cluster = self._cluster
        metadata = objects.Metadata() if resource is None else resource.metadata
        annotations = {name: metadata.annotations[name] for name in _NAMESPACE_ANNOTATIONS if name in metadata.annotations}
        home = cluster.home(key)
        if (metadata.labels, annotations) != (home.labels, home.annotations):
            if metadata.labels.get(names.DATAPLANE_MODE) != home.labels.get(names.DATAPLANE_MODE):
                cluster.stale_namespaces[key] = None
            cluster.discard_user(key, references(home.labels, key))
            home.labels, home.annotations = metadata.labels, annotations
            cluster.add_user(key, references(home.labels, key))
            cluster.touch(key)
        cluster.forget(key)

    def _gateway(self, key: str, resource: objects.Gateway | None) -> None:
        if self._cluster.waypoints.apply_gateway(key, resource):
            self._cluster.touch_users(key)

    def _class(self, key: str, resource: objects.GatewayClass | None) -> None:
        for gateway in self._cluster.waypoints.apply_class(key, resource):
            self._cluster.touch_users(gateway)

    # ── services ──────────────────────────────────────────────────────────────────────────────────

    def _service(self, key: str, resource: objects.Service | None) -> None:
        cluster = self._cluster
        self._put_hosts(("Service", key), [] if resource is None else hosts_of_service(resource, cluster.settings))
        namespace, _, name = key.partition("/")
        gateway = "" if resource is None else resource.metadata.labels.get(names.GATEWAY_NAME, "")
        former = self._gateways.pop(key, "")
        if gateway:
            self._gateways[key] = gateway
        for changed, there in ((former, False), (gateway, True)):
            if changed and former != gateway and cluster.waypoints.apply_service(namespace, name, changed, there):
                cluster.touch_users(f"{namespace}/{changed}")

    def _service_entry(self, key: str, resource: objects.ServiceEntry | None) -> None:
        hosts = [] if resource is None else hosts_of_entry(resource, self._cluster.settings)
        self._put_hosts(("ServiceEntry", key), hosts)
        source = None if resource is None else ServiceEntry(resource, self._hosts.get(("ServiceEntry", key), []))
        self._put_source("ServiceEntry", key, source)

    def _put_hosts(self, source: tuple[str, str], hosts: list[Host]) -> None:
        """The hosts of one resource are these."""
        cluster = self._cluster
        former = {host.hostname: host for host in self._hosts.pop(source, [])}
        now: list[Host] = []
        for host in hosts:
            before = former.pop(host.hostname, None)
            if before is not None and before.same(host):
                now.append(before)
                continue
            now.append(host)
            if before is not None:
                self._unindex(before)
            home = cluster.home(host.namespace)
            home.hosts.add(host)
            home.selectors.add(host.selector, host)
            cluster.add_user(host, references(host.labels, host.namespace))
            alike = before is not None and before.selects_as(host) and cluster.hosts.counts(before)
            changed = cluster.hosts.put(host)
            self._settle(changed, alike=alike and cluster.hosts.counts(host))
        for host in former.values():
            self._unindex(host)
            self._settle(cluster.hosts.drop(host), alike=False)
            cluster.forget(host.namespace)
        if now:
            self._hosts[source] = now

    def _unindex(self, host: Host) -> None:
        cluster = self._cluster
        home = cluster.home(host.namespace)
        home.hosts.discard(host)
        home.selectors.discard(host.selector, host)
        cluster.discard_user(host, references(host.labels, host.namespace))

    def _settle(self, changed: list[Host], *, alike: bool) -> None:
        """These began or ceased to count; alike: their endpoints are the same."""
        cluster = self._cluster
        for host in changed:
            cluster.touch(host)
            if alike:
                continue
            cluster.touch_selected(host)
            entry = self._sources.get(host.source)
            if entry is not None:
                cluster.touch(entry)
            if host.kubernetes:
                for found in cluster.slices.of_service(f"{host.namespace}/{host.name}"):
                    self._touch_slice(found)

    # ── workloads that are no pods ────────────────────────────────────────────────────────────────

    def _workload_entry(self, key: str, resource: objects.WorkloadEntry | None) -> None:
        source = None if resource is None else WorkloadEntry(resource)
        former = self._sources.get(("WorkloadEntry", key))
        if former is not None:
            self._cluster.home(former.namespace).selectable.discard(former.labels, former)
        self._put_source("WorkloadEntry", key, source)
        if source is not None:
            self._cluster.home(source.namespace).selectable.add(source.labels, source)

    def _slice(self, key: str, resource: objects.EndpointSlice | None) -> None:
        former = self._sources.get(("EndpointSlice", key))
        if isinstance(former, EndpointSlice):
            self._touch_slice(former)
            self._cluster.slices.discard(former)
        # What the controller makes of a service's selector says nothing that pods and the selector do not.
        labels = {} if resource is None else resource.metadata.labels
        known = names.SERVICE_NAME in labels and labels.get(names.SLICE_MANAGED_BY) != names.SLICE_CONTROLLER
        source = EndpointSlice(resource) if resource is not None and known and resource.address_type != "FQDN" else None
        self._put_source("EndpointSlice", key, source)
        if source is not None:
            self._cluster.slices.add(source)
            self._touch_slice(source)

    def _touch_slice(self, found: EndpointSlice) -> None:
        cluster = self._cluster
        cluster.touch(found)
        for key in found.pods:
            namespace, _, name = key.partition("/")
            home = cluster.homes.get(namespace)
            pod = None if home is None else home.pods.get(name)
            if pod is not None:
                cluster.stale_pods[pod] = None

    def _put_source(self, kind: str, key: str, source: Source | None) -> None:
        """The resource's workloads are this one's (None: it has none)."""
        cluster = self._cluster
        former = self._sources.pop((kind, key), None)
        if former is not None:
            cluster.home(former.namespace).sources.discard(former)
            cluster.discard_user(former, former.references)
            cluster.stale_sources.pop(former, None)
        if source is not None:
            self._sources[kind, key] = source
            cluster.home(source.namespace).sources.add(source)
            cluster.add_user(source, source.references)
            if former is not None:
                source.told, former.told = former.told, {}
            cluster.touch(source)
        elif former is not None:
            self._gone(former.told)
            cluster.forget(former.namespace)
