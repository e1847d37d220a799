"""All live connections of a worker: what is counted, logged, listed and judged again when policy changes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import msgspec

from nodeproxy.decide.inbound import recheck
from nodeproxy.model.connection import Connection, Direction
from nodeproxy.model.reason import Reason, Refusal
from nodeproxy.observe.counters import Counters
from nodeproxy.observe.kind import Kind, Kinds
from nodeproxy.observe.labels import REPORTER_INDEX, Reporter, tcp_labels
from nodeproxy.policy.match import Subject
from nodeproxy.proxy.buffers import Budget
from nodeproxy.proxy.judged import Judged
from nodeproxy.proxy.pods import Pod
from nodeproxy.proxy.session import Session
from nodeproxy.state.changes import Touched
from nodeproxy.state.view import View

WriteLog = Callable[[Connection, Kind | None], None]
Verdicts = dict[tuple[str, Subject], Refusal | None]
WriteDryRun = Callable[[Connection, Refusal], None]


class Sessions:
    """The registry.  Every connection is in it from accept to its end, and leaves it through `remove`, once."""

    def __init__(self, counters: Counters, write_log: WriteLog, write_dry_run: WriteDryRun) -> None:
        self.budget = Budget()  # of bytes that connections hold because applications do not read
        self._counters = counters
        self._kinds = Kinds()
        self._write_log = write_log
        self._write_dry_run = write_dry_run
        self._live: dict[int, Session] = {}
        self._judged = Judged()
        self._last_id = 0
        self.ended: list[Session] = []  # to be unlinked

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._live.values()))

    def _unlink_ended(self) -> None:
        """Not as they end: what ended them may still be on the stack."""
        if not self.ended:
            return
        ended, self.ended = self.ended, []
        for session in ended:
            session.unlink()

    def new_id(self) -> int:
        """An id that no other connection of this worker has had."""
        self._last_id += 1
        return self._last_id

    # ── what sessions say ──

    def add(self, session: Session) -> None:
        """A connection was accepted."""
        self._unlink_ended()
        self._live[session.record.id] = session
        session.pod.connections += 1

    def admitted(self, session: Session, subject: Subject, destination_uid: str) -> None:
        """This node's policy lets it in: it is judged again when that may have changed."""
        session.subject, session.destination_uid = subject, destination_uid
        self._judged.add(session)

    def passed_over(self, session: Session, reason: Reason) -> None:
        """The endpoint was not reached: it goes to another one, that has not let it in yet."""
        self._counters.passed_over(reason)
        if session.subject is not None:
            self._judged.remove(session)
            session.subject, session.destination_uid = None, ""

    def opened(self, session: Session) -> None:
        """Both ends stand."""
        kind = session.kind = self._kinds.of(session.record)
        # Both pods report where both are this node's.
        both = session.subject is not None and session.record.direction is Direction.OUTBOUND
        series = kind.series
        if len(series) == 1 + both and series[0].users and series[-1].users:
            for each in series:
                self._counters.open_more(each)
        else:  # what nobody counts in may have been forgotten
            series = kind.series = tuple([self._counters.open(labels) for labels in kind.labels(both=both)])
        session.series = series

    def remove(self, session: Session) -> None:
        """A connection has ended."""
        del self._live[session.record.id]
        session.pod.connections -= 1
        if session.subject is not None:
            self._judged.remove(session)
        self._count_bytes(session)
        record = session.record
        if not session.series:
            self._failed(record)
        elif record.reason is None:
            for series in session.series:
                self._counters.close(series, series.labels)
        else:
            for series in session.series:
                # How it ended is the only label that may have changed since it opened.
                self._counters.close(series, tcp_labels(record, Reporter(series.labels[REPORTER_INDEX])))
            self._counters.refused(record.reason, record.direction)
        self._write_log(record, session.kind)

    def _failed(self, record: Connection) -> None:
        self._counters.fail(tcp_labels(record))
        if record.reason is not None:
            self._counters.refused(record.reason, record.direction)

    def refused_unheard(self, record: Connection, refusal: Refusal) -> None:
        """A connection that never became a session: a failed handshake, a full table."""
        record.reason, record.detail = refusal.reason, refusal.detail
        record.started = record.started or time.time()
        record.ended = time.time()
        self._failed(record)
        self._write_log(record, None)

    def dry_run(self, record: Connection, refusals: tuple[Refusal, ...]) -> None:
        """Dry-run policies that would have refused."""
        for refusal in refusals:
            self._counters.dry_run(refusal.resource, denied=True)
            self._write_dry_run(record, refusal)

    # ── what the worker asks ──

    def recheck(self, view: View, touched: Touched) -> None:
        """The state has changed: end what policy or membership would not let begin now."""
        verdicts: Verdicts = {}
        for session in self._judged.concerned(view, touched):
            if session.subject is not None and not session.ended:
                session.guard(partial(_recheck, view, session, session.subject, verdicts))

    def involve(self, pod: Pod) -> bool:
        """Whether a connection of `pod`, or towards it, lives."""
        return pod.connections > 0 or self._judged.is_towards(pod.uid)

    def end_pod(self, pod_uid: str) -> None:
        """The pod is gone: so are its connections, and those towards it."""
        for session in self:
            if pod_uid in (session.pod.uid, session.destination_uid) and not session.ended:
                session.refuse(Refusal(Reason.POD_LEFT, "the pod has left the mesh or ended"))

    def end_all(self, refusal: Refusal) -> None:
        """The grace period is over."""
        for session in self:
            session.refuse(refusal)

    def take_counters(self) -> list[bytes]:
        """What was counted since the last time, live connections' bytes included."""
        self._unlink_ended()
        for session in self._live.values():
            if session.relaying:
                self._count_bytes(session)
        return self._counters.take()

    def snapshot(self) -> list[Connection]:
        """Records of the live connections, with their bytes as of now."""
        records = []
        for session in self._live.values():
            session.record.received_bytes, session.record.sent_bytes = session.transferred()
            records.append(session.record)
        return records

    def _count_bytes(self, session: Session) -> None:
        received, sent = session.transferred()
        new_received, new_sent = received - session.counted_received, sent - session.counted_sent
        if new_received or new_sent:
            session.counted_received, session.counted_sent = received, sent
            for series in session.series:
                series.received_bytes += new_received
                series.sent_bytes += new_sent


def _recheck(view: View, session: Session, subject: Subject, verdicts: Verdicts) -> None:
    destination = view.workload(session.destination_uid)
    if destination is None:
        session.refuse(Refusal(Reason.UNKNOWN_WORKLOAD, "the destination's workload was removed from the state"))
        return
    if session.record.direction is Direction.OUTBOUND:  # a pod of this node: it is who the state says it is
        source = view.workload(session.pod.uid)
        if source is None:
            session.refuse(Refusal(Reason.UNKNOWN_WORKLOAD, "the source's workload was removed from the state"))
            return
        if source.identity != subject.source_identity:
            subject = session.subject = msgspec.structs.replace(subject, source_identity=source.identity)
    key = session.destination_uid, subject
    if key not in verdicts:  # a client's connections to one port are one question
        verdicts[key] = recheck(view, destination, subject)
    refusal = verdicts[key]
    if refusal is not None:
        session.refuse(refusal)
