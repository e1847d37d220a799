"""Python's view of what `bpf/nodeproxy.h` says: numbers, struct layouts, map and program names.

A test compiles the header and compares it with this module, so neither can change alone.  Imports only what a worker has anyway.
Addresses are 16 bytes in network order, IPv4 as ::ffff:a.b.c.d; ports are in host order.
"""

from __future__ import annotations

import socket
import struct
from enum import IntEnum
from typing import Final

MAX_SLOTS: Final = 16
MAX_PODS: Final = 4096
MARK_LAST_LEG: Final = 0x53A
FAMILY_V4: Final = 1
FAMILY_V6: Final = 2
MAX_ENDPOINTS: Final = 8

_MAPPED_PREFIX: Final = b"\0" * 10 + b"\xff\xff"


class Role(IntEnum):
    """What a listener of a worker is for."""

    OUTBOUND = 0
    HBONE = 1
    PLAINTEXT = 2


class Drop(IntEnum):
    """Why the kernel's side refused something; the index into the map `drops`."""

    NO_LISTENER = 0
    UNKNOWN_ADDRESS = 1
    ASSIGN_FAILED = 2
    NO_FAMILY = 3
    NO_STORAGE = 4
    HANDOVER_FULL = 5
    FLOWS_FULL = 6


class Kind(IntEnum):
    """What a client's socket is."""

    STEERED = 1
    LAST_LEG = 2
    DIRECT = 3
    OWN = 4
    KUBELET = 5


class ProbeCount(IntEnum):
    """What became of the kubelet's connects to enrolled pods; the index into the map `probe_counts`."""

    PASSED = 0  # accepted by the application, past policy
    FULL = 1  # no room to remember one more: judged by policy, as anybody's
    OTHER = 2  # to a port that the pod's own probes do not name: judged by policy


class DirectCount(IntEnum):
    """What the direct path's programs count; the index into the map `direct_counts`."""

    FULL = 0  # allowed, but led through the proxy: too many are being made, or there is no room to remember one more
    LATE = 1  # the SYN came when the verdict no longer held: handed to a worker
    LEFT = 2  # ended while the ring was full, and was left among the live ones


# struct np_…, in native byte order; `=` because every field is aligned without the compiler's help.
CONFIG: Final = struct.Struct("=QII")  # own_cgroup_id, slots, unused
POD: Final = struct.Struct("=4sI16s")  # address4, families, address6
ADDRESS: Final = struct.Struct("=16s")  # ip
OWNER: Final = struct.Struct("=Q3II")  # netns_cookie, turn × 3, unused
CLIENT_SOCKET: Final = struct.Struct("=16sII")  # ip, port, kind
DESTINATION: Final = struct.Struct("=16sIIQ")  # ip, port, kind, source
CLIENT: Final = struct.Struct("=Q16sII")  # netns_cookie, ip, port, unused
FLOW: Final = struct.Struct("=16s16sHH")  # source_ip, destination_ip, source_port, destination_port
FLOW_USE: Final = struct.Struct("=Q")  # source
LISTENER: Final = struct.Struct("=16sII")  # ip, role, slot
KUBELET: Final = struct.Struct("=QQ")  # cgroup_id, netns_cookie
PROBE: Final = struct.Struct("=QQ")  # destination, socket
PROBE_PORT: Final = struct.Struct("=QII")  # netns_cookie, port, unused
IN_USE: Final = struct.Struct("=QQQ")  # handover, flows, probes
PAIR: Final = struct.Struct("=QQII")  # source, destination, port, unused
VERDICT: Final = struct.Struct("=QII")  # epoch, direct, exceptions
ADDRESS_PORT: Final = struct.Struct("=16sI")  # ip, port
SERVICE: Final = struct.Struct("=QII160s")  # epoch, count, turn, endpoints: MAX_ENDPOINTS × ADDRESS_PORT
DIRECT_STATE: Final = struct.Struct("=QQ")  # epoch, valid_until_ns
# socket, source, destination, started_ns, ended_ns, sent, received, original_ip, original_port, accepted, ended, refused; the
# programs' own fields are passed over
DIRECT_FLOW: Final = struct.Struct("=7Q16sHxBBBxx4x4x")
DIRECT_ENDED: Final = struct.Struct(FLOW.format + "4x" + DIRECT_FLOW.format[1:])  # flow, carried

MAPS: Final = (
    "config",
    "enrolled",
    "pods_by_address",
    "handover",
    "flows",
    "in_use",
    "drops",
    "listeners",
    "client_sockets",
    "original_destination",
    "verdicts",
    "services",
    "direct_state",
    "direct",
    "ended",
    "direct_counts",
    "kubelet",
    "probes",
    "probe_ports",
    "probe_counts",
)


def pack_ip(address: str) -> bytes:
    """The 16 bytes of an address; IPv4 becomes IPv4-mapped."""
    if ":" in address:
        return socket.inet_pton(socket.AF_INET6, address)
    return _MAPPED_PREFIX + socket.inet_pton(socket.AF_INET, address)


def unpack_ip(ip: bytes) -> str:
    """The canonical text of 16 bytes; an IPv4-mapped address becomes IPv4."""
    if ip[:12] == _MAPPED_PREFIX:
        return socket.inet_ntop(socket.AF_INET, ip[12:])
    return socket.inet_ntop(socket.AF_INET6, ip)
