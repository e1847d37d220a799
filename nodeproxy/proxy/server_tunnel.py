"""A tunnel that arrived at a pod of this node: its client proves who it is; each CONNECT is judged and led to the application."""

from __future__ import annotations

import socket
import ssl

from nodeproxy.decide.inbound import Admission, admit_hbone, status_for
from nodeproxy.identity.tls import verify_client
from nodeproxy.model.address import join_address
from nodeproxy.model.connection import Direction, Party, Security
from nodeproxy.model.reason import Reason, Refusal
from nodeproxy.model.workload import Workload
from nodeproxy.proxy.app_socket import AppSocket
from nodeproxy.proxy.context import Context
from nodeproxy.proxy.dial import NO_RESULT, connect_refusal
from nodeproxy.proxy.pods import Pod
from nodeproxy.proxy.session import Session
from nodeproxy.proxy.tunnel import Headers, Tunnel
from nodeproxy.proxy.tunnel_stream import TunnelStream
from nodeproxy.wire.baggage import parse_baggage
from nodeproxy.wire.connection import Role
from nodeproxy.wire.frames import ErrorCode
from nodeproxy.wire.hbone import ConnectRequest, parse_connect, status_block
from nodeproxy.wire.proxy_protocol import encode_proxy_v2
from nodeproxy.wire.stream import Stream


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

    role = Role.SERVER

    def __init__(
        self,
        context: Context,
        pod: Pod,
        workload: Workload,
        sock: socket.socket,
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
        self._client_identity = ""
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

    def on_lost(self, refusal: Refusal) -> None:
        """A handshake that failed, or a peer that broke HTTP/2, is a refusal of its own; else streams tell."""
        self._pod.handshakes.pop(self, None)
        self._pod.tunnels.pop(self, None)
        if not self.established or refusal.reason.startswith("h2_"):
            source = Party(join_address(*self._peer), None, self._client_identity)
            record = self._context.record(Direction.INBOUND, source, self._destination(self._local[1]))
            record.security = Security.MUTUAL_TLS if self.established else Security.NONE
            self._context.sessions.refused_unheard(record, refusal)

    def _destination(self, port: int) -> Party:
        workload = self._context.workload(self._uid)
        return Party(join_address(self._local[0], port), workload, workload.identity if workload else "")

    # ── streams ──

    def on_request(self, stream: Stream, headers: Headers, end_stream: bool) -> None:
        """A request: whatever becomes of it has a record."""
        context = self._context
        peer = join_address(*self._peer)
        record = context.record(Direction.INBOUND, Party(peer, None, self._client_identity), self._destination(self._local[1]))
        record.security = Security.MUTUAL_TLS
        record.hbone_address = join_address(*self._local)
        session = Session(context.sessions, self._pod, record)
        half = ServerStream(self, session, stream)
        session.source = half
        session.guard(lambda: self._admit(session, half, headers))

    def _admit(self, session: Session, half: ServerStream, headers: Headers) -> None:
        context = self._context
        request = parse_connect(headers)
        if isinstance(request, Refusal):
            session.refuse(request)
        elif self._pod.leaving:
            session.refuse(Refusal(Reason.DRAINED, "the pod leaves the mesh or its node drains"))
        elif (over := context.over_limit(self._pod)) is not None:
            session.refuse(over)
        else:
            self._judge(session, half, request)

    def _judge(self, session: Session, half: ServerStream, request: ConnectRequest) -> None:
        context, record = self._context, session.record
        view = context.view()
        workload = view.workload(self._uid)
        if workload is None:
            session.refuse(Refusal(Reason.UNKNOWN_WORKLOAD, f"this pod's workload {self._uid} is not in the state"))
            return
        source = view.workload_at(workload.network, self._peer[0]) or view.workload_at("", self._peer[0])
        if source is not None and source.identity == self._client_identity:
            record.source = Party(record.source.address, source, self._client_identity)
        elif request.baggage:
            record.source = Party(
                record.source.address, parse_baggage(request.baggage, self._client_identity), self._client_identity
            )
        admission = admit_hbone(
            view,
            workload,
            request.authority,
            self._local[0],
            self._client_identity,
            self._peer[0],
            forwarded_host=request.forwarded_host,
        )
        if isinstance(admission, Refusal):
            # What it wanted, for the log: a policy that denied it may be about the port.
            record.destination = self._destination(request.port)
            session.refuse(admission)
            return
        context.sessions.admitted(session, admission.subject, workload.uid)
        record.service = admission.service
        record.destination = Party(join_address(*admission.address), workload, workload.identity)
        context.sessions.dry_run(record, admission.dry_run)
        block = context.ok_block(workload)
        session.pending = context.dial_application(
            self._pod,
            self._peer[0],
            admission.address,
            lambda upstream, refusal: self._joined(session, half, admission, block, upstream, refusal),
        )

    def _joined(
        self,
        session: Session,
        half: ServerStream,
        admission: Admission,
        block: bytes,
        upstream: socket.socket | None,
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
        half.accept(block)
        session.relay(half, AppSocket(self._context.poller, upstream, session))
