"""What single fields of the wire's messages must be, for `decode`: addresses, ports, names, enumerations.

Invariant: a value that is not understood is a ResourceError and never a default, for a default is a guess about who may do what.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from socket import AF_INET, AF_INET6, inet_ntop
from typing import TypeVar

from nodeproxy.errors import ResourceError
from nodeproxy.xds.names import MAX_NAME_BYTES

_T = TypeVar("_T")

MAX_PORT = 65535
_MAPPED = bytes(10) + b"\xff\xff"  # RFC 4291, section 2.5.5.2
_SHOWN_CHARACTERS = 80


def choice(kind: str, value: int, known: Mapping[int, _T]) -> _T:
    """The meaning of an enumeration's number."""
    try:
        return known[value]
    except KeyError:
        raise ResourceError("unknown_value", f"{kind} has the value {value}, which this version does not know") from None


def ip_text(raw: bytes) -> str:
    """An address of 4 or 16 bytes as text in canonical form, an IPv4-mapped one as IPv4."""
    if len(raw) == 4:
        return inet_ntop(AF_INET, raw)
    if len(raw) != 16:
        raise ResourceError("address", f"an address has {len(raw)} bytes instead of 4 or 16")
    if raw.startswith(_MAPPED):
        return inet_ntop(AF_INET, raw[12:])
    text = inet_ntop(AF_INET6, raw)
    return str(ipaddress.IPv6Address(raw)) if "." in text else text  # the two spell ::102:304 differently


def cidr_text(raw: bytes, length: int) -> str:
    """A block of addresses, "10.0.0.0/8"."""
    if len(raw) == 16 and raw.startswith(_MAPPED) and length >= 96:
        length -= 96
        raw = raw[12:]
    if length > len(raw) * 8:
        raise ResourceError("address", f"a block of addresses of {len(raw)} bytes has a prefix of {length} bits")
    # An IPv4-mapped block that is wider than all of IPv4 stays as it is: it is no block of IPv4.
    return f"{inet_ntop(AF_INET6, raw) if len(raw) == 16 else ip_text(raw)}/{length}"


def port(value: int) -> int:
    """A port's number, 0 among them."""
    if value > MAX_PORT:
        raise ResourceError("port", f"{value} is no port: they end at {MAX_PORT}")
    return value


def name(kind: str, text: str) -> str:
    """A name that must be there and fit into the store's keys."""
    if not text:
        raise ResourceError("name", f"{kind} is empty")
    return bounded(kind, text)


def bounded(kind: str, text: str, limit: int = MAX_NAME_BYTES) -> str:
    """A name that may be empty."""
    if len(text) > limit // 4 and len(text.encode()) > limit:
        raise ResourceError("name", f"{kind} {text[:_SHOWN_CHARACTERS]!r}… has more than {limit} bytes")
    return text


def segment(kind: str, text: str) -> str:
    """A part of an identity, or of a key, that is separated by slashes."""
    if "/" in text:
        raise ResourceError("name", f"{kind} {text[:_SHOWN_CHARACTERS]!r} has a slash")
    return bounded(kind, text)
