"""Which pods run where, as far as the CA asks: the one thing that it believes about who may have which identity."""

from __future__ import annotations

from typing import Protocol


class Placement(Protocol):
    """What the controller has seen of the cluster's pods: of all that have not ended, whether they are in the mesh or not."""

    def synced(self) -> bool:
        """Whether all pods that there were have been seen; before that the other answers mean nothing."""
        ...

    def node_of(self, namespace: str, pod: str, uid: str) -> str:
        """The node of the pod with this name and uid; "" if there is none, or it is not on a node yet."""
        ...

    def runs_on(self, node: str, namespace: str, service_account: str) -> bool:
        """Whether a pod of this service account is on the node and has not ended."""
        ...
