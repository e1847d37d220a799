"""What a pod sends: the decision, then the way that it says (through, to a pod of this node, plain, or by tunnel)."""

from __future__ import annotations

import os
import socket
from functools import partial

from nodeproxy.decide.inbound import admit_local
from nodeproxy.decide.outbound import Route, RouteKind, outbound
from nodeproxy.kernel.original_destination import OriginalDestination
from nodeproxy.model.address import join_address
from nodeproxy.model.connection import Direction, Party, Security
from nodeproxy.model.reason import Reason, Refusal
from nodeproxy.model.workload import Workload
from nodeproxy.proxy.app_socket import AppSocket
from nodeproxy.proxy.client_tunnel import ClientStream, ClientTunnel
from nodeproxy.proxy.context import Context
from nodeproxy.proxy.pods import Pod
from nodeproxy.proxy.pool import Pool, PooledTunnel, PoolKey
from nodeproxy.proxy.session import Session
from nodeproxy.wire.baggage import encode_baggage
from nodeproxy.wire.frames import ErrorCode
from nodeproxy.wire.hbone import connect_prefix, connect_suffix, forwarded_for
from nodeproxy.wire.trace import child_traceparent

# Static parts of CONNECT requests that are remembered; one for each pair of source and destination in use.
_MAX_PREFIXES = 4096


class Outbound:
    """Serves the outbound listeners of all pods of a worker."""

    def __init__(self, context: Context, originals: OriginalDestination) -> None:
        self._context = context
        self._originals = originals
        self._prefixes: dict[tuple[str, str], tuple[Workload, bytes]] = {}
        self.pool = Pool(self._make_tunnel, context.poller.clock)

    def accepted(self, pod: Pod, sock: socket.socket, peer: tuple[str, int]) -> None:
        """A steered connection arrived."""
        self.serve(pod, sock, peer, self._originals.get(sock.fileno()))

    def serve(self, pod: Pod, sock: socket.socket, peer: tuple[str, int], original: tuple[str, int] | None) -> None:
        """A connection that `pod` has made to `original`; None: nobody knows where to."""
        context = self._context
        source = Party(join_address(*peer))
        record = context.record(Direction.OUTBOUND, source, Party(join_address(*original) if original else ""))
        session = Session(context.sessions, pod, record)
        session.source = AppSocket(context.poller, sock, session)
        if original is None:
            session.refuse(
                Refusal(
                    Reason.NO_ORIGINAL_DESTINATION, "the pod connected to the proxy's own port; connect to the service itself"
                )
            )
            return
        if (over := context.over_limit(pod)) is not None:
            session.refuse(over)
            return
        session.guard(lambda: self._decide(session, peer[0], original))

    def _decide(self, session: Session, client_ip: str, original: tuple[str, int]) -> None:
        context, record = self._context, session.record
        view = context.view()
        workload = view.workload(session.pod.uid)
        if workload is None:
            session.refuse(
                Refusal(
                    Reason.UNKNOWN_WORKLOAD,
                    f"this pod's workload {session.pod.uid} is not in the state; its source has removed it or not sent it yet",
                )
            )
            return
        record.source = Party(record.source.address, workload, workload.identity)
        route = outbound(
            view,
            workload,
            original[0],
            original[1],
            context.balancer,
            context.is_local,
            same_node_hbone=context.same_node_hbone,
        )
        if isinstance(route, Refusal):
            session.refuse(route)
            return
        record.service = route.service
        record.destination = Party(join_address(*route.address), route.destination)
        if route.kind is RouteKind.LOCAL and route.destination is not None:
            self._to_local_pod(session, client_ip, route, workload, route.destination)
        elif route.kind is RouteKind.HBONE:
            self._by_tunnel(session, route, workload)
        else:
            session.pending = context.dial_from(session.pod, route.address, partial(context.join, session))

    # ── in plain ──

    def _to_local_pod(self, session: Session, client_ip: str, route: Route, source: Workload, destination: Workload) -> None:
        context = self._context
        pod = context.pods[destination.uid]
        if route.address[0] not in pod.addresses:
            # From its namespace the last leg would go astray, and be awaited by nobody else's permission.
            detail = f"the state gives {route.address[0]} to {pod.uid}, whose namespace has {', '.join(pod.addresses) or 'none'}"
            session.refuse(Refusal(Reason.CONNECT_UNREACHABLE, detail, pod.uid))
            return
        admission = admit_local(context.view(), destination, route.address[0], route.address[1], source, client_ip)
        if isinstance(admission, Refusal):
            session.refuse(admission)
            return
        context.sessions.admitted(session, admission.subject, destination.uid)
        session.record.destination = Party(join_address(*admission.address), destination, destination.identity)
        context.sessions.dry_run(session.record, admission.dry_run)
        session.pending = context.dial_application(
            pod,
            client_ip,
            admission.address,
            partial(context.join, session),
        )

    # ── by tunnel ──

    def _by_tunnel(self, session: Session, route: Route, source: Workload, retry: bool = True) -> None:
        record = session.record
        record.security = Security.MUTUAL_TLS
        record.hbone_address = join_address(*route.peer)
        if route.destination is not None:
            record.destination = Party(record.destination.address, route.destination, route.destination.identity)
        key = PoolKey(session.pod.uid, source.identity, route.peer, route.identities)

        def have(tunnel: PooledTunnel | None, refusal: Refusal | None) -> None:
            if isinstance(tunnel, ClientTunnel):
                session.guard(lambda: self._open_stream(session, tunnel, route, source, retry))
            else:
                session.refuse(refusal or Refusal(Reason.INTERNAL, "the tunnel ended without a reason"))

        session.pending = self.pool.acquire(key, have)

    def _open_stream(self, session: Session, tunnel: ClientTunnel, route: Route, source: Workload, retry: bool) -> None:
        record = session.record
        record.destination = Party(record.destination.address, record.destination.workload, tunnel.peer_identity)
        half = ClientStream(tunnel, session, lambda refusal: self._answered(session, half, refusal))

        def again() -> None:
            """A pooled tunnel may end just as it is used: what it did not begin to serve may be asked for elsewhere, once."""
            session.destination = None
            self._by_tunnel(session, route, source, retry=False)

        half.on_unserved = again if retry else None
        session.destination = half
        tunnel.connect(half, self._prefix(route.authority, source) + self._suffix(record.source.address))

    def _answered(self, session: Session, half: ClientStream, refusal: Refusal | None) -> None:
        if refusal is not None:
            half.abort(ErrorCode.CANCEL)
            session.refuse(refusal)
        elif session.source is not None and not session.ended:
            session.relay(session.source, half)

    def _prefix(self, authority: str, source: Workload) -> bytes:
        key = (authority, source.uid)
        known = self._prefixes.get(key)
        if known is None or known[0] is not source:  # the state has another one by now
            if len(self._prefixes) >= _MAX_PREFIXES:
                self._prefixes.clear()
            known = self._prefixes[key] = (source, connect_prefix(authority, encode_baggage(source)))
        return known[1]

    def _suffix(self, client_address: str) -> bytes:
        return connect_suffix(forwarded_for(client_address), child_traceparent(None, os.urandom(24)))

    def _make_tunnel(self, key: PoolKey) -> None:
        context = self._context
        contexts = context.certificates.get(key.source_identity)
        pod = context.pods.get(key.pod_uid)
        if pod is None:
            self.pool.failed(key, Refusal(Reason.POD_LEFT, "the pod has left the mesh or ended"))
            return
        if contexts is None:
            detail = f"there is no certificate for {key.source_identity} yet; `status` says what the CA answers"
            self.pool.failed(key, Refusal(Reason.NO_CERTIFICATE, detail))
            return

        def connected(sock: socket.socket | None, refusal: Refusal | None) -> None:
            if sock is None:
                self.pool.failed(key, _tunnel_refusal(refusal, key.peer))
            else:
                ClientTunnel(context.poller, context.budget, sock, contexts.client, key, self.pool).start_handshake()

        context.dial_from(pod, key.peer, connected)


def _tunnel_refusal(refusal: Refusal | None, peer: tuple[str, int]) -> Refusal:
    where = join_address(*peer)
    if refusal is None:
        return Refusal(Reason.INTERNAL, f"the connect to {where} ended without a result")
    if refusal.reason is Reason.CONNECT_TIMEOUT:
        return Refusal(
            Reason.HBONE_TIMEOUT,
            f"connect to {where} timed out; a NetworkPolicy or firewall may block HBONE (TCP port {peer[1]})",
        )
    return refusal
