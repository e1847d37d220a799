"""What lets the last leg keep the client's address, in each enrolled pod's own network namespace.

    net.ipv4.tcp_fwmark_accept = 1          the application's answers carry the mark of the SYN that they answer
    net.ipv4.fwmark_reflect = 1, ipv6 too   and so does the RST of a port where nobody listens: else connects time out [tried]
    ip rule fwmark 0x53a lookup 85           … and are routed by their own table
    ip route local default dev lo table 85   … back over lo to the proxy's socket, which owns the client's address there

Both families; no iptables.  Idempotent, and undone when the pod leaves.
"""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import Final

from nodeproxy.errors import KernelError
from nodeproxy.linux.netns import inside
from nodeproxy.linux.pod_socket import MARK_LAST_LEG
from nodeproxy.linux.rtnetlink import RouteNetlink

# A table of a pod's own.  Not 100 and up: istio-cni fills and empties 100, the CNI plug-in sbr takes those that follow.
TABLE: Final = 85
# After `local` (0), whose routes say what the pod's own addresses are, and before `main` (32766).
_RULE_PRIORITY: Final = 100
_LOOPBACK_INDEX: Final = 1  # lo is the first interface of every network namespace
_SYSCTLS: Final = Path("/proc/sys/net")
# (name, value while enrolled, the kernel's default to go back to)
_SETTINGS: Final = (
    ("ipv4/tcp_fwmark_accept", "1", "0"),
    ("ipv4/fwmark_reflect", "1", "0"),
    ("ipv6/fwmark_reflect", "1", "0"),
    # All steered connections of a pod have one destination, so TIME_WAIT uses its ports up; with RFC 7323 timestamps a port is
    # safely taken again after a second.  45,000 short connections that the client closes: 395 a second by default, 7,481 so.
    ("ipv4/tcp_tw_reuse", "1", "2"),
)
_PRESENT: Final = frozenset({errno.EEXIST})
_ABSENT: Final = frozenset({errno.ENOENT, errno.ESRCH})
_NO_IPV6: Final = frozenset({errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EACCES})
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)


def enable_last_leg(netns_fd: int) -> None:
    """Set all of it; what is set already stays."""
    with inside(netns_fd):
        for name, value, _ in _SETTINGS:
            _write(name, value)
        with RouteNetlink() as route:
            for family in _FAMILIES:
                _expect("routing a pod's last leg", family, _PRESENT, route.local_route(family, TABLE, _LOOPBACK_INDEX, add=True))
                rule = route.mark_rule(family, MARK_LAST_LEG, TABLE, _RULE_PRIORITY, add=True)
                _expect("routing a pod's last leg", family, _PRESENT, rule)


def disable_last_leg(netns_fd: int) -> None:
    """Take all of it away; what is not there is no error.

    Where there are no rules, nobody enabled it: the settings of such a namespace are its own, and stay.
    """
    found = False
    with inside(netns_fd):
        with RouteNetlink() as route:
            for family in _FAMILIES:
                rule = route.mark_rule(family, MARK_LAST_LEG, TABLE, _RULE_PRIORITY, add=False)
                found |= rule == 0
                _expect("undoing a pod's last leg", family, _ABSENT, rule)
                _expect("undoing a pod's last leg", family, _ABSENT, route.local_route(family, TABLE, _LOOPBACK_INDEX, add=False))
        if found:
            for name, _, value in _SETTINGS:
                _write(name, value)


def _expect(what: str, family: int, done: frozenset[int], number: int) -> None:
    """`done` are the errors that say it is so already.  A pod without IPv6 needs nothing of it."""
    if number and number not in done and not (family == socket.AF_INET6 and number in _NO_IPV6):
        raise KernelError(f"{what}: {os.strerror(number)}", number)


def _write(name: str, value: str) -> None:
    """A sysctl of the namespace that this thread is in."""
    try:
        (_SYSCTLS / name).write_text(value, encoding="ascii")
    except FileNotFoundError:
        if not name.startswith("ipv6/"):
            raise KernelError(f"net/{name}: this kernel does not have it", errno.ENOENT) from None
        # booted with ipv6.disable=1
    except OSError as error:
        raise KernelError(
            f"net/{name}: {error.strerror}; /proc/sys must be writable (in a container: privileged, or its own mount of /proc)",
            error.errno or 0,
        ) from error
