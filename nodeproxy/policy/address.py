"""IP addresses and CIDR blocks as integers, because a policy is asked for every connection and `ipaddress` objects cost ten
times more.

Invariant: an address is one integer whose bit 128 tells the family, so that an IPv4 block never holds an IPv6 address nor the
other way round.  IPv4-mapped IPv6 addresses are IPv4 everywhere (protocols of Istio ambient: "IPv4-mapped addresses are
canonicalised").
Knows nothing of policies, workloads or sockets in use.
"""

from __future__ import annotations

import ipaddress
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton

from nodeproxy.errors import ConfigError

_V6 = 1 << 128
_ALL = (1 << 129) - 1
_MAPPED_BITS = 96  # RFC 4291, section 2.5.5.2: ::ffff:0:0/96
_MAPPED = 0xFFFF


def canonical_ip(text: str) -> str:
    """`text` in `ipaddress`'s spelling, an IPv4-mapped address as IPv4, without a zone ("%eth0").

    Raises ValueError if it is no address.
    """
    if ":" not in text:
        try:
            # A tenth of what `ipaddress` takes, for nearly all addresses that come here.
            if inet_ntop(AF_INET, inet_pton(AF_INET, text)) == text:
                return text
        except (OSError, ValueError):
            pass  # told by `ipaddress`
        return str(ipaddress.IPv4Address(text))
    address = ipaddress.IPv6Address(text.partition("%")[0])
    return str(address.ipv4_mapped or address)


def ip_number(text: str) -> int:
    """The number of an address; -1, which no block holds, if `text` is none."""
    try:
        if ":" not in text:
            return int.from_bytes(inet_pton(AF_INET, text))
        number = int.from_bytes(inet_pton(AF_INET6, text.partition("%")[0]))
    except OSError:
        return -1
    return number & 0xFFFFFFFF if number >> 32 == _MAPPED else number | _V6


def parse_cidr(text: str) -> tuple[int, int]:
    """(network, mask) of "10.0.0.0/8", "2001:db8::/32" or a lone address; host bits are dropped.

    An address number `n` is inside if `n & mask == network`.  Raises ConfigError if `text` is no block.
    """
    try:
        block = ipaddress.ip_network(text, strict=False)
    except ValueError as exc:
        raise ConfigError(f"{text!r} is not a CIDR block ({exc}); write it like 10.0.0.0/8 or 2001:db8::/32") from exc
    number, bits = int(block.network_address), block.max_prefixlen - block.prefixlen
    if block.version == 6 and number >> 32 == _MAPPED and block.prefixlen >= _MAPPED_BITS:
        number &= 0xFFFFFFFF
    elif block.version == 6:
        number |= _V6
    return number, _ALL & ~((1 << bits) - 1)
