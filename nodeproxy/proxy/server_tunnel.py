"""A tunnel that arrived at a pod of this node: its client proves who it is; each CONNECT is judged and led to the application."""

from __future__ import annotations

import socket
import ssl
from functools import partial
from typing import ClassVar

from nodeproxy.decide.demand import Unanswered
from nodeproxy.decide.inbound import Admission, status_for
from nodeproxy.identity.tls import verify_client
from nodeproxy.model.address import join_address
from nodeproxy.model.connection import Connection, Direction, Party, Security
from nodeproxy.model.reason import Reason, Refusal
from nodeproxy.model.workload import Workload
from nodeproxy.proxy.app_socket import AppSocket
from nodeproxy.proxy.context import Context
from nodeproxy.proxy.dial import NO_RESULT, connect_refusal
from nodeproxy.proxy.pods import Pod
from nodeproxy.proxy.session import Session
from nodeproxy.proxy.tunnel import Headers, Tunnel
from nodeproxy.proxy.tunnel_stream import TunnelStream
from nodeproxy.proxy.verdicts import Verdict, Verdicts
from nodeproxy.proxy.waiting import Parked
from nodeproxy.wire.connection import Role
from nodeproxy.wire.frames import ErrorCode
from nodeproxy.wire.hbone import status_block
from nodeproxy.wire.proxy_protocol import encode_proxy_v2
from nodeproxy.wire.stream import Stream

_LEAVING = Refusal(Reason.DRAINED, "the pod leaves the mesh or its node drains")


class ServerStream(TunnelStream):
    """A CONNECT of a client: refused, it is answered by a status; later, reset."""

    __slots__ = ("_answered",)

    def __init__(self, tunnel: Tunnel, session: Session, stream: Stream) -> None:
        super().__init__(tunnel, session)
        self._answered = False
        self.stream = stream
        stream.owner = self

    def accept(self, block: bytes) -> None:
        """200: the upstream connection stands."""
        if self.stream is not None:
            self._answered = True
            self.tunnel.codec.respond(self.stream, block)
            self.tunnel.mark_dirty()

    def abort(self, code: int = ErrorCode.CONNECT_ERROR) -> None:
        """Refuse by status if nothing was said yet, else reset."""
        reason = self.session.record.reason
        if not self._answered and self.stream is not None and reason is not None:
            self._answered = True
            status = status_for(Refusal(reason, ""))
            self.tunnel.codec.respond(self.stream, status_block(status), end_stream=True)
            # RFC 9113, section 8.1: "A server MAY send a complete response prior to the client sending an entire request" and
            # then "request that the client abort transmission of a request without error by sending a RST_STREAM with an error
            # code of NO_ERROR".
            code = ErrorCode.NO_ERROR
        super().abort(code)


class ServerTunnel(Tunnel):
    """One client's connection to port 15008 of `pod`."""

    role: ClassVar[Role] = Role.SERVER

    def __init__(
        self,
        context: Context,
        pod: Pod,
        workload: Workload,
        sock: socket.SocketType,
        tls: ssl.SSLContext,
        peer: tuple[str, int],
        local: tuple[str, int],
    ) -> None:
        self._context = context
        self._pod = pod
        self._uid = workload.uid
        self._trust_domain = workload.trust_domain
        self._peer = peer
        self._local = local
        self._local_address = join_address(*local)
        self._client_identity = ""
        self._verdicts: Verdicts | None = None
        super().__init__(context.poller, context.budget, sock, tls)
        pod.handshakes[self] = None
        pod.tunnels[self] = None

    # ── what the tunnel says ──

    def verify_peer(self) -> None:
        """A client of this trust domain."""
        self._client_identity = verify_client(self.tls, self._trust_domain)

    def on_established(self) -> None:
        """The handshake is no longer one of the pod's."""
        self._pod.handshakes.pop(self, None)
        self._verdicts = Verdicts(self._context, self._uid, self._client_identity, self._peer, self._local)
        if self._pod.passed_on:
            self._leaving, self._at_once = True, False

    def on_lost(self, refusal: Refusal) -> None:
        """A handshake that failed, or a peer that broke HTTP/2, is a refusal of its own; else streams tell."""
        self._pod.handshakes.pop(self, None)
        self._pod.tunnels.pop(self, None)
        if not self.established or refusal.reason.startswith("h2_"):
            source = Party(join_address(*self._peer), None, self._client_identity)
            workload = self._context.workload(self._uid)
            destination = Party(self._local_address, workload, workload.identity if workload else "")
            record = self._context.record(Direction.INBOUND, source, destination)
            record.security = Security.MUTUAL_TLS if self.established else Security.NONE
            self._context.sessions.refused_unheard(record, refusal)

    # ── streams ──

    def on_request(self, stream: Stream, headers: Headers, end_stream: bool) -> None:
        """A request: whatever becomes of it has a record."""
        context, verdicts = self._context, self._verdicts
        if verdicts is None:  # never: there are no streams before the peer is verified
            raise LookupError("a request before the handshake's end")
        verdict = verdicts.get(headers)
        admission = verdict.admission
        record = Connection(
            id=context.sessions.new_id(),
            direction=Direction.INBOUND,
            source=verdict.source,
            destination=verdict.destination,
            security=Security.MUTUAL_TLS,
            service=admission.service if admission is not None else None,
            hbone_address=self._local_address,
        )
        session = Session(context.sessions, self._pod, record)
        session.source = half = ServerStream(self, session, stream)
        refusal = (_LEAVING if self._pod.leaving else context.over_limit(self._pod)) or verdict.refusal
        if isinstance(refusal, Unanswered):
            again = partial(self._judge_again, half, headers)
            context.waiting.park(session, f"to {self._uid}", refusal.names, again)
            return
        if refusal is not None or admission is None:
            session.refuse(refusal or NO_RESULT)
            return
        try:
            self._admit(session, half, verdict, admission)
        except Exception as error:
            session.failed(error)

    def _judge_again(self, half: ServerStream, headers: Headers, parked: Parked) -> None:
        session, verdicts = parked.session, self._verdicts
        if verdicts is None:  # never: as above
            raise LookupError("a request before the handshake's end")
        verdict = verdicts.get(headers)
        admission = verdict.admission
        record = session.record
        record.source, record.destination = verdict.source, verdict.destination
        record.service = admission.service if admission is not None else None
        refusal = _LEAVING if self._pod.leaving else verdict.refusal
        if isinstance(refusal, Unanswered):
            self._context.waiting.park_again(parked, refusal.names)
        elif refusal is not None or admission is None:
            session.refuse(refusal or NO_RESULT)
        else:
            self._admit(session, half, verdict, admission)

    def _admit(self, session: Session, half: ServerStream, verdict: Verdict, admission: Admission) -> None:
        context = self._context
        context.sessions.admitted(session, admission.subject, self._uid)
        context.sessions.dry_run(session.record, admission.dry_run)
        joined = partial(self._joined, session, half, verdict, admission)
        session.pending = context.dial_application(self._pod, self._peer[0], admission.address, joined)

    def _joined(
        self,
        session: Session,
        half: ServerStream,
        verdict: Verdict,
        admission: Admission,
        upstream: socket.SocketType | None,
        refusal: Refusal | None,
    ) -> None:
        if upstream is None:
            session.refuse(refusal or NO_RESULT)
            return
        if admission.proxy_protocol:
            # Before `relay`, which passes on what the client has sent already.  An empty socket takes so little at once, or is
            # broken.
            try:
                upstream.send(encode_proxy_v2(self._peer, admission.target, self._client_identity))
            except OSError as error:
                upstream.close()
                session.refuse(connect_refusal(error.errno or 0, admission.address))
                return
        half.accept(verdict.block)
        session.relay(half, AppSocket(self._context.poller, upstream, session))
