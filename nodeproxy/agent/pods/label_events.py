"""What a pod's users must know of its enrolment by label, told by Events.

A pod that ran already has Enrolled when its connections were counted, and StandingConnections if there were any: those are what
neither encryption nor policy holds for.  One that the CNI brings has none before its first packet, and nothing is told of it.
Invariant: of a pod that an agent before has steered nothing is told again.  It must not know how Events are written.
"""

from __future__ import annotations

from nodeproxy.agent.pods.events import Events
from nodeproxy.model.node_pod import Membership, NodePod

_SENTENCES = {
    Membership.UNLABELLED: "neither the pod nor its namespace has the label istio.io/dataplane-mode=ambient",
    Membership.NAMESPACE_LABEL: "its namespace has the label istio.io/dataplane-mode=ambient",
    Membership.POD_LABEL: "it has the label istio.io/dataplane-mode=ambient",
    Membership.OPTED_OUT: "its own label istio.io/dataplane-mode keeps it out",
    Membership.HOST_NETWORK: "it is in the node's network, where it can't be told from the node",
    Membership.SIDECAR: "it has a sidecar, which is another way to be in a mesh",
}


def describe(membership: Membership) -> str:
    """Why a pod is in the mesh or not, as a sentence for people."""
    return _SENTENCES[membership]


class LabelEvents:
    """All of one node."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._entering: dict[str, NodePod] = {}  # by the workload's uid: pods whose connections are not counted yet

    def entering(self, uid: str, pod: NodePod) -> None:
        """A pod that runs is about to be put in."""
        self._entering[uid] = pod

    def forget(self, uid: str) -> None:
        """It was in already, or is not in after all."""
        self._entering.pop(uid, None)

    def counted(self, uid: str, standing: int, ended: bool) -> None:
        """A pod is in, and so many connections from before go on; ended: all were destroyed, and so many there had been."""
        pod = self._entering.pop(uid, None)
        if pod is None:
            return
        self._tell(pod, "Enrolled", f"it is in the mesh: {describe(pod.membership)}")
        if standing:
            became = "were ended" if ended else "go on outside it, without encryption and past every policy, until they end"
            told = f"connections from before the pod was in the mesh {became}: {standing}"
            self._tell(pod, "StandingConnections", told, warning=True)

    def left(self, pod: NodePod) -> None:
        """A pod that goes on is out.  pod: as it is told of now."""
        self._tell(pod, "Left", f"it has left the mesh: {describe(pod.membership)}; its connections go on until they end")

    def failed(self, pod: NodePod, error: str) -> None:
        """It is to be in and can't be put in now."""
        told = f"it can't be put into the mesh, and is tried again: {error}"
        self._tell(pod, "EnrolmentFailed", told, warning=True)

    def _tell(self, pod: NodePod, reason: str, message: str, *, warning: bool = False) -> None:
        self._events.tell(pod.namespace, pod.name, pod.pod_uid, reason, message, warning)
