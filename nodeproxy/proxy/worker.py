"""One worker process: its parts put together, what the agent tells it, and its end.

It is told of pods, certificates and new state, and tells counters and its connections.  It never asks: what it must decide by
stands in the state's store.  When the agent's end of the channel closes, the worker ends: a node without an agent is closed.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
import socket
import traceback
from collections import deque
from functools import partial

import msgspec

from nodeproxy.kernel.abi import Role
from nodeproxy.kernel.original_destination import OriginalDestination
from nodeproxy.model.channel import Channel
from nodeproxy.model.connection import Connection, Direction
from nodeproxy.model.messages import (
    CONNECTIONS_A_PAGE,
    LISTENERS_LINGER_S,
    MAX_MESSAGE_BYTES,
    NAMES_A_MESSAGE,
    CertificateDropped,
    CertificateIssued,
    Connections,
    ConnectionsWanted,
    Drain,
    NamesAnswered,
    NamesUsed,
    NamesWanted,
    PodAdded,
    PodReleased,
    PodRemoved,
    Ready,
    Report,
    ReportWanted,
    StateChanged,
    ToWorker,
    WorkerSettings,
)
from nodeproxy.model.reason import Reason, Refusal
from nodeproxy.observe.access_log import format_dry_run_json, format_dry_run_text, format_json, format_text
from nodeproxy.observe.counters import Counters
from nodeproxy.observe.kind import Kind
from nodeproxy.observe.log_writer import LogWriter
from nodeproxy.proxy.certificates import Certificates
from nodeproxy.proxy.context import Context
from nodeproxy.proxy.inbound import Inbound
from nodeproxy.proxy.outbound import Outbound
from nodeproxy.proxy.pods import Listener, Pod, Spare
from nodeproxy.proxy.poller import IN, OUT, Poller
from nodeproxy.proxy.sessions import Sessions
from nodeproxy.proxy.waiting import Waiting
from nodeproxy.state.balance import Balancer
from nodeproxy.state.reader import StateReader

log = logging.getLogger(__name__)

# What one pod may have open in one worker: beyond it, it is a pod that attacks its node.
MAX_POD_CONNECTIONS = 32_768
# A connection takes two descriptors: no pod gets more than a quarter of the worker's, so that others are served whatever it does.
_DESCRIPTOR_SHARE = 8
# Unasked reports: what is lost of the counters when a worker is killed.
_REPORT_INTERVAL_S = 1.0
_POOL_SWEEP_S = 10.0
# On demand: how often the agent is told which names are in use.  It asks anew about what is used each minute.
_USED_INTERVAL_S = 20.0
_MAX_QUESTIONS = 1024
# The records of a page of connections; its envelope takes the rest.
_PAGE_BYTES = MAX_MESSAGE_BYTES - 1024
_NO_DESCRIPTORS = Refusal(Reason.NO_DESCRIPTORS, "the worker has no file descriptor left; raise its limit of open files")


class Worker:
    """`run` serves until the drain is over or the agent is gone."""

    def __init__(self, settings: WorkerSettings, channel: socket.socket, log_fd: int) -> None:
        channel.setblocking(False)
        self._channel: Channel[ToWorker] = Channel(channel, ToWorker)
        self._outbox: deque[msgspec.Struct] = deque()
        self._log = LogWriter(log_fd)
        self._format = format_json if settings.log_json else format_text
        self._format_dry_run = format_dry_run_json if settings.log_json else format_dry_run_text
        self._poller = Poller(_log_defect)
        self._counters = Counters()
        self._state = StateReader(settings.store)
        self._context = Context(
            poller=self._poller,
            state=self._state,
            balancer=Balancer(),
            sessions=Sessions(self._counters, self._write_log, self._write_dry_run),
            certificates=Certificates(),
            same_node_hbone=settings.same_node_hbone,
            waiting=Waiting(self._poller, self._ask),
            names=set() if settings.on_demand else None,
            max_pod_connections=min(MAX_POD_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _DESCRIPTOR_SHARE),
        )
        originals = OriginalDestination(settings.original_destination_fd)
        self._outbound = Outbound(self._context, originals)
        self._inbound = Inbound(self._context, originals, self._outbound)
        self._spare = Spare()
        self._dropped = 0  # lines that were told of
        self._encoder = msgspec.msgpack.Encoder()
        self._leaving: dict[int, Pod] = {}  # by netns cookie

    def run(self) -> None:
        """Serve."""
        self._poller.add(self._channel.sock.fileno(), self, IN)
        self._poller.later(_REPORT_INTERVAL_S, self._report_regularly)
        self._poller.later(_POOL_SWEEP_S, self._sweep)
        if self._context.names is not None:
            self._poller.later(_USED_INTERVAL_S, self._tell_used)
        self._send(Ready())
        self._poller.run()
        self._log.close()

    # ── the channel ──

    def on_event(self, events: int) -> None:
        """The agent speaks, or listens again."""
        if events & OUT:
            self._send_outbox()
        while True:
            try:
                received = self._channel.receive()
            except BlockingIOError:
                return
            except OSError:
                received = None
            if received is None:
                self._poller.stop()
                return
            self._handle(*received)

    def on_fault(self, error: Exception) -> None:
        """A message that can't be acted upon: the agent must not believe that it was.  End; the agent makes another worker."""
        self._poller.stop()

    def _handle(self, message: ToWorker, fds: list[int]) -> None:
        match message:
            case PodAdded():
                self._add_pod(message, fds)
            case PodRemoved():
                self._remove_pod(message)
            case CertificateIssued():
                self._context.certificates.put(message)
            case CertificateDropped():
                self._context.certificates.drop(message.identity)
            case StateChanged():
                view = self._context.renewed_view()
                self._context.sessions.recheck(view, self._state.take_touched())
            case NamesAnswered():
                if message.refusal:
                    self._context.waiting.refused(message.names, message.pod, message.refusal)
                else:
                    self._context.waiting.answered(message.names)
            case ReportWanted():
                self._report(message.request)
            case ConnectionsWanted():
                self._send_connections(message.request)
            case Drain():
                self._drain(message)

    def _send(self, message: msgspec.Struct) -> None:
        self._outbox.append(message)
        self._send_outbox()

    def _send_outbox(self) -> None:
        outbox = self._outbox
        fd = self._channel.sock.fileno()
        while outbox:
            try:
                self._channel.send(outbox[0])
            except BlockingIOError:
                self._poller.change(fd, IN | OUT)
                return
            except OSError as error:
                if error.errno != errno.EMSGSIZE:
                    # The agent is gone: reading the channel says so too.
                    outbox.clear()
                    return
                log.error("a %s is too long for the channel to the agent and is lost", type(outbox[0]).__name__)
            outbox.popleft()
        self._poller.change(fd, IN)

    # ── pods ──

    def _add_pod(self, message: PodAdded, fds: list[int]) -> None:
        netns_fd, *listener_fds = fds
        known = self._context.pods.get(message.uid)
        if known is not None and known.cookie == message.cookie:
            os.close(netns_fd)
            pod = known
            pod.addresses = message.addresses
            self._poller.later(LISTENERS_LINGER_S, partial(_close_all, pod.listeners))
            pod.listeners = []
        else:
            pod = Pod(message.uid, message.cookie, message.addresses, netns_fd)
            self._context.pods[message.uid] = pod
        self._outbound.forget()
        accepted = {
            Role.OUTBOUND: self._outbound.accepted,
            Role.HBONE: self._inbound.accepted_tunnel,
            Role.PLAINTEXT: self._inbound.accepted_plain,
        }
        for role, fd in zip(Role, listener_fds, strict=True):
            sock = socket.socket(fileno=fd)
            full = self._full_outbound if role is Role.OUTBOUND else self._full_inbound
            pod.listeners.append(Listener(self._poller, pod, sock, self._spare, accepted[role], full))

    def _remove_pod(self, message: PodRemoved) -> None:
        pod = self._context.pods.get(message.uid)
        if pod is None:
            self._send(PodReleased(message.cookie))
            return
        self._retire(pod)
        if message.abort:
            self._context.sessions.end_pod(message.uid)
            for tunnel in list(pod.tunnels):
                tunnel.lose(Refusal(Reason.POD_LEFT, "the pod has left the mesh or ended"))
        # Streams and sockets that stand hold the namespace themselves; nothing new is made in it.
        self._context.forget_pod(message.uid)
        pod.close()
        self._leaving[message.cookie] = pod
        self._release_pods()

    def _release_pods(self) -> None:
        """Tell of pods that left and whose last connection has ended since."""
        for cookie, pod in list(self._leaving.items()):
            if not self._context.sessions.involve(pod):
                del self._leaving[cookie]
                self._send(PodReleased(cookie))

    def _retire(self, pod: Pod) -> None:
        pod.leaving = True
        self._outbound.forget()
        pod.close_listeners()
        self._outbound.pool.shut_idle(pod.uid)
        for tunnel in list(pod.tunnels):
            tunnel.say_goaway()

    def _full_outbound(self, pod: Pod, peer: tuple[str, int]) -> None:
        self._context.refuse_full(pod, peer, Direction.OUTBOUND, _NO_DESCRIPTORS)

    def _full_inbound(self, pod: Pod, peer: tuple[str, int]) -> None:
        self._context.refuse_full(pod, peer, Direction.INBOUND, _NO_DESCRIPTORS)

    # ── reports ──

    def _write_log(self, connection: Connection, kind: Kind | None) -> None:
        self._write_line(self._format(connection, kind))

    def _write_dry_run(self, connection: Connection, refusal: Refusal) -> None:
        self._write_line(self._format_dry_run(connection, refusal))

    def _write_line(self, line: bytes) -> None:
        if not self._log.pending:
            self._poller.defer(self._log.flush)  # once a pass, for all its lines
        self._log.write(line)

    def _report(self, request: int) -> None:
        for page in self._context.sessions.take_counters():
            self._send(Report(request, page, last=False))
        if request:
            self._send(Report(request, b"", last=True))

    def _report_regularly(self) -> None:
        if self._log.pending:  # what its reader did not take before
            self._log.flush()
        self._poller.later(_REPORT_INTERVAL_S, self._report_regularly)
        self._release_pods()
        if self._log.dropped > self._dropped:
            log.warning(
                "%d lines of the access log were dropped: nobody reads them fast enough", self._log.dropped - self._dropped
            )
            self._dropped = self._log.dropped
        if not self._outbox:  # an agent that does not read is told the sums later: what waits for it must not grow
            self._report(0)

    def _send_connections(self, request: int) -> None:
        page: list[Connection] = []
        size = 0
        for record in self._context.sessions.snapshot():
            length = len(self._encoder.encode(record))
            if page and (size + length > _PAGE_BYTES or len(page) == CONNECTIONS_A_PAGE):
                self._send(Connections(request, tuple(page), last=False))
                page, size = [], 0
            page.append(record)
            size += length
        self._send(Connections(request, tuple(page), last=True))

    def _sweep(self) -> None:
        self._poller.later(_POOL_SWEEP_S, self._sweep)
        self._outbound.pool.release_idle()

    # ── names that are asked for on demand ──

    def _ask(self, owner: str, names: tuple[str, ...]) -> None:
        if len(self._outbox) < _MAX_QUESTIONS:  # an agent that does not read: those who wait end by their own deadline
            self._send(NamesWanted(owner, names))

    def _tell_used(self) -> None:
        """Tell the agent, and decide anew, so that what is used next is noted again."""
        self._poller.later(_USED_INTERVAL_S, self._tell_used)
        names = tuple(self._context.take_names())
        self._outbound.forget()
        if not self._outbox:  # an agent that does not read can do without: what waits for it must not grow
            for start in range(0, len(names), NAMES_A_MESSAGE):
                self._send(NamesUsed(names[start : start + NAMES_A_MESSAGE]))

    # ── the end ──

    def _drain(self, message: Drain) -> None:
        self._poller.later(message.grace_s, self._grace_is_over)
        if message.linger_s:
            for pod in self._context.pods.values():
                _pass_on(pod)
            self._poller.later(message.linger_s, self._end_lingering)
            return
        for pod in self._context.pods.values():
            self._retire(pod)
        self._leave_when_empty()

    def _end_lingering(self) -> None:
        """Nothing comes to these listeners any more."""
        for pod in self._context.pods.values():
            pod.close_listeners()
        self._outbound.pool.shut_idle()
        self._leave_when_empty()

    def _leave_when_empty(self) -> None:
        """A client of a tunnel that was passed on may not have asked for its stream yet."""
        if len(self._context.sessions) == 0 and not any(pod.passed_on and pod.tunnels for pod in self._context.pods.values()):
            self._finish()
        else:
            self._poller.later(0.1, self._leave_when_empty)

    def _grace_is_over(self) -> None:
        self._context.sessions.end_all(Refusal(Reason.DRAINED, "the node's proxy was told to end and the grace period is over"))
        self._poller.defer(self._finish)

    def _finish(self) -> None:
        self._report(0)
        self._poller.stop()


def _pass_on(pod: Pod) -> None:
    """Its clients' next tunnels are to be another agent's."""
    pod.passed_on = True
    for tunnel in list(pod.tunnels):
        tunnel.say_goaway(at_once=False)


def _close_all(listeners: list[Listener]) -> None:
    for listener in listeners:
        listener.close()


def _log_defect(error: Exception) -> None:
    log.error("a defect, which ended one connection: %r\n%s", error, "".join(traceback.format_exception(error)))
