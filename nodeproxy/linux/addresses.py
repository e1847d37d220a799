"""Which addresses a pod has: asked of the kernel, because a mesh file may be wrong about it and the kernel is not."""

from __future__ import annotations

import errno
import socket
from typing import Final

from nodeproxy.errors import EnrolmentError
from nodeproxy.linux.netns import inside
from nodeproxy.linux.rtnetlink import RouteNetlink


def pod_addresses(netns_fd: int) -> tuple[str, ...]:
    """Canonical text of the addresses of global scope, IPv4 first, in the kernel's order.

    Loopback and link-local ones are not among them.
    """
    with inside(netns_fd):
        route = RouteNetlink()
    with route:
        found = route.addresses()
    if not found:
        raise EnrolmentError("the pod has no address yet; enrol it when its network is up")
    return tuple(map(str, found))


_RTMGRP_ADDRESSES: Final = 0x10 | 0x100  # RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR of <linux/rtnetlink.h>
# That something changed is all that is asked: what does not fit is told by an error.
_EVENT_BYTES: Final = 4096
_MAX_EVENTS: Final = 64


def address_events(netns_fd: int) -> socket.socket:
    """A socket that is readable when the addresses of that namespace have changed; `forget_events` empties it."""
    with inside(netns_fd):
        events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    try:
        events.setblocking(False)
        events.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _EVENT_BYTES)
        events.bind((0, _RTMGRP_ADDRESSES))
    except BaseException:
        events.close()
        raise
    return events


def forget_events(events: socket.socket) -> None:
    """Take what waits, as far as it is not endless."""
    for _ in range(_MAX_EVENTS):
        try:
            events.recv(_EVENT_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # there were more than it could hold
                raise
