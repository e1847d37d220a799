"""The PROXY protocol's version 2 header that application tunnels ask for (haproxy's proxy-protocol.txt, section 2.2).

Invariant: one header, in network byte order, before the first byte of the application's.
"""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address
from struct import pack

_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_VERSION_2_PROXY = 0x21
_TCP_IPV4, _TCP_IPV6 = 0x11, 0x21
# Istio's: the source's SPIFFE ID; in the range for applications (0xE0 is its end, section 2.2.7).
TLV_SPIFFE_ID = 0xD0
MAX_TLV_BYTES = 2048  # SPIFFE-ID, section 2.3: "MUST support SPIFFE URIs up to and including 2048 bytes in length"


def encode_proxy_v2(source: tuple[str, int], destination: tuple[str, int], spiffe_id: str = "") -> bytes:
    """The header for a TCP connection; without `spiffe_id` no TLV.  Of two families both addresses are written as IPv6."""
    source_ip, destination_ip = ip_address(source[0]), ip_address(destination[0])
    ports = pack(">HH", source[1], destination[1])
    if source_ip.version == destination_ip.version:
        family = _TCP_IPV4 if source_ip.version == 4 else _TCP_IPV6
        addresses = source_ip.packed + destination_ip.packed + ports
    else:
        family = _TCP_IPV6
        addresses = _as_ipv6(source[0]).packed + _as_ipv6(destination[0]).packed + ports
    identity = spiffe_id.encode()
    if len(identity) > MAX_TLV_BYTES:
        raise ValueError(f"a SPIFFE ID of {len(identity)} bytes is longer than {MAX_TLV_BYTES}")
    tlv = pack(">BH", TLV_SPIFFE_ID, len(identity)) + identity if identity else b""
    return _SIGNATURE + pack(">BBH", _VERSION_2_PROXY, family, len(addresses) + len(tlv)) + addresses + tlv


def _as_ipv6(text: str) -> IPv6Address:
    address = ip_address(text)
    return address if isinstance(address, IPv6Address) else IPv6Address(f"::ffff:{address}")
