"""A pod of this node as a worker sees it: its listeners, the way into its network namespace, and how much it may hold."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from nodeproxy.linux.netns import Visitor
from nodeproxy.proxy.app_socket import reset_and_close
from nodeproxy.proxy.poller import IN, Poller, Timer

if TYPE_CHECKING:
    from nodeproxy.proxy.tunnel import Tunnel

# How long a listener rests that can neither accept nor refuse (no memory, say): readiness is told again and again.
_REST_S = 0.1
# Measured: up to 64 a wake-up takes 8 per cent off a new connection's CPU; more would let one pod hold the loop.
_ACCEPTS_A_WAKEUP = 64
_STREAM = int(socket.SOCK_STREAM)
_ITS_OWN_FAULT = {
    errno.ECONNABORTED,
    errno.ENETDOWN,
    errno.EPROTO,
    errno.ENOPROTOOPT,
    errno.EHOSTDOWN,
    errno.ENONET,
    errno.EHOSTUNREACH,
    errno.EOPNOTSUPP,
    errno.ENETUNREACH,
}


_visitor = Visitor()


class Pod:
    """One enrolled pod.

    cookie: of its network namespace.  connections: how many of its sessions live.
    handshakes: tunnels whose handshake runs, the oldest first.
    passed_on: another agent's workers have what comes from now on; what is here already is served as before.
    """

    __slots__ = (
        "addresses",
        "connections",
        "cookie",
        "handshakes",
        "leaving",
        "listeners",
        "netns_fd",
        "passed_on",
        "tunnels",
        "uid",
    )

    def __init__(self, uid: str, cookie: int, addresses: tuple[str, ...], netns_fd: int) -> None:
        self.uid = uid
        self.cookie = cookie
        self.addresses = addresses
        self.netns_fd = netns_fd
        self.listeners: list[Listener] = []
        self.connections = 0
        self.handshakes: dict[Tunnel, None] = {}
        self.leaving = False
        self.passed_on = False
        self.tunnels: dict[Tunnel, None] = {}  # that arrived at this pod

    def enter(self) -> None:
        """Sockets that are made after this are of the pod's namespace, and stay there wherever they are used."""
        _visitor.go(self.netns_fd)

    def close_listeners(self) -> None:
        """Take no new connection."""
        for listener in self.listeners:
            listener.close()
        self.listeners.clear()

    def close(self) -> None:
        """Let go of the namespace: nothing of ours keeps it alive."""
        self.close_listeners()
        _visitor.leave(self.netns_fd)
        os.close(self.netns_fd)
        self.netns_fd = -1


Accepted = Callable[[Pod, socket.SocketType, tuple[str, int]], None]
OnFull = Callable[[Pod, tuple[str, int]], None]


class Spare:
    """One descriptor in reserve: with a full table it makes room to accept, and so refuse, who would else wake us for ever."""

    def __init__(self) -> None:
        self._fd = -1
        self._take()

    def refuse_one(self, listener: socket.socket) -> tuple[str, int] | None:
        """Accept one connection and reset it; whose it was, or None."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1  # at once: should it not come back, its number is somebody else's
            os.close(fd)
        try:
            sock, address = listener.accept()
            reset_and_close(sock)
        except OSError:
            return None
        finally:
            self._take()
        return plain_address(address)

    def _take(self) -> None:
        try:
            self._fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            # The whole machine's table is full (ENFILE): the next `refuse_one` does without.
            self._fd = -1


class Listener:
    """A listening socket in a pod's namespace, made by the agent."""

    __slots__ = ("_accepted", "_family", "_on_full", "_pod", "_poller", "_resting", "_sock", "_spare")

    def __init__(self, poller: Poller, pod: Pod, sock: socket.socket, spare: Spare, accepted: Accepted, on_full: OnFull) -> None:
        self._poller = poller
        self._pod = pod
        self._sock = sock
        self._family = int(sock.family)
        self._spare = spare
        self._accepted = accepted
        self._on_full = on_full
        self._resting: Timer | None = None
        sock.setblocking(False)
        poller.add(sock.fileno(), self, IN)

    def on_event(self, events: int) -> None:
        """Connections wait."""
        for _ in range(_ACCEPTS_A_WAKEUP):
            try:
                # `accept` without the class of Python's that it wraps the socket in, which costs 2 µs and 60 bytes.
                fd, address = self._sock._accept()  # type: ignore[attr-defined]  # typeshed leaves out what is private
            except BlockingIOError:
                return
            except OSError as error:
                # accept(2): errors of the connection that was to be accepted are to be treated as if there had been none.
                if error.errno in _ITS_OWN_FAULT:
                    continue
                refused = self._spare.refuse_one(self._sock) if error.errno in (errno.EMFILE, errno.ENFILE) else None
                if refused is None:
                    self._rest()
                    return
                self._on_full(self._pod, refused)
                continue
            sock = socket.SocketType(self._family, _STREAM, 0, fd)
            sock.setblocking(False)
            try:
                self._accepted(self._pod, sock, plain_address(address))
            except Exception as error:
                self._poller.report(error)
                reset_and_close(sock)

    def on_fault(self, error: Exception) -> None:
        """Not one connection's: it would come again at once."""
        self._rest()

    def close(self) -> None:
        """Stop listening."""
        if self._resting is not None:
            self._resting.cancel()
        self._poller.remove(self._sock.fileno())
        self._sock.close()

    def _rest(self) -> None:
        if self._resting is None:
            self._poller.change(self._sock.fileno(), 0)
            self._resting = self._poller.later(_REST_S, self._wake)

    def _wake(self) -> None:
        self._resting = None
        self._poller.change(self._sock.fileno(), IN)


def plain_address(address: tuple[str, int] | tuple[str, int, int, int]) -> tuple[str, int]:
    """A socket's address as (text, port), an IPv4-mapped one as IPv4."""
    text = address[0]
    if text.startswith("::ffff:") and "." in text:
        text = text[7:]
    return text, address[1]
