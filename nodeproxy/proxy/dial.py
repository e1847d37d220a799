"""One non-blocking connect on its way, with its deadline."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

from nodeproxy.model.reason import Reason, Refusal
from nodeproxy.proxy.poller import OUT, Poller

# ztunnel's connect timeout; a SYN is then sent four times (after 1, 3 and 7 s).
CONNECT_TIMEOUT_S = 10.0

# What nothing should ever be called: `on_done` came with neither a socket nor a reason.
NO_RESULT = Refusal(Reason.INTERNAL, "the connect ended without a result")

OnDone = Callable[[socket.SocketType | None, Refusal | None], None]

_UNDER_WAY = {errno.EINPROGRESS, errno.EALREADY}
_UNREACHABLE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.EADDRNOTAVAIL}


def dial(
    poller: Poller, sock: socket.SocketType, address: tuple[str, int], on_done: OnDone, *, near: bool = False
) -> Dial | None:
    """Connect `sock` to `address` and call `on_done` once, with the connected socket or with a refusal (then it is closed).

    Returns what waits for that, or None if it is done.  near: within one network namespace, where the kernel has shaken hands
    before it returns from connect(2); asking once more then tells so, and saves a wake-up and three system calls.
    """
    error = sock.connect_ex(address)
    if near and error == errno.EINPROGRESS:
        error = sock.connect_ex(address)
    if error in _UNDER_WAY:
        return Dial(poller, sock, address, on_done)
    if error:
        sock.close()
        on_done(None, connect_refusal(error, address))
        return None
    try:
        on_done(sock, None)
    except BaseException:
        sock.close()
        raise
    return None


class Dial:
    """A connect that is under way, until it is done, or `cancel`led, or too late.

    A defect within `on_done` is a refusal too: it is called again, with that, and must bear it.
    """

    __slots__ = ("_address", "_fd", "_on_done", "_poller", "_sock", "_timer")

    def __init__(self, poller: Poller, sock: socket.SocketType, address: tuple[str, int], on_done: OnDone) -> None:
        self._poller = poller
        self._sock = sock
        self._address = address
        self._on_done = on_done
        self._fd = sock.fileno()
        poller.add(self._fd, self, OUT)
        self._timer = poller.later(CONNECT_TIMEOUT_S, self._timed_out)

    def cancel(self) -> None:
        """Nobody wants it any more: `on_done` is not called."""
        if self._fd >= 0:
            self._let_go()
            self._sock.close()

    def on_event(self, events: int) -> None:
        """The handshake is through, or failed."""
        error = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self._fail(error)
        else:
            self._let_go()
            self._on_done(self._sock, None)

    def on_fault(self, error: Exception) -> None:
        """A defect of ours: whoever waits must hear of it, and the socket may be nobody's."""
        if self._fd >= 0:
            self._let_go()
        self._on_done(
            None, Refusal(Reason.INTERNAL, f"nodeproxy failed on this connection: {error!r}; its log has the traceback")
        )
        # Last: whoever took it over has stopped to watch it by now.
        self._sock.close()

    def _timed_out(self) -> None:
        self._fail(errno.ETIMEDOUT)

    def _fail(self, error: int) -> None:
        if self._fd < 0:
            return
        self._let_go()
        self._sock.close()
        try:
            self._on_done(None, connect_refusal(error, self._address))
        except Exception as defect:
            self._poller.report(defect)
            self.on_fault(defect)

    def _let_go(self) -> None:
        self._poller.remove(self._fd)
        self._fd = -1
        self._timer.cancel()


def connect_refusal(error: int, address: tuple[str, int]) -> Refusal:
    """What a failed connect to `address` is called."""
    where = f"{address[0]}:{address[1]}"
    if error == errno.ECONNREFUSED:
        return Refusal(Reason.CONNECT_REFUSED, f"{where} refused the connection: nothing listens there")
    if error == errno.ETIMEDOUT:
        return Refusal(Reason.CONNECT_TIMEOUT, f"{where} did not answer in {CONNECT_TIMEOUT_S:.0f} s")
    if error in _UNREACHABLE:
        return Refusal(Reason.CONNECT_UNREACHABLE, f"{where} can't be reached from the pod: {_strerror(error)}")
    if error in (errno.EMFILE, errno.ENFILE):
        return Refusal(Reason.NO_DESCRIPTORS, "the worker has no file descriptor left; raise its limit of open files")
    return Refusal(Reason.CONNECT_UNREACHABLE, f"connect to {where} failed: {_strerror(error)}")


def _strerror(error: int) -> str:
    return OSError(error, errno.errorcode.get(error, "?")).strerror or errno.errorcode.get(error, str(error))
