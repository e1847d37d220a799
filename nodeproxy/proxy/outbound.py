"""What a pod sends: its plan, then the way that it says (through, to a pod of this node, plain, or by tunnel)."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from functools import partial

from nodeproxy.decide.demand import Unanswered
from nodeproxy.decide.inbound import Admission
from nodeproxy.kernel.original_destination import OriginalDestination
from nodeproxy.model.address import join_address
from nodeproxy.model.connection import Connection, Direction, Party
from nodeproxy.model.reason import Reason, Refusal
from nodeproxy.proxy.app_socket import AppSocket
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
_SOON = frozenset({Reason.CONNECT_REFUSED, Reason.NO_CERTIFICATE})

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
        refusal = plan.refusal or context.over_limit(pod)
        if refusal is not None:
            self._refuse_or_wait(session, refusal, peer, original)
            return
        session.guard(lambda: self._start(session, plan, peer, original))

    # ── what must be asked for first ──

    def _refuse_or_wait(
        self, session: Session, refusal: Refusal, peer: tuple[str, int], original: tuple[str, int] | None
    ) -> None:
        if not isinstance(refusal, Unanswered):
            session.refuse(refusal)
        elif (over := self._context.over_limit(session.pod)) is not None:
            session.refuse(over)
        else:
            again = partial(self._decide_again, peer, original)
            self._context.waiting.park(session, session.pod.uid, refusal.names, again)

    def _decide_again(self, peer: tuple[str, int], original: tuple[str, int] | None, parked: Parked) -> None:
        session = parked.session
        plan = self._plan_again(session, peer, original)
        if isinstance(plan.refusal, Unanswered):
            self._context.waiting.park_again(parked, plan.refusal.names)
        elif plan.refusal is not None:
            session.refuse(plan.refusal)
        else:
            self._start(session, plan, peer, original)

    def _plan_again(self, session: Session, peer: tuple[str, int], original: tuple[str, int] | None) -> Plan:
        if session.pod.leaving:
            return Plan(session.record.destination, refusal=Refusal(Reason.POD_LEFT, "the pod has left the mesh or ended"))
        plan = self._plans.get(session.pod, peer[0], original)
        self._describe(session.record, plan)
        return plan

    # ── whom nobody serves yet, or any more ──

    def _start_again(self, session: Session, peer: tuple[str, int], original: tuple[str, int] | None, until: float) -> None:
        if session.ended:
            return
        plan = self._plan_again(session, peer, original)
        if plan.refusal is not None:
            self._refuse_or_wait(session, plan.refusal, peer, original)
        else:
            session.guard(lambda: self._start(session, plan, peer, original, until))

    # ── all the rest ──

    def forget(self) -> None:
        """Membership of this node's pods has changed: what was decided may be old."""
        self._plans.forget()

    def _start(
        self, session: Session, plan: Plan, peer: tuple[str, int], original: tuple[str, int] | None, until: float = 0.0
    ) -> None:
        """until: when a connection that waits for its peer's node waits no longer, 0 if it does not wait."""
        context = self._context
        if plan.key is not None:
            until = until or context.poller.clock() + SERVED_WITHIN_S
            self._by_tunnel(session, plan, plan.key, partial(self._start_again, session, peer, original, until), until)
        elif plan.admission is not None:
            self._to_local_pod(session, plan, plan.admission, peer[0])
        elif plan.route is not None:
            session.pending = None
            _await(session, context.dial_from(session.pod, plan.route.address, self._join(session, plan)))

    def _elsewhere(self, session: Session, plan: Plan, refusal: Refusal) -> bool:
        """Lead it to another endpoint of the service: of the one that was not reached nobody has had a byte.

        False: that is not what happened, or there is no other one, or enough were tried.
        """
        if plan.balanced is None or refusal.reason not in _UNREACHED or session.ended or session.pod.leaving:
            return False
        tried = (*session.passed_over, plan.where)
        other = self._plans.another(session.pod, plan, tried) if len(tried) < MAX_ENDPOINTS else None
        if other is None:
            return False
        session.passed_over, session.destination, session.pending = tried, None, None
        self._context.sessions.passed_over(session, refusal.reason)
        self._describe(session.record, other)
        client_ip, original = plan.balanced
        session.guard(partial(self._start, session, other, (client_ip, 0), original))
        return True

    def _describe(self, record: Connection, plan: Plan) -> None:
        record.source, record.destination = plan.party(record.source.address), plan.destination
        record.security, record.service, record.hbone_address = plan.security, plan.service, plan.hbone_address

    def _join(self, session: Session, plan: Plan) -> OnDone:
        if plan.balanced is None:
            return partial(self._context.join, session)

        def joined(upstream: socket.SocketType | None, refusal: Refusal | None) -> None:
            if upstream is not None or refusal is None or not self._elsewhere(session, plan, refusal):
                self._context.join(session, upstream, refusal)

        return joined

    # ── in plain ──

    def _to_local_pod(self, session: Session, plan: Plan, admission: Admission, client_ip: str) -> None:
        context, workload = self._context, session.record.destination.workload
        if workload is None:  # never: the plan has it from the route
            raise LookupError("an admission without a pod")
        context.sessions.admitted(session, admission.subject, workload.uid)
        context.sessions.dry_run(session.record, admission.dry_run)
        session.pending = None
        join = self._join(session, plan)
        _await(session, context.dial_application(context.pods[workload.uid], client_ip, admission.address, join))

    # ── by tunnel ──

    def _by_tunnel(
        self, session: Session, plan: Plan, key: PoolKey, again: Callable[[], None] | None = None, until: float = 0.0
    ) -> None:
        """again: from the decision on, None if it is the last try."""
        retry = again is not None
        tunnel = self.pool.free(key)
        if isinstance(tunnel, ClientTunnel):
            self._open_stream(session, tunnel, plan, retry)
            return

        def have(tunnel: PooledTunnel | None, refusal: Refusal | None) -> None:
            poller = self._context.poller
            if isinstance(tunnel, ClientTunnel):
                session.guard(lambda: self._open_stream(session, tunnel, plan, retry))
            elif refusal is not None and self._elsewhere(session, plan, refusal):
                return
            elif again is not None and refusal is not None and refusal.reason in _SOON and poller.clock() < until:
                poller.later(_ASK_AGAIN_S, again)
            else:
                session.refuse(refusal or Refusal(Reason.INTERNAL, "the tunnel ended without a reason"))

        before = session.passed_over
        wait = self.pool.acquire(key, have)
        if session.passed_over is before:  # else it waits for something else by now
            session.pending = wait

    def _open_stream(self, session: Session, tunnel: ClientTunnel, plan: Plan, retry: bool) -> None:
        record = session.record
        if record.destination.identity != tunnel.peer_identity:
            record.destination = Party(record.destination.address, record.destination.workload, tunnel.peer_identity)
        session.destination = half = ClientStream(tunnel, session, self, plan, retry)
        suffix = connect_suffix(forwarded_for(record.source.address), new_traceparent(self._random_bits))
        tunnel.connect(half, plan.prefix + suffix)

    def answered(self, half: ClientStream, refusal: Refusal | None) -> None:
        """See `Asker`."""
        session = half.session
        if refusal is not None:
            half.abort(ErrorCode.CANCEL)
            if not self._elsewhere(session, half.plan, refusal):
                session.refuse(refusal)
        elif session.source is not None and not session.ended:
            session.relay(session.source, half)

    def unserved(self, session: Session, plan: Plan) -> None:
        """See `Asker`."""
        session.destination = None
        if plan.key is not None:
            self._by_tunnel(session, plan, plan.key)

    def unreached(self, session: Session, plan: Plan, refusal: Refusal) -> bool:
        """See `Asker`."""
        return self._elsewhere(session, plan, refusal)

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
