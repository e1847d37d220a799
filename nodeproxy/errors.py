"""Every error that nodeproxy raises on purpose, in one tree.

    NodeproxyError
    ├── ConfigError            a setting, a mesh file, a command line: the operator's to mend
    ├── PrivilegeError         the kernel or a capability says no: the platform's to mend
    ├── KernelError            a bpf(2), netlink or namespace call failed
    ├── EnrolmentError         one pod could not be steered; the others are not touched
    ├── SourceError            the source of the state does not answer, or what reads it died: it is asked again
    ├── ClusterError           the Kubernetes API server refuses, fails or is not reached; `status` says which
    │   └── OversizedAnswerError  it said more than is read into memory
    ├── ResourceError          one resource that a source sent can't be used; `reason` names how, the others are not touched
    ├── StateError             the state's store is damaged, full or held by somebody else
    │   └── UnstorableError    one resource can't be kept, whatever room there is
    ├── HandoverError          the agent that runs does not hand over to this one: it must be stopped first
    ├── IdentityError          a certificate or key can't be made, read or trusted
    ├── CallerError            who asks the controller for something does not get it; `reason` names why
    └── ProtocolError          a peer broke a protocol; `reason` names how

An expected refusal (a policy says no, no endpoint is there) is a value, `nodeproxy.model.reason.Refusal`; exceptions are for
surprises.  An error's text says whose fault it is and what to do next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nodeproxy.model.reason import Reason


class NodeproxyError(Exception):
    """The root of the tree."""


class ConfigError(NodeproxyError):
    """A setting, a mesh file or a command line is wrong; nothing of it was applied."""


class PrivilegeError(NodeproxyError):
    """The kernel lacks a feature or the process a capability."""


class KernelError(NodeproxyError):
    """A call to the kernel failed; `errno` is its error number, 0 if there was none."""

    def __init__(self, message: str, errno: int = 0) -> None:
        super().__init__(message)
        self.errno = errno


class EnrolmentError(NodeproxyError):
    """A pod could not be put under steering, or be released from it."""


class StateError(NodeproxyError):
    """The state's store can't be opened, read or written."""


class HandoverError(NodeproxyError):
    """The agent of this instance that runs can't, or won't, hand over."""


class UnstorableError(StateError):
    """A resource has a form that the store can't keep; without it, others can be written."""


class SourceError(NodeproxyError):
    """The source of the state can't be read, through no fault of what it says; the last good state stays in use."""


class ClusterError(NodeproxyError):
    """The Kubernetes API server did not do what it was asked for.

    status: of its HTTP answer, 0 if it was not reached or broke off.  retry_after_s: how long it asks to be left alone, or None.
    """

    def __init__(self, message: str, status: int = 0, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


class OversizedAnswerError(ClusterError):
    """The API server's answer, or one line of a stream, is larger than is read into memory."""


class ResourceError(NodeproxyError):
    """A resource that a source sent can't be understood or can't be kept: the control plane's to mend.

    reason: what it is called in the metric.  name: the resource's, if that could be read and nothing else tells it.
    """

    def __init__(self, reason: str, message: str, name: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.name = name


class IdentityError(NodeproxyError):
    """A certificate, key or root can't be made, read or trusted."""


class CallerError(NodeproxyError):
    """Who calls the controller is not who it says, may not have what it asks for, or can't be answered now.

    reason: what it is called in metric and log.  code: the name of the gRPC status to answer with, as "UNAUTHENTICATED".
    The text is for the caller: it holds nothing that only others may know.
    """

    def __init__(self, reason: str, message: str, code: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.code = code


class ProtocolError(NodeproxyError):
    """A peer broke a protocol.

    reason: what it is called in metric, log and `why`.
    code: the HTTP/2 error code (RFC 9113, section 7) to tell the peer.
    """

    def __init__(self, reason: Reason, message: str, code: int = 0x1) -> None:
        super().__init__(message)
        self.reason = reason
        self.code = code
