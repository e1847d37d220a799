"""The few questions of rtnetlink(7) that a pod's enrolment asks: addresses, one route and one rule for each family.

By hand, because pyroute2 takes 3.6 ms for them, most of what an enrolment costs, and this 0.1 [measured]; the lab, which builds
nodes, has pyroute2.  Numbers are of <linux/netlink.h>, <linux/rtnetlink.h> and <linux/fib_rules.h>.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from types import TracebackType
from typing import Final

from nodeproxy.errors import KernelError

_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_NLM_F_REQUEST: Final = 0x1
_NLM_F_ACK: Final = 0x4
_NLM_F_DUMP: Final = 0x300
_NLM_F_EXCL: Final = 0x200
_NLM_F_CREATE: Final = 0x400
_RTM_NEWADDR: Final = 20
_RTM_GETADDR: Final = 22
_RTM_NEWROUTE: Final = 24
_RTM_DELROUTE: Final = 25
_RTM_NEWRULE: Final = 32
_RTM_DELRULE: Final = 33
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_RTA_OIF: Final = 4
_RTA_TABLE: Final = 15
_FRA_PRIORITY: Final = 6
_FRA_FWMARK: Final = 10
_FRA_TABLE: Final = 15
_RT_SCOPE_UNIVERSE: Final = 0
_RT_SCOPE_HOST: Final = 254
_RTPROT_STATIC: Final = 4
_RTN_LOCAL: Final = 2
_FR_ACT_TO_TBL: Final = 1

_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_ERROR: Final = struct.Struct("=i")  # struct nlmsgerr begins with it
# struct ifaddrmsg: family, prefix length, flags, scope, interface
_ADDRESS: Final = struct.Struct("=BBBBI")
# struct rtmsg: family, lengths of destination and source, TOS, table, protocol, scope, type, flags
_ROUTE: Final = struct.Struct("=BBBBBBBBI")
# struct fib_rule_hdr: family, lengths of destination and source, TOS, table, two reserved, action, flags
_RULE: Final = struct.Struct("=BBBBBBBBI")
_ATTRIBUTE: Final = struct.Struct("=HH")  # struct rtattr: length, type
_NUMBER: Final = struct.Struct("=HHI")  # a whole attribute whose value is a number
_RECEIVE_BYTES: Final = 65536


class RouteNetlink:
    """A socket of the network namespace that the calling thread is in, which it keeps.  Use as a context manager."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)

    def __enter__(self) -> RouteNetlink:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._socket.close()

    def addresses(self) -> list[IPv4Address | IPv6Address]:
        """The addresses of global scope of all interfaces, IPv4 first, in the kernel's order.  Raises KernelError."""
        found = []
        for body in self._dump(_RTM_GETADDR, _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
            _, _, _, scope, _ = _ADDRESS.unpack_from(body)
            if scope == _RT_SCOPE_UNIVERSE:
                attributes = dict(_attributes(body, _ADDRESS.size))
                # Of a point-to-point interface, IFA_ADDRESS is the other end.
                raw = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
                if raw:
                    found.append(ip_address(raw))
        return sorted(found, key=lambda address: address.version)

    def local_route(self, family: int, table: int, interface: int, *, add: bool) -> int:
        """Everything of a family is local in a table, or is not any more.  0 or the error's number."""
        body = _ROUTE.pack(family, 0, 0, 0, table, _RTPROT_STATIC if add else 0, _RT_SCOPE_HOST, _RTN_LOCAL, 0)
        body += _number(_RTA_TABLE, table) + _number(_RTA_OIF, interface)
        return self._change(_RTM_NEWROUTE if add else _RTM_DELROUTE, add, body)

    def mark_rule(self, family: int, mark: int, table: int, priority: int, *, add: bool) -> int:
        """What has this mark goes by a table, or does not any more.  0 or the error's number."""
        body = _RULE.pack(family, 0, 0, 0, table, 0, 0, _FR_ACT_TO_TBL, 0)
        body += _number(_FRA_PRIORITY, priority) + _number(_FRA_FWMARK, mark) + _number(_FRA_TABLE, table)
        return self._change(_RTM_NEWRULE if add else _RTM_DELRULE, add, body)

    def _change(self, kind: int, add: bool, body: bytes) -> int:
        self._send(kind, _NLM_F_ACK | (_NLM_F_CREATE | _NLM_F_EXCL if add else 0), body)
        return -int(_ERROR.unpack_from(self._socket.recv(_RECEIVE_BYTES), _HEADER.size)[0])

    def _dump(self, kind: int, body: bytes) -> Iterator[bytes]:
        self._send(kind, _NLM_F_DUMP, body)
        while True:
            data = self._socket.recv(_RECEIVE_BYTES)
            at = 0
            while at + _HEADER.size <= len(data):
                length, answered, _, _, _ = _HEADER.unpack_from(data, at)
                body = data[at + _HEADER.size : at + length]
                at += (length + 3) & ~3
                if answered == _NLMSG_ERROR:
                    number = -_ERROR.unpack_from(body)[0]
                    raise KernelError(f"asking rtnetlink: {os.strerror(number)}", number)
                if answered == _NLMSG_DONE:
                    return
                if answered == _RTM_NEWADDR:
                    yield body

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), kind, _NLM_F_REQUEST | flags, 0, 0) + body)


def _number(kind: int, value: int) -> bytes:
    return _NUMBER.pack(_NUMBER.size, kind, value)


def _attributes(body: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind, body[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
