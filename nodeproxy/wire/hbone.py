"""HBONE's requests and answers as header blocks, and what a CONNECT asks for.

Invariant: a block built here is stateless HPACK: it may be kept and sent on any connection, and the prefix of a destination
joined to the suffix of one connection is a block too.  Whether a CONNECT is granted is not known here.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import NamedTuple

from nodeproxy.model.reason import Reason, Refusal
from nodeproxy.wire.hpack_static import encode_block, encode_name, encode_unindexed
from nodeproxy.wire.stream import Headers

MAX_AUTHORITY_BYTES = 260  # a name of 253 (RFC 1035, section 2.3.4), a colon and five digits
MAX_HOST_BYTES = 253
# Labels as Kubernetes and DNS have them in the wild, so with underscores (SRV names).
_HOST = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?:\.(?!-)[a-z0-9_-]{1,63})*\.?")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_AUTHORITY = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^\[\]:]+)):(?P<port>[0-9]{1,5})")
# RFC 7239, section 4; only the first element, and only a name without a port is of use.
_FORWARDED_HOST = re.compile(
    r'\A(?:[^,"]|"[^"]*")*?(?:\A|;)[ \t]*host="?(?P<host>[A-Za-z0-9._-]{1,253})"?[ \t]*(?:[;,]|\Z)', re.IGNORECASE
)
_FORWARDED_NAME = encode_name(b"forwarded")
_TRACEPARENT_NAME = encode_name(b"traceparent")
_LAST_LABEL_IS_NUMBER = re.compile(r"(?:.*\.)?[0-9]+\.?")


class Authority(NamedTuple):
    """Where a CONNECT wants to go; `host` is a canonical address or a name in lower case without its final dot."""

    host: str
    port: int
    is_ip: bool


class ConnectRequest(NamedTuple):
    """A CONNECT, "" for what it does not carry."""

    authority: str
    host: str
    port: int
    is_ip: bool
    baggage: str = ""
    forwarded: str = ""
    traceparent: str = ""
    network: str = ""  # x-forwarded-network, of double HBONE

    @property
    def forwarded_host(self) -> str:
        """The name that the client's application asked for: `host` of `forwarded`, "" if that names none."""
        match = _FORWARDED_HOST.search(self.forwarded)
        return match["host"].lower() if match else ""


def connect_prefix(authority: str, baggage: str) -> bytes:
    """The part of a CONNECT's block that all connections of one source to one destination share."""
    headers = [(b":method", b"CONNECT"), (b":authority", authority.encode())]
    if baggage:
        headers.append((b"baggage", baggage.encode()))
    return encode_block(headers)


def connect_suffix(forwarded: str, traceparent: str) -> bytes:
    """The part that is one connection's own."""
    own = encode_unindexed(_FORWARDED_NAME, forwarded.encode()) if forwarded else b""
    return own + encode_unindexed(_TRACEPARENT_NAME, traceparent.encode()) if traceparent else own


def connect_block(
    authority: str, *, baggage: str = "", forwarded: str = "", traceparent: str = "", extra: tuple[tuple[bytes, bytes], ...] = ()
) -> bytes:
    """A whole CONNECT."""
    return connect_prefix(authority, baggage) + connect_suffix(forwarded, traceparent) + encode_block(extra)


def ok_block(baggage: str = "") -> bytes:
    """200, with the server's own baggage."""
    headers = [(b":status", b"200")]
    if baggage:
        headers.append((b"baggage", baggage.encode()))
    return encode_block(headers)


def status_block(code: int) -> bytes:
    """An answer that is its status alone."""
    return encode_block([(b":status", b"%d" % code)])


def forwarded_for(address: str, host: str = "") -> str:
    """The value of `forwarded` for a source "ip:port" or "[ip]:port".

    RFC 7239, section 6: "an IPv6 address is always enclosed in square brackets", and a value with a colon or brackets must be
    quoted.
    """
    return f'for="{address}";host={host}' if host else f'for="{address}"'


# A server's streams go to few places; no argument is longer than MAX_AUTHORITY_BYTES.
@lru_cache(maxsize=1024)
def _parse_authority(text: str) -> Authority | None:
    match = _AUTHORITY.fullmatch(text)
    if match is None or not _PORT.fullmatch(match["port"]) or int(match["port"]) > 65535:
        return None
    port = int(match["port"])
    if match["v6"] is not None or _LAST_LABEL_IS_NUMBER.fullmatch(match["host"]):
        # A name whose last label is a number is an address or nothing (WHATWG URL, "ends in a number"): never a name to resolve.
        address = _address(match["v6"] or match["host"], 6 if match["v6"] else 4)
        return None if address is None else Authority(address, port, True)
    host = match["host"].lower()
    if len(host) > MAX_HOST_BYTES or not _HOST.fullmatch(host):
        return None
    return Authority(host.removesuffix("."), port, False)


def parse_authority(text: str) -> Authority | None:
    """`ip:port`, `[v6]:port` or `host:port`, strictly; None for anything else.  IPv4-mapped addresses become IPv4."""
    return _parse_authority(text) if len(text) <= MAX_AUTHORITY_BYTES else None


def connect_key(headers: Headers) -> tuple[bytes, ...]:
    """What of a request decides what it asks for: two with equal keys differ in what is one connection's own alone."""
    fields = dict(reversed(headers))  # of equal names the first
    host = b""
    forwarded = fields.get(b"forwarded", b"")
    if forwarded.lower().find(b"host=") >= 0:  # `in` costs ten times as much
        match = _FORWARDED_HOST.search(forwarded.decode("utf-8", "replace"))
        host = match["host"].lower().encode() if match else b""
    return fields.get(b":method", b""), fields.get(b":authority", b""), fields.get(b"baggage", b""), host


def parse_connect(headers: Headers) -> ConnectRequest | Refusal:
    """What a well-formed request (the codec has seen to that) asks for; a refusal is answered by 400."""
    fields = dict(reversed(headers))  # of equal names the first
    if fields.get(b":method") != b"CONNECT":
        method = fields.get(b":method", b"")[:32].decode("ascii", "backslashreplace")
        return Refusal(Reason.NOT_CONNECT, f"the peer sent {method} to the HBONE port, which takes CONNECT alone; is it a proxy?")
    text = fields.get(b":authority", b"")[: MAX_AUTHORITY_BYTES + 1].decode("ascii", "backslashreplace")
    authority = parse_authority(text)
    if authority is None:
        return Refusal(Reason.BAD_AUTHORITY, f"the peer asked for {text!r}, which is not ip:port, [ip]:port or host:port")
    return ConnectRequest(
        text,
        *authority,
        _text(fields, b"baggage"),
        _text(fields, b"forwarded"),
        _text(fields, b"traceparent"),
        _text(fields, b"x-forwarded-network"),
    )


def _text(fields: dict[bytes, bytes], name: bytes) -> str:
    return fields.get(name, b"").decode("utf-8", "replace")


def _address(text: str, version: int) -> str | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if address.version != version:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)
