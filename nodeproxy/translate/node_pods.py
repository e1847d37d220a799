"""What nodes are told of their own pods, and all nodes of namespaces: who belongs into the mesh.

Invariant: what was told of a pod, and to which node, stands with the pod; of a pod its own node alone is told.  Knows nothing of
how a workload comes about.
"""

from __future__ import annotations

from nodeproxy.model.node_pod import MeshNamespace, NodePod
from nodeproxy.model.workload import Workload
from nodeproxy.translate import names
from nodeproxy.translate.cluster import Cluster
from nodeproxy.translate.pods import Pod


class NodePods:
    """What has not been told yet of pods."""

    def __init__(self) -> None:
        self._changed: list[tuple[str, NodePod]] = []
        self._removed: dict[tuple[str, str], None] = {}

    def __len__(self) -> int:
        """How many pods are to be told of."""
        return len(self._changed)

    def tell(self, pod: Pod, workload: Workload, digest: int) -> None:
        """A pod was worked out anew.  digest: of its workload."""
        membership, probe_ports = pod.template.derived.membership, pod.template.shape.probe_ports
        told = hash((pod.node, pod.pod_uid, membership, (digest, probe_ports) if membership.in_mesh else 0))
        if told == pod.told:
            return
        if pod.told_node and pod.told_node != pod.node:
            self._removed[pod.told_node, pod.key] = None
        pod.told_node, pod.told = pod.node, told
        if pod.node:
            self._removed.pop((pod.node, pod.key), None)
            found = NodePod(
                namespace=pod.template.namespace,
                name=pod.name,
                pod_uid=pod.pod_uid,
                membership=membership,
                workload=workload if membership.in_mesh else None,
                probe_ports=probe_ports if membership.in_mesh else None,
            )
            self._changed.append((pod.node, found))

    def left(self, pod: Pod) -> None:
        """A pod is no more."""
        if pod.told_node:
            self._removed[pod.told_node, pod.key] = None

    def take_changed(self) -> list[tuple[str, NodePod]]:
        """Pods by their node."""
        changed, self._changed = self._changed, []
        return changed

    def take_removed(self) -> dict[tuple[str, str], None]:
        """Node and key of the pods that a node has no more.  Ask when all that changed is worked out: one may have come back."""
        removed, self._removed = self._removed, {}
        return removed


class Namespaces:
    """What was told of namespaces."""

    def __init__(self) -> None:
        self._told: dict[str, bool] = {}

    def take(self, cluster: Cluster) -> tuple[list[MeshNamespace], list[str]]:
        """What changed, and the names of those that have no pods in the mesh any more."""
        stale, cluster.stale_namespaces = cluster.stale_namespaces, {}
        changed: list[MeshNamespace] = []
        removed: list[str] = []
        for name in stale:
            home = cluster.homes.get(name)
            labelled = home is not None and home.labels.get(names.DATAPLANE_MODE) == names.AMBIENT
            former = self._told.pop(name, None)
            if labelled or (home is not None and home.asking):
                self._told[name] = labelled
                if former is not labelled:
                    changed.append(MeshNamespace(name=name, labelled=labelled))
            elif former is not None:
                removed.append(name)
        return changed, removed
