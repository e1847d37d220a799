"""What a pod sends: its plan, then the way that it says (through, to a pod of this node, plain, or by tunnel)."""

from __future__ import annotations

import random
import socket
from functools import partial

from nodeproxy.decide.demand import Unanswered
from nodeproxy.decide.inbound import Admission
from nodeproxy.kernel.original_destination import OriginalDestination
from nodeproxy.model.address import join_address
from nodeproxy.model.connection import Connection, Direction, Party
from nodeproxy.model.reason import Reason, Refusal
from nodeproxy.proxy.app_socket import AppSocket
from nodeproxy.proxy.attempt import Attempt
from nodeproxy.proxy.client_tunnel import ClientStream, ClientTunnel
from nodeproxy.proxy.context import Context
from nodeproxy.proxy.dial import Dial, OnDone
from nodeproxy.proxy.plans import Plan, Plans
from nodeproxy.proxy.pods import Pod
from nodeproxy.proxy.pool import Pool, PooledTunnel, PoolKey
from nodeproxy.proxy.session import Session
from nodeproxy.proxy.waiting import Parked
from nodeproxy.wire.frames import ErrorCode
from nodeproxy.wire.hbone import connect_suffix, forwarded_for
from nodeproxy.wire.trace import new_traceparent

# All nodes are told of a label at about the same time, and a pod's own node needs a moment to serve it, or to have its
# certificate; as it leaves, others hear of it a moment later.  Who connects meanwhile waits, and is decided on anew.
SERVED_WITHIN_S = 1.0
_ASK_AGAIN_S = 0.05
_SOON = frozenset({Reason.CONNECT_REFUSED, Reason.NO_CERTIFICATE, Reason.POD_LEFT})
# Of a service, for one connection: a connect that is refused takes no time, but there may be thousands.
MAX_ENDPOINTS = 3
# What befalls a connection before the endpoint has had a byte of it, and at once: who waits 10 s for an answer wants no other
# wait.  No refusal of policy or identity: at another endpoint it might be none.
_UNREACHED = frozenset(
    {
        Reason.CONNECT_REFUSED,
        Reason.CONNECT_UNREACHABLE,
        Reason.HBONE_REFUSED,
        Reason.RESET_BY_DESTINATION,
        Reason.TLS_FAILURE,
    }
)


class Outbound:
    """Serves the outbound listeners of all pods of a worker."""

    def __init__(self, context: Context, originals: OriginalDestination) -> None:
        self._context = context
        self._originals = originals
        self._plans = Plans(context)
        self._random_bits = random.Random().getrandbits  # unpredictable is not asked of a trace's id, and a system call is dear
        self.pool = Pool(self._make_tunnel, context.poller.clock)

    def accepted(self, pod: Pod, sock: socket.SocketType, peer: tuple[str, int]) -> None:
        """A steered connection arrived."""
        self.serve(pod, sock, peer, self._originals.get(sock.fileno()))

    def serve(self, pod: Pod, sock: socket.SocketType, peer: tuple[str, int], original: tuple[str, int] | None) -> None:
        """A connection that `pod` has made to `original`; None: nobody knows where to."""
        context = self._context
        plan = self._plans.get(pod, peer[0], original)
        record = Connection(
            id=context.sessions.new_id(),
            direction=Direction.OUTBOUND,
            source=plan.party(join_address(*peer)),
            destination=plan.destination,
            security=plan.security,
            service=plan.service,
            hbone_address=plan.hbone_address,
        )
        session = Session(context.sessions, pod, record)
        session.source = AppSocket(context.poller, sock, session)
        session.guard(lambda: self._go_on(Attempt(session, peer[0], original, plan)))

    # ── deciding anew ──

    def _go_on(self, attempt: Attempt, parked: Parked | None = None) -> None:
        """As its plan says; parked: as what it has waited until now."""
        context, session, refusal = self._context, attempt.session, attempt.plan.refusal
        if refusal is None or isinstance(refusal, Unanswered):
            refusal = context.over_limit(session.pod) or refusal
        if refusal is None:
            self._start(attempt)
        elif not isinstance(refusal, Unanswered):
            session.refuse(refusal)
        elif parked is not None:
            context.waiting.park_again(parked, refusal.names)
        else:
            context.waiting.park(session, session.pod.uid, refusal.names, partial(self._decide_again, attempt))

    def _decide_again(self, attempt: Attempt, parked: Parked | None = None) -> None:
        """It has waited; what it has tried, and how long it may wait for its peer's node, stays as it is."""
        session = attempt.session
        if session.pod.leaving:
            session.refuse(Refusal(Reason.POD_LEFT, "the pod has left the mesh or ended"))
            return
        attempt.plan = plan = self._plans.get(session.pod, attempt.client_ip, attempt.original)
        _describe(session.record, plan)
        self._go_on(attempt, parked)

    # ── whom nobody serves yet, or any more ──

    def _wait(self, attempt: Attempt) -> None:
        attempt.session.pending = self._context.poller.later(_ASK_AGAIN_S, partial(self._start_again, attempt))

    def _start_again(self, attempt: Attempt) -> None:
        session = attempt.session
        session.pending = None
        session.guard(partial(self._decide_again, attempt))

    # ── all the rest ──

    def forget(self) -> None:
        """Membership of this node's pods has changed: what was decided may be old."""
        self._plans.forget()

    def _start(self, attempt: Attempt) -> None:
        context, session, plan = self._context, attempt.session, attempt.plan
        if plan.key is not None:
            attempt.until = attempt.until or context.poller.clock() + SERVED_WITHIN_S
            self._by_tunnel(attempt, plan.key)
        elif plan.admission is not None:
            self._to_local_pod(attempt, plan.admission)
        elif plan.route is not None:
            session.pending = None
            _await(session, context.dial_from(session.pod, plan.route.address, self._join(attempt)))

    # ── an endpoint that is not reached ──

    def _elsewhere(self, attempt: Attempt, refusal: Refusal) -> bool:
        """Lead it to another endpoint of the service: of the one that was not reached nobody has had a byte.

        False: that is not what happened, or there is no other one, or enough were tried.
        """
        session, plan = attempt.session, attempt.plan
        if plan.balanced is None or refusal.reason not in _UNREACHED or session.ended or session.pod.leaving:
            return False
        tried = (*attempt.passed_over, plan.where)
        other = self._plans.another(session.pod, plan, tried) if len(tried) < MAX_ENDPOINTS else None
        if other is None:
            return False
        attempt.passed_over, attempt.plan = tried, other
        session.destination, session.pending = None, None
        self._context.sessions.passed_over(session, refusal.reason)
        _describe(session.record, other)
        session.guard(partial(self._start, attempt))
        return True

    def _join(self, attempt: Attempt) -> OnDone:
        session = attempt.session
        if attempt.plan.balanced is None:
            return partial(self._context.join, session)

        def joined(upstream: socket.SocketType | None, refusal: Refusal | None) -> None:
            if upstream is not None or refusal is None or not self._elsewhere(attempt, refusal):
                self._context.join(session, upstream, refusal)

        return joined

    # ── in plain ──

    def _to_local_pod(self, attempt: Attempt, admission: Admission) -> None:
        context, session = self._context, attempt.session
        workload = session.record.destination.workload
        if workload is None:  # never: the plan has it from the route
            raise LookupError("an admission without a pod")
        context.sessions.admitted(session, admission.subject, workload.uid)
        context.sessions.dry_run(session.record, admission.dry_run)
        session.pending = None
        pod, join = context.pods[workload.uid], self._join(attempt)
        _await(session, context.dial_application(pod, attempt.client_ip, admission.address, join))

    # ── by tunnel ──

    def _by_tunnel(self, attempt: Attempt, key: PoolKey) -> None:
        session = attempt.session
        tunnel = self.pool.free(key)
        if isinstance(tunnel, ClientTunnel):
            self._open_stream(attempt, tunnel)
            return

        def have(tunnel: PooledTunnel | None, refusal: Refusal | None) -> None:
            if isinstance(tunnel, ClientTunnel):
                session.guard(lambda: self._open_stream(attempt, tunnel))
            elif refusal is None:
                session.refuse(Refusal(Reason.INTERNAL, "the tunnel ended without a reason"))
            elif self._elsewhere(attempt, refusal):
                return
            elif refusal.reason in _SOON and self._context.poller.clock() < attempt.until:
                self._wait(attempt)
            else:
                session.refuse(refusal)

        place = self.pool.acquire(key, have)
        if place.waits:
            session.pending = place

    def _open_stream(self, attempt: Attempt, tunnel: ClientTunnel) -> None:
        session = attempt.session
        record = session.record
        if record.destination.identity != tunnel.peer_identity:
            record.destination = Party(record.destination.address, record.destination.workload, tunnel.peer_identity)
        session.destination = half = ClientStream(tunnel, self, attempt)
        suffix = connect_suffix(forwarded_for(record.source.address), new_traceparent(self._random_bits))
        tunnel.connect(half, attempt.plan.prefix + suffix)

    def answered(self, half: ClientStream, refusal: Refusal | None) -> None:
        """See `Asker`."""
        session = half.session
        if refusal is not None:
            half.abort(ErrorCode.CANCEL)
            if half.attempt is None or not self._elsewhere(half.attempt, refusal):
                session.refuse(refusal)
        elif session.source is not None and not session.ended:
            session.relay(session.source, half)

    def unserved(self, attempt: Attempt) -> None:
        """See `Asker`."""
        attempt.session.destination = None
        attempt.unserved, attempt.until = True, self._context.poller.clock() + SERVED_WITHIN_S
        self._start_again(attempt)

    def unreached(self, attempt: Attempt, refusal: Refusal) -> bool:
        """See `Asker`."""
        return self._elsewhere(attempt, refusal)

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

        def connected(sock: socket.SocketType | None, refusal: Refusal | None) -> None:
            if sock is None:
                self.pool.failed(key, _tunnel_refusal(refusal, key.peer))
            else:
                ClientTunnel(context.poller, context.budget, sock, contexts.client, key, self.pool).start_handshake()

        context.dial_from(pod, key.peer, connected)


def _describe(record: Connection, plan: Plan) -> None:
    record.source, record.destination = plan.party(record.source.address), plan.destination
    record.security, record.service, record.hbone_address = plan.security, plan.service, plan.hbone_address


def _await(session: Session, dial: Dial | None) -> None:
    """None: it is done, and the session may wait for something else by now."""
    if dial is not None:
        session.pending = dial


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
