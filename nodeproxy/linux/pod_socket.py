"""The sockets that a worker makes in a pod's network namespace.

Call where `netns.inside(…)` or a `Visitor` is in that namespace; a socket keeps the namespace that it was made in.
`socket.SocketType` and not its subclass `socket.socket`: that is Python's and costs 2 µs and 60 bytes a connection.
The marks steer answers through the pod's routing table; they exempt nothing from steering (the worker's cgroup does).
"""

from __future__ import annotations

import socket
import struct
from typing import Final

# Plain numbers: enumerations are slow to combine and to convert, and this is done for each connection.
_STREAM: Final = int(socket.SOCK_STREAM) | int(socket.SOCK_NONBLOCK)
_INET6: Final = int(socket.AF_INET6)

# Every socket of the proxy's that leaves the pod carries Istio's mark (1337), so that operators recognise it.
MARK_OUTBOUND: Final = 0x539
# Another one for the last leg: a socket that leaves the pod would be routed to lo with it.
MARK_LAST_LEG: Final = 0x53A

_IP_TRANSPARENT: Final = 19  # <linux/in.h>; not in Python's socket module before 3.13
_IPV6_TRANSPARENT: Final = 75  # <linux/in6.h>
_SO_ORIGINAL_DST: Final = 80  # <linux/netfilter_ipv4.h>, and IP6T_SO_ORIGINAL_DST of <linux/netfilter_ipv6/ip6_tables.h>
_SOCKADDR_IN: Final = struct.Struct("!2xH4s8x")
_SOCKADDR_IN6: Final = struct.Struct("!2xH4x16s4x")
_IP_BIND_ADDRESS_NO_PORT: Final = (
    24  # the port is chosen at connect(), by the whole 4-tuple: else a client's address has but 28,000
)


def outbound_socket(family: int) -> socket.SocketType:
    """A TCP socket towards other pods, nodes and the world."""
    made = socket.SocketType(family, _STREAM, socket.IPPROTO_TCP)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK_OUTBOUND)
    return made


def last_leg_socket(family: int, client_ip: str) -> socket.SocketType:
    """A TCP socket to the application in this pod that has the client's address; `family` is the one of `client_ip`."""
    made = socket.SocketType(family, _STREAM, socket.IPPROTO_TCP)
    try:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK_LAST_LEG)
        # Without it the application could not bind a port that one of these happens to have.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == _INET6:
            made.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
        else:
            made.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)
        made.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
        made.bind((client_ip, 0))
    except OSError:
        made.close()
        raise
    return made


def redirected_from(sock: socket.SocketType, family: int) -> tuple[str, int] | None:
    """Where an accepted connection was sent before a rule of netfilter's in this pod redirected it; None: nowhere else is known.

    family: of its addresses, also where the socket is of both.  It is the pod's own word: who has NET_ADMIN there makes rules.
    """
    try:
        if family == _INET6:
            port, packed = _SOCKADDR_IN6.unpack(sock.getsockopt(socket.IPPROTO_IPV6, _SO_ORIGINAL_DST, _SOCKADDR_IN6.size))
        else:
            port, packed = _SOCKADDR_IN.unpack(sock.getsockopt(socket.IPPROTO_IP, _SO_ORIGINAL_DST, _SOCKADDR_IN.size))
    except OSError:  # not tracked, or a kernel without netfilter
        return None
    return socket.inet_ntop(family, packed), port
