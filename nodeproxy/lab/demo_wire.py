"""What a capture between the demo's nodes holds: application bytes that anyone could read, and TLS bytes that nobody can.

Knows Ethernet, IP and TCP headers as far as the payload; nothing of TLS but the type in front of a record.
"""

from __future__ import annotations

from typing import NamedTuple

from nodeproxy.lab.capture import Capture
from nodeproxy.model.workload import HBONE_PORT

_ETHERNET_BYTES = 14
_IPV6_BYTES = 40
_TCP = 6
# RFC 8446, section 5.1: a record's type 22 is handshake, and its legacy version 3.1 or 3.3.
_TLS_HANDSHAKE = (b"\x16\x03\x01", b"\x16\x03\x03")
_TYPE_IPV4, _TYPE_IPV6 = b"\x08\x00", b"\x86\xdd"


class _Segment(NamedTuple):
    stream: bytes
    ports: tuple[int, int]
    payload: bytes


def readable_packets(capture: Capture, text: bytes) -> int:
    """How many packets have `text` in them."""
    return sum(text in packet for packet in capture.kept())


def tcp_bytes(capture: Capture) -> tuple[int, int]:
    """Bytes of TCP payload: those of tunnels (port 15008), and all others."""
    tunnels = others = 0
    for packet in capture.kept():
        segment = _segment(packet)
        if segment is not None and HBONE_PORT in segment.ports:
            tunnels += len(segment.payload)
        elif segment is not None:
            others += len(segment.payload)
    return tunnels, others


def are_tls(capture: Capture) -> bool:
    """Whether each direction of each tunnel begins with a TLS handshake; the capture must have seen the tunnels' beginning."""
    streams: dict[bytes, bytes] = {}
    for packet in capture.kept():
        segment = _segment(packet)
        if segment is not None and segment.payload and HBONE_PORT in segment.ports:
            streams.setdefault(segment.stream, segment.payload)
    return all(first.startswith(_TLS_HANDSHAKE) for first in streams.values())


def _segment(packet: bytes) -> _Segment | None:
    """The TCP segment in a frame; None if it has none.  IPv6 extension headers do not occur here."""
    kind, ip = packet[12:_ETHERNET_BYTES], packet[_ETHERNET_BYTES:]
    if kind == _TYPE_IPV4 and ip[9] == _TCP:
        header, total, addresses = (ip[0] & 0x0F) * 4, int.from_bytes(ip[2:4]), ip[12:20]
    elif kind == _TYPE_IPV6 and ip[6] == _TCP:
        header, total, addresses = _IPV6_BYTES, _IPV6_BYTES + int.from_bytes(ip[4:6]), ip[8:40]
    else:
        return None
    # RFC 2675, as the kernel does for segments that offloading makes: a length of 0 means the rest of the frame.
    tcp = ip[header : total if total > header else len(ip)]
    ports = int.from_bytes(tcp[0:2]), int.from_bytes(tcp[2:4])
    return _Segment(addresses + tcp[0:4], ports, tcp[(tcp[12] >> 4) * 4 :])
