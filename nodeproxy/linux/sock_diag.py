"""Sockets of a pod's network namespace, asked about and destroyed by netlink (sock_diag(7)), each by its cookie.

The cookie is the one that eBPF gives (bpf_get_socket_cookie), so another connection of the same addresses is never taken for it.
IPv4-mapped addresses are given as IPv4, whatever the socket's family.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from nodeproxy.errors import KernelError
from nodeproxy.linux.netns import inside
from nodeproxy.policy.address import canonical_ip

_NETLINK_SOCK_DIAG: Final = 4  # <linux/netlink.h>
_SOCK_DIAG_BY_FAMILY: Final = 20  # <linux/sock_diag.h>
_SOCK_DESTROY: Final = 21
_NLMSG_ERROR: Final = 2
_NLM_F_REQUEST: Final = 1
_NLM_F_ACK: Final = 4
_NLMSG_DONE: Final = 3
_NLM_F_DUMP: Final = 0x300
_INET_DIAG_INFO: Final = 2  # <linux/inet_diag.h>
_INET_DIAG_CGROUP_ID: Final = 21
_SO_COOKIE: Final = 57  # <asm-generic/socket.h>
_ANY_COOKIE: Final = 0xFFFF_FFFF_FFFF_FFFF  # INET_DIAG_NOCOOKIE
_ALL_STATES: Final = 0xFFFF_FFFF

_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
# struct inet_diag_req_v2: family, protocol, extensions, padding, states, then struct inet_diag_sockid: ports and addresses
# (here, there; network order), interface, cookie
_REQUEST: Final = struct.Struct("=BBBxI2s2s16s16sIQ")
# struct inet_diag_msg: family, state, timer, retransmits, inet_diag_sockid, expires, rqueue, wqueue, uid, inode
_MESSAGE: Final = struct.Struct("=BBBB2s2s16s16sIQIIIII")
_ATTRIBUTE: Final = struct.Struct("=HH")  # struct rtattr: length, type
# struct tcp_info: tcpi_bytes_acked, tcpi_bytes_received
_BYTES_AT: Final = 120
_BYTES: Final = struct.Struct("=QQ")
# ESTABLISHED, SYN_SENT, FIN_WAIT1 and CLOSE_WAIT: what may carry payload, or will
_LIVE: Final = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 8
_TCP_SYN_RECV: Final = 3  # <net/tcp_states.h>
_TCP_FIN_WAIT2: Final = 5  # our FIN was acknowledged
_TCP_LISTEN: Final = 10
_FIN_CAME: Final = frozenset({8, 9, 11})  # CLOSE_WAIT, LAST_ACK, CLOSING
_ABSENT: Final = frozenset({errno.ENOENT, errno.ESTALE})  # ESTALE: other cookie


class TcpSocket(NamedTuple):
    """One end of a TCP connection: (address, port) here and there.  cookie: 0 if any connection of these addresses is meant."""

    local: tuple[str, int]
    remote: tuple[str, int]
    cookie: int = 0


class TcpBytes(NamedTuple):
    """Payload so far: sent and acknowledged, and received."""

    sent: int
    received: int


class LiveSocket(NamedTuple):
    """One end of a live TCP connection.  cgroup_id: of whoever made it (version 2), 0 if the kernel does not say."""

    socket: TcpSocket
    cgroup_id: int


def live(netns_fd: int) -> list[LiveSocket]:
    """All ends of TCP connections in a network namespace that carry something, or are being made."""
    found = []
    with _netlink(netns_fd) as netlink:
        for family in (socket.AF_INET, socket.AF_INET6):
            request = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, _LIVE, b"", b"", b"", b"", 0, 0)
            found += [_live(family, answer) for answer in _dump(netlink, request)]
    return found


def destroy(netns_fd: int, connection: TcpSocket) -> bool:
    """End it with a reset, now (SOCK_DESTROY); whether there was one.  Afterwards it is gone, or a `KernelError` says why not."""
    with _netlink(netns_fd) as netlink:
        return _destroy(netlink, connection)


def bytes_of(netns_fd: int, connections: Iterable[TcpSocket]) -> dict[int, TcpBytes]:
    """Payload by cookie, of those that are still there; each must say its cookie.  For connecting ends only: their SYN counts."""
    found = {}
    with _netlink(netns_fd) as netlink:
        for connection in connections:
            answer = _look_up(netlink, connection)
            if answer is not None:
                found[connection.cookie] = _payload(answer)
    return found


def can_destroy() -> str:
    """Why this kernel cannot destroy sockets, or "": it is tried, on a connection over the node's loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        cookie = struct.unpack("=Q", client.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8))[0]
        try:
            with _netlink(None) as netlink:
                _destroy(netlink, TcpSocket(client.getsockname(), client.getpeername(), cookie))
        except (KernelError, OSError) as error:
            return str(error)
        client.setblocking(False)
        try:
            client.recv(1)
        except ConnectionAbortedError:
            return ""
        except OSError as error:
            return f"a destroyed connection says {error.strerror}"
    return "a destroyed connection goes on"


def _netlink(netns_fd: int | None) -> socket.socket:
    """A socket for questions about one network namespace; it keeps that when the thread has come back."""
    if netns_fd is None:
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)
    with inside(netns_fd):
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)


def _request(connection: TcpSocket, extensions: int) -> bytes:
    family = socket.AF_INET6 if ":" in connection.local[0] else socket.AF_INET
    return _REQUEST.pack(
        family,
        socket.IPPROTO_TCP,
        extensions,
        _ALL_STATES,
        struct.pack("!H", connection.local[1]),
        struct.pack("!H", connection.remote[1]),
        socket.inet_pton(family, connection.local[0]),
        socket.inet_pton(family, connection.remote[0]),
        0,
        connection.cookie or _ANY_COOKIE,
    )


def _ask(netlink: socket.socket, kind: int, body: bytes) -> tuple[int, bytes]:
    """One question: (0, what the kernel answers), or (error number, nothing)."""
    flags = _NLM_F_REQUEST | (_NLM_F_ACK if kind == _SOCK_DESTROY else 0)
    netlink.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, 0, 0) + body)
    data = netlink.recv(16384)
    length, answered, _, _, _ = _HEADER.unpack_from(data)
    if answered == _NLMSG_ERROR:
        return -struct.unpack_from("=i", data, _HEADER.size)[0], b""
    return 0, data[_HEADER.size : length]


def _dump(netlink: socket.socket, body: bytes) -> Iterator[bytes]:
    netlink.send(_HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST | _NLM_F_DUMP, 0, 0) + body)
    while True:
        data = netlink.recv(65536)
        at = 0
        while at + _HEADER.size <= len(data):
            length, kind, _, _, _ = _HEADER.unpack_from(data, at)
            if kind == _NLMSG_ERROR:
                number = -struct.unpack_from("=i", data, at + _HEADER.size)[0]
                raise KernelError(f"asking about connections: {os.strerror(number)}", number)
            if kind == _NLMSG_DONE:
                return
            yield data[at + _HEADER.size : at + length]
            at += (length + 3) & ~3


def _live(family: int, answer: bytes) -> LiveSocket:
    _, _, _, _, port, remote_port, address, remote, _, cookie, *_ = _MESSAGE.unpack_from(answer)
    cgroup_id = _attribute(answer, _INET_DIAG_CGROUP_ID)
    ends = [(_text(family, raw), int.from_bytes(number, "big")) for raw, number in ((address, port), (remote, remote_port))]
    return LiveSocket(TcpSocket(ends[0], ends[1], cookie), struct.unpack("=Q", cgroup_id)[0] if cgroup_id else 0)


def _text(family: int, raw: bytes) -> str:
    if family == socket.AF_INET:
        return socket.inet_ntop(socket.AF_INET, raw[:4])
    return canonical_ip(socket.inet_ntop(socket.AF_INET6, raw))


class _Answer(NamedTuple):
    """info: struct tcp_info; empty for a connection whose handshake has not ended."""

    state: int
    cookie: int
    info: bytes


def _look_up(netlink: socket.socket, connection: TcpSocket) -> _Answer | None:
    """What the kernel says of a connection; None if there is none, or only what remembers it (TIME_WAIT)."""
    number, answer = _ask(netlink, _SOCK_DIAG_BY_FAMILY, _request(connection, 1 << (_INET_DIAG_INFO - 1)))
    if number in _ABSENT:
        return None
    if number:
        raise KernelError(f"asking about a connection: {os.strerror(number)}", number)
    _, state, _, _, _, remote_port, _, _, _, cookie, *_ = _MESSAGE.unpack_from(answer)
    # Where no connection is, the kernel finds a listener: the application's, or a worker's by our own eBPF program.
    if state == _TCP_LISTEN or remote_port != struct.pack("!H", connection.remote[1]):
        return None
    info = _attribute(answer, _INET_DIAG_INFO)
    return _Answer(state, cookie, info) if info or state == _TCP_SYN_RECV else None


def _attribute(answer: bytes, wanted: int) -> bytes:
    at = _MESSAGE.size
    while at + _ATTRIBUTE.size <= len(answer):
        length, kind = _ATTRIBUTE.unpack_from(answer, at)
        if kind == wanted:
            return answer[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    return b""


def _destroy(netlink: socket.socket, connection: TcpSocket) -> bool:
    if not connection.cookie:
        answer = _look_up(netlink, connection)
        if answer is None:
            return False
        connection = connection._replace(cookie=answer.cookie)
    number, _ = _ask(netlink, _SOCK_DESTROY, _request(connection, 0))
    # Of what is in TIME_WAIT, older kernels say that it cannot be destroyed.
    if number in _ABSENT or (number == errno.EOPNOTSUPP and _look_up(netlink, connection) is None):
        return False
    if number:
        raise KernelError(
            f"ending a connection: {os.strerror(number)}; the kernel needs CONFIG_INET_DIAG_DESTROY, nodeproxy CAP_NET_ADMIN",
            number,
        )
    return True


def _payload(answer: _Answer) -> TcpBytes:
    """TCP counts sequence numbers: the SYN is one, and a FIN."""
    sent, received = _BYTES.unpack_from(answer.info, _BYTES_AT) if answer.info else (0, 0)
    return TcpBytes(max(0, sent - 1 - (answer.state == _TCP_FIN_WAIT2)), received - (answer.state in _FIN_CAME))
