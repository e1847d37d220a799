from __future__ import annotations

import socket
import struct

import pytest

from nodeproxy.lab.capture import Capture
from nodeproxy.lab.demo_wire import are_tls, readable_packets, tcp_bytes

HELLO = b"\x16\x03\x01\x00\x05hello"


class Given(Capture):
    """A capture of given frames: parsing them needs no network."""

    def __init__(self, *frames: bytes) -> None:
        self.frames = frames

    def kept(self) -> tuple[bytes, ...]:
        return self.frames


def frame(payload: bytes, ports: tuple[int, int], *, v6: bool = False, options: bytes = b"", length: bool = True) -> bytes:
    tcp = struct.pack("!HHIIBBHHH", *ports, 0, 0, (20 + len(options)) // 4 << 4, 0x18, 0, 0, 0) + options + payload
    size = len(tcp) if length else 0
    if v6:
        ip = struct.pack("!IHBB", 6 << 28, size, socket.IPPROTO_TCP, 64) + b"\xfd" * 16 + b"\xfe" * 16
        return bytes(12) + b"\x86\xdd" + ip + tcp
    ip = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + size if length else 0, 0, 0, 64, socket.IPPROTO_TCP, 0, b"\x0a" * 4, b"\x0b" * 4
    )
    return bytes(12) + b"\x08\x00" + ip + tcp


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize("length", [True, False])
def test_payload_is_counted_by_port(v6: bool, length: bool):
    capture = Given(
        frame(b"GET / HTTP/1.0", (40000, 8080), v6=v6, length=length, options=bytes(12)),
        frame(HELLO, (40001, 15008), v6=v6, length=length),
        frame(b"", (15008, 40001), v6=v6),
    )
    assert tcp_bytes(capture) == (len(HELLO), 14)
    assert readable_packets(capture, b"GET / HTTP") == 1
    assert are_tls(capture)


def test_padding_of_short_frames_is_no_payload():
    assert tcp_bytes(Given(frame(b"", (1, 2)) + bytes(6))) == (0, 0)


def test_what_is_no_tcp_is_passed_over():
    arp = bytes(12) + b"\x08\x06" + bytes(28)
    udp = frame(b"x", (1, 2)).replace(bytes([64, socket.IPPROTO_TCP]), bytes([64, socket.IPPROTO_UDP]))
    assert tcp_bytes(Given(arp, udp)) == (0, 0)


def test_a_tunnel_is_tls_only_if_both_directions_begin_so():
    there, back = frame(HELLO, (40001, 15008)), frame(b"PRI * HTTP/2.0", (15008, 40001))
    assert are_tls(Given(there, frame(b"\x17\x03\x03anything", (40001, 15008))))
    assert not are_tls(Given(there, back))
