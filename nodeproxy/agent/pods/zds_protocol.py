"""ZDS, by which istio-cni tells a node's proxy of pods: packets in, messages out, without I/O.

Invariant: what is returned is whole and well-formed, so that a workload's uid can be made of it; descriptors are none of its
business.  It must not know what becomes of a pod.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from google.protobuf.message import DecodeError

from nodeproxy.errors import EnrolmentError
from nodeproxy.proto import zds_pb2

# An Add has some 200 bytes, and at most 1 KiB by Kubernetes' limits on names.
MAX_PACKET_BYTES: Final = 16_384
# istio-cni reads an answer into 1024 bytes, and takes a longer one for a broken connection.
_MAX_ERROR_BYTES: Final = 900

# Names of pods, namespaces and service accounts are DNS names (RFC 1123, section 2.1) of at most 253 characters; a pod's uid is a
# UUID or, of a static pod, a digest.
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_UID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,127}")


class Add(NamedTuple):
    """A pod is to be in; with it comes its network namespace."""

    pod_uid: str
    name: str
    namespace: str
    service_account: str

    @property
    def key(self) -> str:
        """ "namespace/name"."""
        return f"{self.namespace}/{self.name}"


class Keep(NamedTuple):
    """A pod of the snapshot whose network namespace istio-cni does not know."""

    pod_uid: str


class Delete(NamedTuple):
    """A pod is not to be in any more."""

    pod_uid: str


class SnapshotSent(NamedTuple):
    """Whoever was not named on this connection is not to be in."""


Request = Add | Keep | Delete | SnapshotSent


def hello() -> bytes:
    """The first packet of a connection, ours."""
    return zds_pb2.ZdsHello(version=zds_pb2.V1).SerializeToString()


def answer(error: str = "") -> bytes:
    """The one answer to a request; "": it is done."""
    text = error.encode()[:_MAX_ERROR_BYTES].decode(errors="ignore")
    return zds_pb2.WorkloadResponse(ack=zds_pb2.Ack(error=text)).SerializeToString()


def parse(packet: bytes) -> Request:
    """What istio-cni says.  Raises EnrolmentError, with what to answer."""
    try:
        message = zds_pb2.WorkloadRequest.FromString(packet)
    except DecodeError as error:
        raise EnrolmentError("the packet is no WorkloadRequest of ZDS") from error
    kind = message.WhichOneof("payload")
    if kind == "add":
        info = message.add.workload_info
        names = {"name": info.name, "namespace": info.namespace, "service_account": info.service_account}
        for field, value in names.items():
            if not _NAME.fullmatch(value):
                raise EnrolmentError(f"workload_info.{field} of an Add is no name of Kubernetes': {value[:60]!r}")
        return Add(_uid(message.add.uid), **names)
    if kind == "keep":
        return Keep(_uid(message.keep.uid))
    if kind == "delete":
        return Delete(_uid(message.delete.uid))
    if kind == "snapshot_sent":
        return SnapshotSent()
    raise EnrolmentError("the request is none of add, keep, del and snapshot_sent: a later version of ZDS?")


def _uid(text: str) -> str:
    if not _UID.fullmatch(text):
        raise EnrolmentError(f"the uid is no pod's: {text[:60]!r}")
    return text
