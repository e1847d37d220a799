"""What a node's agent is told of the pods of that node: the shape of nodeproxy.v1's messages."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from nodeproxy.model.workload import Workload


class Membership(StrEnum):
    """Why a pod is in the mesh or not."""

    UNLABELLED = "unlabelled"  # neither it nor its namespace asks for it
    NAMESPACE_LABEL = "namespace_label"
    POD_LABEL = "pod_label"
    OPTED_OUT = "opted_out"  # its own label says so
    HOST_NETWORK = "host_network"  # never in
    SIDECAR = "sidecar"  # never in: it is in a mesh in another way

    @property
    def in_mesh(self) -> bool:
        """Whether the pod belongs into the mesh."""
        return self in (Membership.NAMESPACE_LABEL, Membership.POD_LABEL)


class PodState(StrEnum):
    """How a pod of this node stands to the mesh: a word for each in `status`.  The last ones are as `Membership`'s."""

    IN = "in"
    WAITING = "waiting"  # it is to be in, and is not found yet
    FAILED = "failed"  # it is to be in, and can't be put there
    UNLABELLED = "unlabelled"
    OPTED_OUT = "opted_out"
    HOST_NETWORK = "host_network"
    SIDECAR = "sidecar"


class NodePod(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A pod that is scheduled to a node and has not ended.

    pod_uid: as the kubelet names it in cgroups and in CNI_ARGS.
    workload: of a pod in the mesh, as all will be told of it; without addresses as long as it has none.
    probe_ports: of a pod in the mesh, the ports of its own that its probes and lifecycle hooks name; None: they are not known.
    """

    namespace: str
    name: str
    pod_uid: str
    membership: Membership = Membership.UNLABELLED
    workload: Workload | None = None
    probe_ports: tuple[int, ...] | None = None

    @property
    def key(self) -> str:
        """ "namespace/name"."""
        return f"{self.namespace}/{self.name}"


class MeshNamespace(msgspec.Struct, frozen=True, kw_only=True):
    """A namespace in which pods may be in the mesh.  labelled: its own label asks for it; else pods of it do by theirs."""

    name: str
    labelled: bool
