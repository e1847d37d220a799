"""What captured frames are, so far as tests ask: TCP segments, and who began a connection in plain."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_TCP = 6
_SYN, _ACK = 0x02, 0x10


class Segment(NamedTuple):
    """One TCP segment of IPv4 or IPv6."""

    source: str
    source_port: int
    destination: str
    destination_port: int
    flags: int
    payload: bytes

    @property
    def opens(self) -> bool:
        """Whether it is the first of a connection."""
        return self.flags & (_SYN | _ACK) == _SYN


def segments(frames: Iterable[bytes]) -> Iterator[Segment]:
    """Those of Ethernet frames; of IPv6 without extension headers, which nothing here sends."""
    for frame in frames:
        kind = frame[12:14]
        if kind == b"\x08\x00" and frame[23] == _TCP:
            begin, source, destination = 14 + (frame[14] & 15) * 4, frame[26:30], frame[30:34]
            end = 14 + int.from_bytes(frame[16:18], "big")
        elif kind == b"\x86\xdd" and frame[20] == _TCP:
            begin, source, destination = 54, frame[22:38], frame[38:54]
            end = 54 + int.from_bytes(frame[18:20], "big")
        else:
            continue
        source_port, destination_port = struct.unpack_from(">HH", frame, begin)
        payload = frame[begin + (frame[begin + 12] >> 4) * 4 : end]
        names = (str(ipaddress.ip_address(source)), source_port, str(ipaddress.ip_address(destination)), destination_port)
        yield Segment(*names, frame[begin + 13], payload)


def opened(frames: Iterable[bytes], port: int) -> list[Segment]:
    """The beginnings of connections to a port, and so of plain ones if it is a port of pods'."""
    return [each for each in segments(frames) if each.opens and each.destination_port == port]
