"""Sockets of a pod's network namespace, asked about and destroyed by netlink (sock_diag(7)), each by its cookie.

The cookie is the one that eBPF gives (bpf_get_socket_cookie), so that another connection of the same addresses is never taken for it.
IPv4-mapped addresses are given as IPv4, whatever the socket's family.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class TcpSocket(NamedTuple):
    """One end of a TCP connection: (address, port) here and there.  cookie: 0 if any connection of these addresses is meant."""

    local: tuple[str, int]
    remote: tuple[str, int]
    cookie: int = 0


class TcpBytes(NamedTuple):
    """Payload that the socket sent (acknowledged) and received so far."""

    sent: int
    received: int


def destroy(netns_fd: int, connection: TcpSocket) -> bool:
    """End it with a reset at once (SOCK_DESTROY); whether there was one.  It is gone afterwards, or `KernelError` says why not."""
    raise NotImplementedError


def bytes_of(netns_fd: int, connections: Iterable[TcpSocket]) -> dict[int, TcpBytes]:
    """Bytes so far by cookie, of those that are still there; every connection must have its cookie."""
    raise NotImplementedError


def can_destroy() -> str:
    """Why this kernel cannot destroy sockets (CONFIG_INET_DIAG_DESTROY), or "": tried on a pair over the node's loopback."""
    raise NotImplementedError
