"""A plain TCP socket as one half of a relay: an application's, or the plain side towards a server.

Invariants: EPOLLIN is asked for only while the peer takes bytes; EPOLLOUT only while `_unsent` is not empty; a reset on either
side reaches the other.  It knows nothing of TLS, HTTP/2 or policy.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

from nodeproxy.proxy import buffers
from nodeproxy.proxy.half import BLOCKED, GONE, Half, SinkError
from nodeproxy.proxy.poller import ERR, HUP, IN, OUT, Poller

if TYPE_CHECKING:
    from nodeproxy.proxy.session import Session

# SO_LINGER on, zero seconds: close() sends RST instead of FIN (socket(7)).
# What is read from a socket for another one when the worker holds too much already: few enough for thousands of connections.
_SMALL_READ_BYTES = 4096
_LINGER_RESET = struct.pack("ii", 1, 0)


def reset_and_close(sock: socket.SocketType) -> None:
    """Close `sock` so that its peer sees a reset: a refusal must not look like an orderly end."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    except OSError:
        # The peer was faster: there is nobody left to be told.
        pass
    finally:
        sock.close()


class AppSocket:
    """One half of a relay.  Watching begins with `start`; until then the kernel's buffers hold what comes."""

    __slots__ = (
        "_ended",
        "_events",
        "_fd",
        "_finishing",
        "_owed",
        "_poller",
        "_registered",
        "_unsent",
        "peer",
        "read_bytes",
        "session",
        "sock",
    )

    def __init__(self, poller: Poller, sock: socket.SocketType, session: Session) -> None:
        self.sock = sock
        self.session = session
        self.read_bytes = 0
        self.peer: Half
        self._poller = poller
        self._fd = sock.fileno()
        self._events = 0
        self._registered = False
        self._ended = False  # the end of its stream was read
        self._finishing = False  # the peer's stream has ended; FIN goes out behind `_unsent`
        self._unsent: bytearray | None = None
        self._owed = 0  # bytes of `_unsent` that a socket brought; those of a tunnel are the stream's to account for

    @property
    def unsent_bytes(self) -> int:
        """Bytes copied because the socket did not take them."""
        return len(self._unsent) if self._unsent else 0

    def start(self) -> None:
        """Begin to relay."""
        self._want(IN)

    # ── what the poller calls ──

    def on_event(self, events: int) -> None:
        """Move what can be moved."""
        if events == IN and self._events & IN:
            self._read()
            return
        if events & ERR and self._failed():
            return
        if events & OUT:
            self._flush()
        if self._events & IN:
            if events & (IN | HUP):
                self._read()
        elif events & HUP and self._registered:
            # HUP can't be masked: while the peer takes nothing, a socket that ended in both directions would wake us without end.
            self._poller.remove(self._fd)
            self._registered = False

    def on_fault(self, error: Exception) -> None:
        """A defect of ours: this connection ends."""
        self.session.fault(error)

    def _failed(self) -> bool:
        if self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
            return False
        self.session.reset_by(self)
        return True

    def _read(self) -> None:
        try:
            count = self.peer.fill_from(self.sock)
        except BlockingIOError:
            return
        except SinkError:
            self.session.reset_by(self.peer)
            return
        except OSError:
            self.session.reset_by(self)
            return
        if count > 0:
            self.read_bytes += count
        elif count == BLOCKED:
            self._want(self._events & ~IN)
        else:
            self._ended = True
            self.peer.finish()
            self.session.half_ended()
            self._want(self._events & ~IN)  # last: mostly that was the end, and it is not watched any more

    # ── what the peer calls ──

    def fill_from(self, source: socket.SocketType) -> int:
        """See `Half.fill_from`."""
        if self._unsent:
            return BLOCKED
        buffer, budget = buffers.application, self.session.budget
        count = source.recv_into(buffer, _SMALL_READ_BYTES if budget.exhausted else 0)
        if count == 0:
            return 0
        try:
            sent = self.deliver(buffer[:count])
        except OSError as error:
            raise SinkError(str(error)) from error
        if sent < count:
            self._owed = count - sent
            budget.owe(self._owed)
        return count

    def deliver(self, chunk: memoryview) -> int:
        """See `Half.deliver`.  Raises OSError when the socket is broken."""
        if self._unsent:
            self._unsent += chunk
            return 0
        try:
            sent = self.sock.send(chunk)
        except BlockingIOError:
            sent = 0
        if sent < len(chunk):
            self._unsent = bytearray(chunk[sent:])
            self._want(self._events | OUT)
        return sent

    def delivered(self, count: int) -> None:
        """A socket's bytes are the kernel's once they are read: nothing to give back."""

    def finish(self) -> None:
        """See `Half.finish`."""
        self._finishing = True
        if not self._unsent and not (self._ended and self.peer.done):  # then it is closed at once, which sends FIN, too
            self._shut_down()

    def resume(self) -> None:
        """See `Half.resume`."""
        if not self._ended:
            self._want(self._events | IN)

    def hang_up(self) -> None:
        """See `Half.hang_up`.  Who writes to us after that gets a reset from the kernel, as from any server that has closed."""
        self._ended = True
        self._want(self._events & ~IN)

    def abort(self) -> None:
        """See `Half.abort`."""
        self._forget()
        reset_and_close(self.sock)

    def close(self) -> None:
        """See `Half.close`."""
        self._forget()
        self.sock.close()

    def forget(self) -> None:
        """The connection has ended, and nothing is on the stack that knew it."""
        self.peer = GONE

    @property
    def done(self) -> bool:
        """Nothing more will come from here and nothing more is to be sent."""
        return self._ended and self._finishing and not self._unsent

    # ── inside ──

    def _flush(self) -> None:
        unsent = self._unsent
        if not unsent:
            return
        try:
            sent = self.sock.send(unsent)
        except BlockingIOError:
            return
        except OSError:
            self.session.reset_by(self)
            return
        del unsent[:sent]
        if not unsent:
            self._unsent = None
            self._want(self._events & ~OUT)
            if self._finishing:
                self._shut_down()
        if self._owed:
            self._owed -= sent
            self.session.budget.settle(sent)
        self.peer.delivered(sent)
        if self._unsent is None and not self._finishing:
            self.peer.resume()
        if self._finishing:
            self.session.half_ended()

    def _shut_down(self) -> None:
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            # It was reset meanwhile; the poller will tell us, with ERR.
            return

    def _want(self, events: int) -> None:
        if self._fd < 0:
            return
        if not self._registered:
            if events:
                self._poller.add(self._fd, self, events)
                self._registered = True
        elif events != self._events:
            self._poller.change(self._fd, events)
        self._events = events

    def _forget(self) -> None:
        """Be closed next."""
        if self._registered:
            self._poller.closing(self._fd)
            self._registered = False
        if self._owed:
            self.session.budget.settle(self._owed)
            self._owed = 0
        self._fd = -1
        self._events = 0
        self._unsent = None
