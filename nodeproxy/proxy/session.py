"""One connection of a pod, from accept to its end: the record of it, its two halves, and the one place where it ends.

States: deciding or connecting (no halves or one), relaying (two), ended.  Whatever goes wrong on either half, in the tunnel or by
policy comes here, once, and leaves with one reason for log and metric.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from nodeproxy.model.connection import Connection
from nodeproxy.model.reason import Reason, Refusal
from nodeproxy.proxy.app_socket import AppSocket
from nodeproxy.proxy.buffers import Budget
from nodeproxy.proxy.half import Half
from nodeproxy.proxy.tunnel_stream import TunnelStream
from nodeproxy.wire.frames import ErrorCode

if TYPE_CHECKING:
    from nodeproxy.observe.counters import Series
    from nodeproxy.observe.kind import Kind
    from nodeproxy.policy.match import Subject
    from nodeproxy.proxy.pods import Pod
    from nodeproxy.proxy.sessions import Sessions

log = logging.getLogger(__name__)

AnyHalf = AppSocket | TunnelStream


class Pending(Protocol):
    """Something that will call back unless it is cancelled."""

    def cancel(self) -> None:
        """Never call back; nothing if it did already."""


class Session:
    """`source` is the half towards who connected, `destination` the half towards whom it wanted.

    pod: the pod of this node that the connection is accounted to.
    subject: what policy is asked about again when it changes; None where policy is the other node's to judge.
    destination_uid: the workload whose policies hold, with `subject`.
    pending: what is on its way for it (a connect, a place in the queue for a tunnel), and pointless once it has ended.
    """

    __slots__ = (
        "_relaying",
        "_sessions",
        "counted_received",
        "counted_sent",
        "destination",
        "destination_uid",
        "ended",
        "kind",
        "pending",
        "pod",
        "record",
        "series",
        "source",
        "subject",
    )

    def __init__(self, sessions: Sessions, pod: Pod, record: Connection) -> None:
        self._sessions = sessions
        self._relaying = False
        self.pod = pod
        self.record = record
        self.source: AnyHalf | None = None
        self.destination: AnyHalf | None = None
        self.subject: Subject | None = None
        self.destination_uid = ""
        self.ended = False
        self.pending: Pending | None = None
        self.kind: Kind | None = None  # from when it opened
        self.series: tuple[Series, ...] = ()  # what it counts in, from when it opened
        self.counted_received = self.counted_sent = 0  # bytes that the counters have already
        record.started = time.time()
        sessions.add(self)

    # ── the way up ──

    def relay(self, source: AnyHalf, destination: AnyHalf) -> None:
        """Both ends stand: move bytes until both directions have ended."""
        self.source, self.destination = source, destination
        self.pending = None
        self._relaying = True
        self._sessions.opened(self)
        source.peer = destination
        destination.peer = source
        for half in (source, destination):
            if isinstance(half, AppSocket):
                half.start()
            elif not self.ended:
                half.joined()

    @property
    def budget(self) -> Budget:
        """What all connections of the worker may hold together."""
        return self._sessions.budget

    @property
    def relaying(self) -> bool:
        """Both ends stand."""
        return self._relaying

    def transferred(self) -> tuple[int, int]:
        """Bytes that came from the source, bytes that came from the destination."""
        if not self._relaying or self.source is None or self.destination is None:
            return (0, 0)
        return (self.source.read_bytes, self.destination.read_bytes)

    # ── the ways down ──

    def half_ended(self) -> None:
        """One direction has ended; when both have, so has the connection, in good order."""
        source, destination = self.source, self.destination
        if source is None or destination is None or not (source.done and destination.done) or self.ended:
            return
        try:
            self._end(None)
        finally:
            source.close()
            destination.close()
            self._sessions.ended.append(self)

    def refuse(self, refusal: Refusal) -> None:
        """End it by a named refusal; both sides see a reset, a tunnel's peer the status or code that belongs to it."""
        if self.ended:
            return
        self._end_and_abort(refusal)

    def reset_by(self, half: Half) -> None:
        """`half` was reset: reset the other one."""
        if self.ended:
            return
        reason = Reason.RESET_BY_SOURCE if half is self.source else Reason.RESET_BY_DESTINATION
        end = "source" if half is self.source else "destination"
        self._end_and_abort(Refusal(reason, f"the connection was reset by its {end}"))

    def tunnel_reset(self, half: TunnelStream, code: int) -> None:
        """The tunnel's peer reset the stream."""
        if self._relaying or half is self.source:
            self.reset_by(half)
        elif not (code == ErrorCode.REFUSED_STREAM and half.ask_again()):
            refusal = Refusal(Reason.HBONE_REFUSED, f"the peer reset the stream before it answered ({_code_name(code)})")
            if not half.ask_elsewhere(refusal):
                self.refuse(refusal)

    def tunnel_lost(self, half: TunnelStream, refusal: Refusal) -> None:
        """The tunnel that the stream was on is gone."""
        lost = refusal.reason is Reason.RESET_BY_DESTINATION
        if lost and (self._relaying or half is self.source):
            self.reset_by(half)
        elif not (lost and (half.ask_again() or half.ask_elsewhere(refusal))):
            self.refuse(refusal)

    def fault(self, error: Exception) -> None:
        """A defect of ours hit this connection."""
        self.refuse(defect(error))

    def guard(self, step: Callable[[], None]) -> None:
        """Do `step` for this connection; a defect in it is logged and ends this connection, and never what called."""
        try:
            step()
        except Exception as error:
            self.failed(error)

    def failed(self, error: Exception) -> None:
        """A defect was caught: it is logged and ends this connection."""
        log.error("a defect, which ended one connection", exc_info=error)
        self.fault(error)

    def _end_and_abort(self, refusal: Refusal) -> None:
        try:
            self._end(refusal)
        finally:
            try:
                if self.source is not None:
                    self.source.abort()
            finally:
                if self.destination is not None:
                    self.destination.abort()
                self._sessions.ended.append(self)

    def unlink(self) -> None:
        """Let the parts of an ended connection forget each other.

        They refer to one another in circles, which only a collection of garbage would find: with 2,000 new connections a second
        that was an eighth of the CPU, and pauses of 50 ms.
        """
        for half in (self.source, self.destination):
            if half is not None:
                half.forget()
        self.source = self.destination = None

    def _end(self, refusal: Refusal | None) -> None:
        self.ended = True
        if self.pending is not None:
            self.pending.cancel()
            self.pending = None
        record = self.record
        record.received_bytes, record.sent_bytes = self.transferred()
        record.ended = time.time()
        if refusal is not None:
            record.reason, record.detail = refusal.reason, refusal.detail
        self._sessions.remove(self)


def defect(error: Exception) -> Refusal:
    """The refusal that stands for a defect of ours."""
    detail = f"nodeproxy failed on this connection: {error!r}; please report it with the log's traceback"
    return Refusal(Reason.INTERNAL, detail)


def _code_name(code: int) -> str:
    try:
        return ErrorCode(code).name
    except ValueError:
        return f"code {code:#x}"
