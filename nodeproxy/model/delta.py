"""What a source says: changes of state, and which pods of this node it wants enrolled."""

from __future__ import annotations

import msgspec

from nodeproxy.model.node_pod import MeshNamespace, NodePod
from nodeproxy.model.policy import Policy
from nodeproxy.model.workload import Service, Workload


class Delta(msgspec.Struct, frozen=True):
    """Resources that came or changed, and the keys of those that went; in any order between deltas."""

    workloads: tuple[Workload, ...] = ()
    services: tuple[Service, ...] = ()
    policies: tuple[Policy, ...] = ()
    removed_workloads: tuple[str, ...] = ()  # uids
    removed_services: tuple[str, ...] = ()  # service keys
    removed_policies: tuple[str, ...] = ()  # policy keys
    # On demand: names ("network/ip", uid, service key) that were asked for and that nobody has, that were asked for and that
    # somebody has, and that are not asked for any more.
    absent: tuple[str, ...] = ()
    present: tuple[str, ...] = ()
    forgotten: tuple[str, ...] = ()
    # Of a cluster's translation alone: what each node is told of its own pods ((node, pod); (node, "namespace/name")), and every
    # node of namespaces.
    node_pods: tuple[tuple[str, NodePod], ...] = ()
    removed_node_pods: tuple[tuple[str, str], ...] = ()
    mesh_namespaces: tuple[MeshNamespace, ...] = ()
    removed_mesh_namespaces: tuple[str, ...] = ()


class Everything(msgspec.Struct, frozen=True):
    """All that a source knows: what is not in it is gone.  The store turns it into the `Delta` that it amounts to."""

    workloads: tuple[Workload, ...] = ()
    services: tuple[Service, ...] = ()
    policies: tuple[Policy, ...] = ()


class PodSpec(msgspec.Struct, frozen=True):
    """A pod of this node that belongs in the mesh.

    netns: path of its network namespace.  inode: of the namespace that is meant; 0: whichever is there.
    """

    uid: str
    netns: str
    inode: int = 0
