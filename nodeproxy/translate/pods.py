"""Pods, kept small: what the pods of one template have in common is kept, and worked out, once.

A hundred thousand pods have some ten thousand templates (ReplicaSets, mostly): labels, service account, ports and whatever
follows from them belong to the template, and a pod is its name, addresses, node and health.

Invariant: a pod here has not ended.  It is a workload once it has addresses, and its node is told of it as soon as it has one.
Knows nothing of what else is in the cluster.
"""

from __future__ import annotations

import re
import sys

import msgspec

from nodeproxy.model.node_pod import Membership
from nodeproxy.model.workload import ApplicationTunnel, Gateway, Protocol
from nodeproxy.policy.address import canonical_ip
from nodeproxy.translate import names, objects

# A CronJob's Jobs are named after the minute (Kubernetes) or second that they are for.
_CRON_JOB = re.compile(r"(.+)-\d{8,10}")
_ENDED = frozenset({"Succeeded", "Failed"})
# What the kubelet hashes a static pod to (k8s.io/kubernetes/pkg/kubelet/config/common.go), of 128 bits since ever.
_STATIC_UID = re.compile(r"[0-9a-f]{32}")
_TYPES = {"Deployment": "deployment", "CronJob": "cronjob", "Job": "job"}


class Shape(msgspec.Struct, frozen=True, gc=False):
    """What makes two pods of a namespace the same to the mesh.

    ports: TCP ports of containers by name.  probe_ports: those that the kubelet connects to.
    workload_name: "" if the pod's own name is it.
    redirected: a CNI plug-in says that it is in the mesh.  sidecar: it is in the mesh in another way.
    """

    labels: tuple[tuple[str, str], ...] = ()
    service_account: str = ""
    host_network: bool = False
    ports: tuple[tuple[str, int], ...] = ()
    probe_ports: tuple[int, ...] = ()
    redirected: bool = False
    sidecar: bool = False
    workload_type: str = "pod"
    workload_name: str = ""


class Derived(msgspec.Struct, frozen=True, gc=False):
    """What follows from a template and the rest of the cluster, the same for all of its pods."""

    membership: Membership = Membership.UNLABELLED
    protocol: Protocol = Protocol.TCP
    native_tunnel: bool = False
    waypoint: Gateway | None = None
    tunnel: ApplicationTunnel | None = None
    services: dict[str, dict[int, int]] = {}
    policies: tuple[str, ...] = ()


class Template:
    """The pods of one namespace and shape.  Equal only to itself."""

    __slots__ = ("derived", "labels", "namespace", "pods", "ports", "shape")

    def __init__(self, namespace: str, shape: Shape) -> None:
        self.namespace = namespace
        self.shape = shape
        self.labels = dict(shape.labels)
        self.ports = dict(shape.ports)
        # Names, for a pod refers to its template, and not the other way round.  A dict takes half the memory of a set.
        self.pods: dict[str, None] = {}
        self.derived = Derived()

    def membership(self, namespace_labels: dict[str, str]) -> Membership:
        """Whether its pods belong into the mesh, and why: the pod's own label wins over its namespace's."""
        if self.shape.host_network:
            return Membership.HOST_NETWORK
        if self.shape.sidecar:
            return Membership.SIDECAR
        own = self.labels.get(names.DATAPLANE_MODE)
        if own:
            return Membership.POD_LABEL if own == names.AMBIENT else Membership.OPTED_OUT
        labelled = namespace_labels.get(names.DATAPLANE_MODE) == names.AMBIENT
        return Membership.NAMESPACE_LABEL if labelled else Membership.UNLABELLED

    @property
    def asks(self) -> bool:
        """Whether its pods belong into the mesh whatever their namespace says."""
        return self.membership({}).in_mesh

    def protocol(self, namespace_labels: dict[str, str]) -> tuple[Protocol, bool]:
        """What its pods accept from other nodes, and whether they speak it themselves.

        istiod goes by the annotation of a CNI plug-in that has put the pod into the mesh.  That holds here too, and the labels
        that ask for it as well: nodeproxy's agents enrol by them and write no annotation.  Until the agent has done so the pod
        can't be reached through the mesh, which is closed and not open.
        """
        if names.NATIVE_TUNNEL in self.labels.get(names.TUNNEL, "").split(","):
            return Protocol.HBONE, True
        if self.shape.redirected:
            return Protocol.HBONE, False
        return (Protocol.HBONE if self.membership(namespace_labels).in_mesh else Protocol.TCP), False


class Pod(msgspec.Struct, eq=False, gc=False):
    """One pod.

    marker: a hash of the resource's uid, which tells a pod from its successor of the same name.
    pod_uid: what the kubelet calls it.
    digest: of the workload that was last told of, 0 if none was.
    told_node, told: the node that was last told of it ("": none), and a digest of that.
    """

    name: str
    template: Template
    addresses: tuple[str, ...]
    node: str
    healthy: bool
    marker: int
    pod_uid: str
    digest: int = 0
    told_node: str = ""
    told: int = 0

    def says(self) -> tuple[Template, tuple[str, ...], str, bool, int, str]:
        """All that was read of it."""
        return self.template, self.addresses, self.node, self.healthy, self.marker, self.pod_uid

    @property
    def key(self) -> str:
        """ "namespace/name"."""
        return f"{self.template.namespace}/{self.name}"

    def uid(self, cluster_id: str) -> str:
        """The workload's uid."""
        return f"{cluster_id}//Pod/{self.template.namespace}/{self.name}"


def has_ended(pod: objects.Pod) -> bool:
    """Whether none of its containers will run again."""
    return pod.status.phase in _ENDED


def kubelet_uid(metadata: objects.Metadata) -> str:
    """What the kubelet calls the pod, in cgroups and to CNI plug-ins.

    Of a static pod that is not `metadata.uid`, which is of what stands for it in the API server, but what two annotations say.
    Anybody may write them: they are believed if they are both there, for such a pod the kubelet does not run, and of a form that
    no uid has that the API server gives (RFC 9562, with hyphens): so no pod can be taken for another one, but for a static one.
    """
    static = metadata.annotations.get(names.CONFIG_HASH, "")
    is_one = static == metadata.annotations.get(names.CONFIG_MIRROR) and _STATIC_UID.fullmatch(static)
    return static if is_one else metadata.uid


def addresses_of(pod: objects.Pod) -> tuple[str, ...]:
    """The pod's addresses in canonical form; none if it is no workload (any more), or one of them is none."""
    status = pod.status
    if has_ended(pod):
        return ()
    texts = [item.ip for item in status.pod_ips] or ([status.pod_ip] if status.pod_ip else [])
    try:
        return tuple([canonical_ip(text) for text in texts])
    except ValueError:
        return ()


def is_healthy(pod: objects.Pod) -> bool:
    """Ready, and not about to go."""
    if pod.metadata.deletion_timestamp is not None:
        return False
    return any(item.type == "Ready" and item.status == "True" for item in pod.status.conditions)


def shape_of(pod: objects.Pod) -> Shape:
    """What the pod has in common with others."""
    metadata, spec = pod.metadata, pod.spec
    kind, name = _workload(metadata)
    labels = sorted((sys.intern(key), sys.intern(value)) for key, value in metadata.labels.items())
    return Shape(
        labels=tuple(labels),
        service_account=sys.intern(spec.service_account_name),
        host_network=spec.host_network,
        ports=_ports(spec),
        probe_ports=_probe_ports(spec),
        redirected=metadata.annotations.get(names.REDIRECTION) == "enabled",
        sidecar=names.SIDECAR_STATUS in metadata.annotations,
        workload_type=kind,
        workload_name="" if name == metadata.name else name,
    )


def canonical_name(labels: dict[str, str], workload: str) -> tuple[str, str]:
    """The canonical service's name and revision that labels say, else the workload's name and "latest"."""
    name = next((labels[key] for key in names.CANONICAL_NAMES if key in labels), workload)
    return name, next((labels[key] for key in names.CANONICAL_REVISIONS if key in labels), names.DEFAULT_REVISION)


def _ports(spec: objects.PodSpec) -> tuple[tuple[str, int], ...]:
    """Of containers, then of sidecars; the first of a name counts."""
    found: dict[str, int] = {}
    sidecars = (item for item in spec.init_containers if item.restart_policy == "Always")
    for container in (*spec.containers, *sidecars):
        for port in container.ports:
            if port.name and port.protocol == "TCP":
                found.setdefault(port.name, port.container_port)
    return tuple(found.items())


def _probe_ports(spec: objects.PodSpec) -> tuple[int, ...]:
    """What probes and hooks name of the pod's own, whose `host` is the pod's address unless it says otherwise."""
    found: set[int] = set()
    for container in (*spec.containers, *spec.init_containers):
        for handler in _handlers(container):
            for where in (handler.http_get, handler.tcp_socket, handler.grpc):
                if where is not None and not where.host:
                    found.add(_port_of(container, where.port))
    return tuple(sorted(port for port in found if 1 <= port <= 65535))


def _handlers(container: objects.Container) -> list[objects.Handler]:
    probes = (container.liveness_probe, container.readiness_probe, container.startup_probe)
    hooks = container.lifecycle
    every = (*probes, hooks.post_start, hooks.pre_stop) if hooks is not None else probes
    return [handler for handler in every if handler is not None]


def _port_of(container: objects.Container, port: int | str) -> int:
    """As the kubelet finds it: a name is a port's of the same container, or else a number.  0: it is none."""
    if isinstance(port, int):
        return port
    named = next((each.container_port for each in container.ports if each.name == port), 0)
    return named or (int(port) if port.isascii() and port.isdecimal() and len(port) <= 5 else 0)


def _workload(metadata: objects.Metadata) -> tuple[str, str]:
    """Type and name of what made the pod, by the conventions in which controllers name what they make; a label may rename it."""
    kind, name = "pod", metadata.name
    owner = next((item for item in metadata.owner_references if item.controller), None)
    if metadata.generate_name and owner is not None:
        kind, name = _owner(owner, metadata.labels)
    return _TYPES.get(kind, "pod"), metadata.labels.get(names.WORKLOAD_NAME, name)


def _owner(owner: objects.OwnerReference, labels: dict[str, str]) -> tuple[str, str]:
    if owner.kind == "ReplicaSet":
        for label in names.POD_HASHES:
            hashed = labels.get(label)
            if hashed and owner.name.endswith(hashed):
                return "Deployment", owner.name.removesuffix(f"-{hashed}")
    elif owner.kind == "ReplicationController" and labels.get("deploymentconfig"):
        return "Deployment", labels["deploymentconfig"]  # OpenShift's
    elif owner.kind == "Job":
        cron = _CRON_JOB.fullmatch(owner.name)
        if cron is not None:
            return "CronJob", cron[1]
    return owner.kind, owner.name
