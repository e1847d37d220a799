"""The listeners of a worker in a pod: made by the agent, reached through sk_lookup only.

They are bound to an address that no packet can have, so neither loopback nor the pod's own address leads to them; the
kernel's look-up is told by eBPF which connection is theirs.  Their ports are the proxy's own where free, which keeps
applications from mistaking those for usable; any other port serves as well.
"""

from __future__ import annotations

import errno
import socket
from typing import Final, NamedTuple

from nodeproxy.errors import EnrolmentError
from nodeproxy.linux.netns import inside
from nodeproxy.linux.pod_socket import MARK_OUTBOUND
from nodeproxy.model.workload import HBONE_PORT, OUTBOUND_PORT, PLAINTEXT_PORT

_NOWHERE: Final = "192.0.0.8"  # RFC 7600: the IPv4 dummy address
# Mapped, because a socket bound to an IPv6 address proper is IPv6-only for ever, and eBPF may not hand it IPv4 [tried].
_NOWHERE_DUAL: Final = f"::ffff:{_NOWHERE}"
_IP_FREEBIND: Final = 15  # <linux/in.h>
# As net.core.somaxconn's default: the kernel takes the smaller of both.
_BACKLOG: Final = 4096


class PodListeners(NamedTuple):
    """One worker's listeners in one pod, in the order of `kernel.abi.Role`."""

    outbound: socket.socket
    hbone: socket.socket
    plaintext: socket.socket

    def close(self) -> None:
        """Close all three."""
        for listener in self:
            listener.close()


def open_listeners(netns_fd: int) -> PodListeners:
    """Make the listeners of one worker slot.

    Dual-stack, so IPv4 peers look like ::ffff:a.b.c.d; plain IPv4 where IPv6 is off.
    """
    made: list[socket.socket] = []
    try:
        with inside(netns_fd):
            for port in (OUTBOUND_PORT, HBONE_PORT, PLAINTEXT_PORT):
                made.append(_listener(port))
    except OSError as error:
        for listener in made:
            listener.close()
        raise EnrolmentError(f"the pod's listeners cannot be made: {error.strerror}") from error
    return PodListeners(*made)


def _listener(port: int) -> socket.socket:
    try:
        listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, socket.IPPROTO_TCP)
        nowhere = _NOWHERE_DUAL
    except OSError as error:
        if error.errno != errno.EAFNOSUPPORT:
            raise
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, socket.IPPROTO_TCP)
        nowhere = _NOWHERE
    try:
        _prepare(listener)
        try:
            listener.bind((nowhere, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:  # the application has the port for all addresses
                raise
            listener.bind((nowhere, 0))
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _prepare(listener: socket.socket) -> None:
    """What accepted connections inherit, and what lets several workers have a port each."""
    listener.setsockopt(
        socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
    )  # accepted sockets have it too: the application may bind their ports
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK_OUTBOUND)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if listener.family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
