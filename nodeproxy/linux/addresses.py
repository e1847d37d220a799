"""Which addresses a pod has: asked of the kernel, because a mesh file may be wrong about it and the kernel is not."""

from __future__ import annotations

import ipaddress

from nodeproxy.errors import EnrolmentError
from nodeproxy.linux.netlink import netlink

_SCOPE_GLOBAL = 0  # RT_SCOPE_UNIVERSE of <linux/rtnetlink.h>


def pod_addresses(netns_fd: int) -> tuple[str, ...]:
    """Canonical text of the addresses of global scope, IPv4 first, in the kernel's order.

    Loopback and link-local ones are not among them.
    """
    with netlink(netns_fd, "asking for a pod's addresses") as route:
        found = [
            ipaddress.ip_address(message.get("IFA_LOCAL") or message.get("IFA_ADDRESS"))
            for message in route.get_addr()
            if message["scope"] == _SCOPE_GLOBAL
        ]
    if not found:
        raise EnrolmentError("the pod has no address yet; enrol it when its network is up")
    return tuple(str(address) for address in sorted(found, key=lambda address: address.version))
