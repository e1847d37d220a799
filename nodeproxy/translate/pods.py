"""Pods, kept small: what the pods of one template have in common is kept, and worked out, once.

A hundred thousand pods have some ten thousand templates (ReplicaSets, mostly): labels, service account, ports and whatever
follows from them belong to the template, and a pod is its name, addresses, node and health.

Invariant: a pod here is a workload: it has addresses and has not ended.  Knows nothing of what else is in the cluster.
"""

from __future__ import annotations

import re
import sys

import msgspec

from nodeproxy.model.workload import ApplicationTunnel, Gateway, Protocol
from nodeproxy.policy.address import canonical_ip
from nodeproxy.translate import names, objects

# A CronJob's Jobs are named after the minute (Kubernetes) or second that they are for.
_CRON_JOB = re.compile(r"(.+)-\d{8,10}")
_ENDED = frozenset({"Succeeded", "Failed"})
_TYPES = {"Deployment": "deployment", "CronJob": "cronjob", "Job": "job"}


class Shape(msgspec.Struct, frozen=True, gc=False):
    """What makes two pods of a namespace the same to the mesh.

    ports: TCP ports of containers by name.  workload_name: "" if the pod's own name is it.
    redirected: a CNI plug-in says that it is in the mesh.  sidecar: it is in the mesh in another way.
    """

    labels: tuple[tuple[str, str], ...] = ()
    service_account: str = ""
    host_network: bool = False
    ports: tuple[tuple[str, int], ...] = ()
    redirected: bool = False
    sidecar: bool = False
    workload_type: str = "pod"
    workload_name: str = ""


class Derived(msgspec.Struct, frozen=True, gc=False):
    """What follows from a template and the rest of the cluster, the same for all of its pods."""

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
        mode = self.labels.get(names.DATAPLANE_MODE) or namespace_labels.get(names.DATAPLANE_MODE)
        wanted = mode == names.AMBIENT and not self.shape.host_network and not self.shape.sidecar
        return (Protocol.HBONE if wanted else Protocol.TCP), False


class Pod(msgspec.Struct, eq=False, gc=False):
    """One pod.

    marker: a hash of the resource's uid, which tells a pod from its successor of the same name.
    digest: of the workload that was last told of, 0 if none was.
    """

    name: str
    template: Template
    addresses: tuple[str, ...]
    node: str
    healthy: bool
    marker: int
    digest: int = 0

    def uid(self, cluster_id: str) -> str:
        """The workload's uid."""
        return f"{cluster_id}//Pod/{self.template.namespace}/{self.name}"


def addresses_of(pod: objects.Pod) -> tuple[str, ...]:
    """The pod's addresses in canonical form; none if it is no workload (any more), or one of them is none."""
    status = pod.status
    if status.phase in _ENDED:
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
