"""How an address and a port are written together."""

from __future__ import annotations


def join_address(ip: str, port: int) -> str:
    """ "ip:port", or "[ip]:port" for IPv6 (RFC 3986, section 3.2.2)."""
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"
