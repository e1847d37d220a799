"""The fields of an AuthorizationPolicy that a node can ask a connection for, and how their values are read.

Invariant: a value is read to what Istio means by it, or not at all; nothing raises.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

import msgspec

from nodeproxy.model.policy import ServiceAccountMatch, StringMatch

_MAX_PORT = 65535


class Field(msgspec.Struct, frozen=True):
    """A list of values.

    name: the field of `Match` that it becomes.  negative: the values are excluded.
    parse: a value and the policy's namespace → what the model has for it, None if it can't be read.
    """

    name: str
    parse: Callable[[str, str], object | None]
    negative: bool


def parse_text(text: str, _: str = "") -> StringMatch | None:
    """ "*" is any, "*x" a suffix, "x*" a prefix; a "*" elsewhere is itself.

    An empty value would match who proved no identity: Istio's validation refuses it.  No identity has anything but ASCII.
    """
    if not text or not text.isascii():
        return None
    if text == "*":
        return StringMatch(presence=True)
    if text.startswith("*"):
        return StringMatch(suffix=text[1:])
    if text.endswith("*"):
        return StringMatch(prefix=text[:-1])
    return StringMatch(exact=text)


def parse_block(text: str, _: str = "") -> str | None:
    """An address or a CIDR block, as a block without host bits; neither zones ("%eth0") nor netmasks in dots."""
    address, slash, bits = text.partition("/")
    if "%" in text or (slash and (not _is_number(bits) or (bits != "0" and bits.startswith("0")))):
        return None
    try:
        return str(ipaddress.ip_network(text, strict=False))
    except ValueError:
        return None


def parse_port(text: str, _: str = "") -> int | None:
    """A decimal number up to 65535."""
    digits = text.lstrip("0")
    if not _is_number(text) or len(digits) > len(str(_MAX_PORT)):
        return None
    port = int(digits or "0")
    return port if port <= _MAX_PORT else None


def parse_service_account(text: str, namespace: str) -> ServiceAccountMatch | None:
    """ "account", of the policy's `namespace`, or "namespace/account"; wildcards are not allowed."""
    first, slash, second = text.partition("/")
    where, account = (first, second) if slash else (namespace, text)
    if not where or not account or "/" in account or "*" in text or not text.isascii():
        return None
    return ServiceAccountMatch(where, account)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _pair(name: str, positive: str, negative: str, parse: Callable[[str, str], object | None]) -> dict[str, Field]:
    return {positive: Field(name, parse, False), negative: Field(f"not_{name}", parse, True)}


SOURCE_FIELDS: dict[str, Field] = {
    **_pair("principals", "principals", "notPrincipals", parse_text),
    **_pair("namespaces", "namespaces", "notNamespaces", parse_text),
    **_pair("service_accounts", "serviceAccounts", "notServiceAccounts", parse_service_account),
    **_pair("source_ips", "ipBlocks", "notIpBlocks", parse_block),
}
OPERATION_FIELDS: dict[str, Field] = _pair("destination_ports", "ports", "notPorts", parse_port)
CONDITIONS: dict[str, dict[str, Field]] = {
    key: _pair(name, "values", "notValues", parse)
    for key, name, parse in (
        ("source.ip", "source_ips", parse_block),
        ("source.namespace", "namespaces", parse_text),
        ("source.principal", "principals", parse_text),
        ("destination.ip", "destination_ips", parse_block),
        ("destination.port", "destination_ports", parse_port),
    )
}
# Istio has them, and they are of requests.
LAYER_7_FIELDS = frozenset(
    (
        *("hosts", "notHosts", "methods", "notMethods", "paths", "notPaths"),
        *("requestPrincipals", "notRequestPrincipals", "remoteIpBlocks", "notRemoteIpBlocks"),
    )
)
# Istio has them, and a match has nothing for them.
UNSUPPORTED_FIELDS = frozenset(("trustDomains", "notTrustDomains"))
