"""What metrics, access log and `connections` say of direct flows: the same as of two local pods' connections through the proxy.

Told when a flow has ended, thousands at once: what is the same for all flows of two pods is made once, and each costs a line and
a few additions.  Invariant: each ended flow is counted once and, within a limit, has one line; lines beyond it are counted too.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from operator import itemgetter

from nodeproxy.agent.direct_pods import DirectPod, DirectPods
from nodeproxy.decide.outbound import who_is
from nodeproxy.kernel.abi import unpack_ip
from nodeproxy.kernel.direct import DirectFlow
from nodeproxy.linux.sock_diag import TcpBytes
from nodeproxy.model.address import join_address
from nodeproxy.model.connection import Connection, Direction, Party
from nodeproxy.model.reason import Reason, Refusal
from nodeproxy.observe.access_log import format_json, format_text
from nodeproxy.observe.counter_page import Counts
from nodeproxy.observe.counters import Counters, Totals
from nodeproxy.observe.labels import Reporter, tcp_labels
from nodeproxy.observe.line_template import LineTemplate
from nodeproxy.observe.log_writer import LogWriter
from nodeproxy.state.view import View

log = logging.getLogger(__name__)

# Kinds of flows whose labels and line are kept: one for each pair of pods, address, service and port in use.
_MAX_KINDS = 8192
# Flows between two looks at the rest of the agent's work: some 10 ms.
_SLICE = 2048
# Lines each time that ended flows are told: 20,000 a second and more, which no collector keeps up with.
MAX_LINES = 5000
# Destroyed flows whose end has not been told yet.
_MAX_DESTROYED = 65_536
# Whose the counts are, beside the workers' slots.
_SLOT = -1


# What flows of one kind have in common.
_FIELDS = (
    "source_cookie",
    "destination_cookie",
    "source_ip",
    "destination_ip",
    "original_ip",
    "destination_port",
    "original_port",
)
_KIND = itemgetter(*map(DirectFlow._fields.index, _FIELDS))


class _Kind:
    """What flows of two pods to one port have in common, and what is still to be counted of them."""

    __slots__ = ("counts", "labels", "record", "template")

    def __init__(self, record: Connection, template: LineTemplate | None) -> None:
        self.record = record
        self.labels = [tcp_labels(record, reporter) for reporter in Reporter]
        self.template = template  # None: a name in it has to be escaped line by line
        self.counts = Counts()


class _Open:
    """A live flow that the metrics have as opened already, and how many of its bytes."""

    __slots__ = ("received_bytes", "sent_bytes")

    def __init__(self) -> None:
        self.received_bytes = self.sent_bytes = 0


class DirectFlows:
    """`tell` ended ones, `refresh` what is counted of live ones, show `connections`."""

    def __init__(self, pods: DirectPods, view: Callable[[], View], totals: Totals, *, log_json: bool, log_fd: int) -> None:
        self.ended = 0
        self.unlogged = 0  # ended flows that got no line
        self.live = 0  # as of the last look
        self._pods = pods
        self._view = view
        self._totals = totals
        self._format = format_json if log_json else format_text
        self._log = LogWriter(log_fd)
        self._dropped = 0  # of the log writer's lines, those that are counted already
        self._unlogged_told = 0
        self._counters = Counters()
        self._kinds: dict[tuple[object, ...], _Kind] = {}
        self._open: dict[int, _Open] = {}
        self._destroyed: dict[int, Refusal] = {}
        self._looking = asyncio.Lock()
        self._told_meanwhile: set[int] = set()

    def destroyed(self, socket_cookie: int, refusal: Refusal) -> None:
        """The flow is about to be destroyed for this reason: its end will say so."""
        if len(self._destroyed) >= _MAX_DESTROYED:
            del self._destroyed[next(iter(self._destroyed))]
        self._destroyed[socket_cookie] = refusal

    def forget_labels(self) -> None:
        """Workloads or services have changed."""
        self._settle_counts()
        self._kinds.clear()

    # ── ended ──

    async def tell(self, flows: list[DirectFlow]) -> None:
        """Count and log what has ended."""
        self.ended += len(flows)
        if self._looking.locked():
            self._told_meanwhile.update(flow.socket_cookie for flow in flows)
        lines = MAX_LINES
        for start in range(0, len(flows), _SLICE):
            lines = self._tell(flows[start : start + _SLICE], lines)
            self._log.flush()
            await asyncio.sleep(0)
        self._settle_counts()
        self._tell_unlogged()

    def flush(self) -> None:
        """Write what the log's reader did not take before."""
        if self._log.pending:
            self._log.flush()

    def _tell(self, flows: list[DirectFlow], lines: int) -> int:
        """Returns how many lines may still be written."""
        offset_s = time.time() - time.monotonic()  # of the kernel's clock from ours
        for flow in flows:
            kind = self._kind(flow)
            cookie = flow.socket_cookie
            if not flow.established or cookie in self._destroyed:
                self._tell_refused(flow, kind, offset_s)
                continue
            counts = kind.counts
            counts.closed += 1
            known = self._open.pop(cookie, None) if self._open else None
            if known is None:
                counts.opened += 1
                counts.received_bytes += flow.sent_bytes
                counts.sent_bytes += flow.received_bytes
            else:
                counts.received_bytes += flow.sent_bytes - known.received_bytes
                counts.sent_bytes += flow.received_bytes - known.sent_bytes
            if lines <= 0:
                self.unlogged += 1
                continue
            lines -= 1
            if kind.template is None:
                self._log.write(self._format(self._record(flow, kind, offset_s)))
            else:
                ended_s, duration_s = offset_s + flow.ended_ns / 1e9, (flow.ended_ns - flow.started_ns) / 1e9
                line = kind.template.fill(ended_s, duration_s, flow.source_port, flow.sent_bytes, flow.received_bytes)
                self._log.write(line)
        return lines

    def _tell_refused(self, flow: DirectFlow, kind: _Kind, offset_s: float) -> None:
        """One that was destroyed, or never stood."""
        record = self._record(flow, kind, offset_s)
        refusal = self._destroyed.pop(flow.socket_cookie, None) or _not_established(flow)
        record.reason, record.detail = refusal.reason, refusal.detail
        established = bool(flow.established)
        known = self._open.pop(flow.socket_cookie, None)
        for reporter in Reporter if established else (Reporter.SOURCE,):
            end = Counts(failed=1, closed=int(established))
            self._counters.add(tcp_labels(record, reporter), end)
            if established:
                opened = Counts(received_bytes=record.received_bytes, sent_bytes=record.sent_bytes)
                if known is None:
                    opened.opened = 1
                else:
                    opened.received_bytes -= known.received_bytes
                    opened.sent_bytes -= known.sent_bytes
                self._counters.add(tcp_labels(kind.record, reporter), opened)
        self._counters.refused(refusal.reason, record.direction)
        self._log.write(self._format(record))

    def _tell_unlogged(self) -> None:
        self.unlogged += self._log.dropped - self._dropped
        self._dropped = self._log.dropped
        if self.unlogged > self._unlogged_told:
            missing = self.unlogged - self._unlogged_told
            log.warning("%d direct connections that ended have no line in the access log: they were too many at once", missing)
            self._unlogged_told = self.unlogged

    # ── live ──

    @asynccontextmanager
    async def looking(self) -> AsyncIterator[None]:
        """Hold this from the look at what is live until `refresh`: what is told as ended in between is not live any more."""
        async with self._looking:
            self._told_meanwhile.clear()
            yield

    def refresh(self, live: Iterable[DirectFlow], transferred: Mapping[int, TcpBytes]) -> None:
        """Count what is live, and what was told since the last time, into the totals.  transferred: bytes by socket cookie."""
        established = 0
        for flow in live:
            if not flow.established or flow.socket_cookie in self._told_meanwhile:
                continue
            established += 1
            counts = self._kind(flow).counts
            known = self._open.get(flow.socket_cookie)
            if known is None:
                known = self._open[flow.socket_cookie] = _Open()
                counts.opened += 1
            now = transferred.get(flow.socket_cookie)
            if now is not None:
                counts.received_bytes += now.sent - known.received_bytes
                counts.sent_bytes += now.received - known.sent_bytes
                known.received_bytes, known.sent_bytes = now.sent, now.received
        self.live = established
        for reporter in Reporter:
            self._counters.set_open(reporter.value, established)
        self._settle_counts()
        for page in self._counters.take():
            self._totals.merge(page, _SLOT)

    def connections(self, live: Iterable[DirectFlow], transferred: Mapping[int, TcpBytes]) -> list[Connection]:
        """The live ones, as `connections` shows them."""
        offset_s = time.time() - time.monotonic()
        records = []
        for flow in live:
            record = self._record(flow, self._kind(flow), offset_s)
            now = transferred.get(flow.socket_cookie)
            if now is not None:
                record.received_bytes, record.sent_bytes = now.sent, now.received
            records.append(record)
        return records

    # ── inside ──

    def _settle_counts(self) -> None:
        for kind in self._kinds.values():
            if kind.counts != _NOTHING:
                for labels in kind.labels:
                    self._counters.add(labels, kind.counts)
                kind.counts = Counts()

    def _kind(self, flow: DirectFlow) -> _Kind:
        key = _KIND(flow)
        kind = self._kinds.get(key)
        if kind is None:
            if len(self._kinds) >= _MAX_KINDS:
                self.forget_labels()
            kind = self._kinds[key] = self._make_kind(flow)
        return kind

    def _make_kind(self, flow: DirectFlow) -> _Kind:
        source, destination = self._pods.get(flow.source_cookie), self._pods.get(flow.destination_cookie)
        service = None
        if flow.original_ip != flow.destination_ip and source is not None and source.workload is not None:
            service = who_is(self._view(), source.workload.network, unpack_ip(flow.original_ip))[0]
        record = Connection(
            id=0,
            direction=Direction.OUTBOUND,
            source=_party("", source),
            destination=_party(join_address(*flow.destination), destination),
            service=service,
            direct=True,
        )
        try:
            return _Kind(record, LineTemplate(self._format, record, unpack_ip(flow.source_ip)))
        except ValueError:
            return _Kind(record, None)

    def _record(self, flow: DirectFlow, kind: _Kind, offset_s: float) -> Connection:
        source, model = kind.record.source, kind.record
        return Connection(
            id=flow.socket_cookie,
            direction=model.direction,
            source=Party(join_address(*flow.source), source.workload, source.identity),
            destination=model.destination,
            service=model.service,
            received_bytes=flow.sent_bytes,
            sent_bytes=flow.received_bytes,
            started=offset_s + flow.started_ns / 1e9,
            ended=offset_s + flow.ended_ns / 1e9 if flow.ended_ns else 0.0,
            direct=True,
        )


_NOTHING = Counts()


def _not_established(flow: DirectFlow) -> Refusal:
    where = join_address(*flow.destination)
    if flow.refused:
        return Refusal(Reason.CONNECT_REFUSED, f"{where} refused the connection: nothing listens there")
    return Refusal(Reason.CONNECT_TIMEOUT, f"{where} did not answer before the source gave up")


def _party(address: str, pod: DirectPod | None) -> Party:
    workload = pod.workload if pod is not None else None
    return Party(address, workload, workload.identity if workload is not None else "")
