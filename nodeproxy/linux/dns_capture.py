"""Whether rules in a pod redirect what it asks of DNS to a proxy there, as istio-cni's capture does.

Rules can be read in several ways of several kernels' and tools', so it is tried: a datagram to port 53 of an address that is
nobody's, which the first router drops, arrives at the proxy's port or does not.  What does not arrive at once counts as not
redirected, so that a busy node may miss it, and no pod waits.
"""

from __future__ import annotations

import os
import socket
from typing import Final

from nodeproxy.linux.netns import inside

# Where Istio's node proxies answer.
_PROXY_PORT: Final = 15053
# The proxy's address, and one for documentation: RFC 5737, section 3, and RFC 3849.
_FAMILIES: Final = ((socket.AF_INET, "127.0.0.1", "192.0.2.53"), (socket.AF_INET6, "::1", "2001:db8::53"))


def is_dns_captured(netns_fd: int) -> bool:
    """Whether what is asked in this network namespace, by either family, goes to the proxy's port."""
    return any(_is_redirected(netns_fd, family, proxy, nobody) for family, proxy, nobody in _FAMILIES)


def _is_redirected(netns_fd: int, family: int, proxy: str, nobody: str) -> bool:
    question = os.urandom(16)  # the pod may say something to that port itself
    try:
        with _socket_in(netns_fd, family) as answering, _socket_in(netns_fd, family) as asking:
            answering.setblocking(False)
            answering.bind((proxy, _PROXY_PORT))
            if family == socket.AF_INET:
                asking.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
            else:
                asking.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 1)
            asking.sendto(question, (nobody, 53))
            return answering.recv(16) == question
    except OSError:
        return False  # nothing came; or somebody answers there; or the pod has no such route


def _socket_in(netns_fd: int, family: int) -> socket.socket:
    with inside(netns_fd):
        return socket.socket(family, socket.SOCK_DGRAM)
