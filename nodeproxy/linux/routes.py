"""What lets the last leg keep the client's address, in each enrolled pod's own network namespace.

    net.ipv4.tcp_fwmark_accept = 1          the application's answers carry the mark of the SYN that they answer
    net.ipv4.fwmark_reflect = 1, ipv6 too   and so does the RST of a port where nobody listens: else connects time out [tried]
    ip rule fwmark 0x53a lookup 100         … and are routed by their own table
    ip route local default dev lo table 100 … back over lo to the proxy's socket, which owns the client's address there

Both families; no iptables.  Idempotent, and undone when the pod leaves.
"""

from __future__ import annotations

import errno
import socket
from pathlib import Path
from typing import Any, Final

from nodeproxy.errors import KernelError
from nodeproxy.linux.iproute import NetlinkError
from nodeproxy.linux.netlink import netlink
from nodeproxy.linux.pod_socket import MARK_LAST_LEG

TABLE: Final = 100
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
_FAMILIES: Final = ((socket.AF_INET, "0.0.0.0/0"), (socket.AF_INET6, "::/0"))


def enable_last_leg(netns_fd: int) -> None:
    """Set all of it; what is set already stays."""
    with netlink(netns_fd, "routing a pod's last leg") as route:
        for name, value, _ in _SETTINGS:
            _write(name, value)
        for family, everything in _FAMILIES:
            _ask(_PRESENT, route.route, "add", _route(family, everything))
            _ask(_PRESENT, route.rule, "add", _rule(family))


def disable_last_leg(netns_fd: int) -> None:
    """Take all of it away; what is not there is no error."""
    with netlink(netns_fd, "undoing a pod's last leg") as route:
        for family, everything in _FAMILIES:
            _ask(_ABSENT, route.rule, "del", _rule(family))
            _ask(_ABSENT, route.route, "del", _route(family, everything))
        for name, _, value in _SETTINGS:
            _write(name, value)


def has_last_leg(netns_fd: int) -> bool:
    """Whether a rule of it is there: so whatever an agent set there, and nobody else's."""
    with netlink(netns_fd, "looking for a pod's last leg") as route:
        rules = [rule for family, _ in _FAMILIES for rule in route.get_rules(family=family)]
        return any(rule.get("fwmark") == MARK_LAST_LEG and rule.get("table") == TABLE for rule in rules)


def _route(family: int, everything: str) -> dict[str, Any]:
    return {"family": family, "type": "local", "dst": everything, "oif": _LOOPBACK_INDEX, "table": TABLE, "scope": "host"}


def _rule(family: int) -> dict[str, Any]:
    return {"family": family, "fwmark": MARK_LAST_LEG, "table": TABLE, "priority": _RULE_PRIORITY}


def _ask(done: frozenset[int], call: Any, command: str, arguments: dict[str, Any]) -> None:
    """Change something; `done` are the errors that say it is so already.  A pod without IPv6 needs nothing of it."""
    try:
        call(command, **arguments)
    except NetlinkError as error:
        if error.code not in done and not (arguments["family"] == socket.AF_INET6 and error.code in _NO_IPV6):
            raise


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
