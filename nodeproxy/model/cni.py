"""What the agent is told by the chained CNI plug-in of pods that come and go, and what it answers.

Invariant: the plug-in asks and the agent decides.  Between them go one line of JSON each way, at most `MAX_LINE_BYTES` long, on a
Unix socket of root's in the run directory: a `CniCall`, then a `CniAnswer`; `daemonset/cni/` is the other side.
It must not know how a pod is put into the mesh, nor what a runtime's chain looks like.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, Protocol

import msgspec

SOCKET_FILE = "cni.sock"  # in the run directory
# Of a GC, the longest call, the valid attachments: 1,000 pods of a node (Kubernetes advises 110) at some 100 bytes each.
MAX_LINE_BYTES = 256 * 1024
# What a result holds of addresses; a pod has one or two, and those of Multus a few more.
MAX_ADDRESSES = 64

# CNI specification 1.1, "Error": codes below 100 are the specification's, the rest the plug-in's own.
INVALID_ENVIRONMENT = 4
TRY_AGAIN_LATER = 11
UNAVAILABLE = 50  # STATUS: no ADD can be served
LIMITED = 51  # STATUS: nor is what is there connected as it should be
NOT_IN_MESH = 100  # CHECK: it should be in the mesh, and is not


class CniAdd(msgspec.Struct, frozen=True):
    """A pod's interface that the chain has made so far.

    netns: path of the pod's network namespace.  namespace, name, pod_uid: the kubelet's (CNI_ARGS), each "" where no kubelet is.
    addresses: canonical IP addresses of the pod's interfaces, as the chain's result lists them.
    """

    container_id: str
    netns: str
    ifname: str
    namespace: str = ""
    name: str = ""
    pod_uid: str = ""
    addresses: tuple[str, ...] = ()


class Attachment(msgspec.Struct, frozen=True):
    """An interface of a container: what ADD makes and DEL removes."""

    container_id: str
    ifname: str


class Admission(msgspec.Struct, frozen=True):
    """Whether the pod is in the mesh now, and why; `why` is a sentence for people."""

    in_mesh: bool
    why: str


class Admitter(Protocol):
    """Who decides about pods that come and go.

    Calls come many at once, and again: a runtime repeats what it has no answer to.  What takes longer than 12 s
    is answered so and goes on, never cancelled: the repeat finds it done.
    """

    async def admit(self, request: CniAdd) -> Admission:
        """Put the pod into the mesh if it belongs there, before its first packet.

        Raises EnrolmentError when it belongs into the mesh, or may belong there, and can't be put in now: it is tried again.
        """

    async def gone(self, attachment: Attachment) -> None:
        """The interface is about to be removed; unknown ones, and those that have gone already, are no error."""

    async def check(self, request: CniAdd) -> None:
        """Raises EnrolmentError when the pod is not as `admit` left it."""

    async def keep(self, valid: frozenset[Attachment]) -> None:
        """These are all that the network has; any other that came by `admit` has gone."""

    def pending(self) -> str:
        """Why no pod could be admitted at this moment; "" when they can."""


class CniCall(msgspec.Struct, frozen=True):
    """What the plug-in was called with.  valid: of a GC alone; the rest of the others, `pod` without addresses for a DEL."""

    command: Literal["ADD", "DEL", "CHECK", "GC", "STATUS"]
    pod: CniAdd | None = None
    valid: frozenset[Attachment] = frozenset()


class CniAnswer(msgspec.Struct, frozen=True):
    """code: 0, or one of the CNI specification's or ours, with `message` and `details` of the error; else `message` is why.

    decided: False when the agent can't know yet; then the plug-in does as it does when the agent is away.
    """

    code: int = 0
    message: str = ""
    details: str = ""
    decided: bool = True


class CniRefusal(StrEnum):
    """Why a call got another answer than yes: the same name in log, metric and the error's details."""

    NOT_READY = "not_ready"  # the agent does not know yet who belongs into the mesh
    NOT_ENROLLED = "not_enrolled"  # the pod belongs into the mesh and could not be put there (now)
    NOT_AS_ADDED = "not_as_added"  # CHECK: it is not in the mesh any more
    TIMEOUT = "timeout"  # the agent needed longer than a runtime should wait
    TOO_MANY = "too_many"  # more calls at once than are served
    MALFORMED = "malformed"  # the caller is not our plug-in, or of another version
    NOT_ROOT = "not_root"  # the caller is not root
    INTERNAL = "internal"  # a defect of nodeproxy's: logged with a traceback
