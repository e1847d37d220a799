"""Which addresses a pod has: asked of the kernel, because a mesh file may be wrong about it and the kernel is not."""

from __future__ import annotations

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
