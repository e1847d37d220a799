"""What reaches a pod: tunnels on port 15008, and everything else in plain."""

from __future__ import annotations

import socket
from functools import partial

from nodeproxy.decide.inbound import admit_plain
from nodeproxy.kernel.original_destination import OriginalDestination
from nodeproxy.linux.pod_socket import MARK_LAST_LEG, redirected_from
from nodeproxy.model.address import join_address
from nodeproxy.model.connection import Direction, Party
from nodeproxy.model.reason import Reason, Refusal
from nodeproxy.model.workload import PLAINTEXT_PORT, Workload
from nodeproxy.proxy.app_socket import AppSocket, reset_and_close
from nodeproxy.proxy.context import Context
from nodeproxy.proxy.outbound import Outbound
from nodeproxy.proxy.pods import Pod, plain_address
from nodeproxy.proxy.server_tunnel import ServerTunnel
from nodeproxy.proxy.session import Session
from nodeproxy.state.view import View

# Handshakes at once of one pod in one worker: each holds some 50 KB of TLS state, and 10 s are enough for all of them on one
# core. Beyond it the oldest gives way to the newest: an honest one is done in milliseconds, and who stalls must not keep others
# out.
MAX_HANDSHAKES = 1024
# Tunnels that stand, of one pod in one worker.  Clients have one each for as long as they like, so that the one which has been
# idle the longest makes room.
MAX_TUNNELS = 2048
_TOO_MANY_HANDSHAKES = Refusal(
    Reason.TOO_MANY_CONNECTIONS,
    f"{MAX_HANDSHAKES} TLS handshakes with this pod were under way in one worker: the limit, and this was the oldest",
)


class Inbound:
    """Serves the HBONE and plaintext listeners of all pods of a worker."""

    def __init__(self, context: Context, originals: OriginalDestination, outbound: Outbound) -> None:
        self._context = context
        self._originals = originals
        self._outbound = outbound

    def accepted_tunnel(self, pod: Pod, sock: socket.SocketType, peer: tuple[str, int]) -> None:
        """A connection to port 15008."""
        context = self._context
        workload = context.workload(pod.uid)
        contexts = context.certificates.get(workload.identity) if workload else None
        local = plain_address(sock.getsockname())
        refusal = None
        if local[0] not in pod.addresses:
            refusal = Refusal(Reason.ILLEGAL_PORT, f"{join_address(*local)} is no address of the pod")
        elif workload is None:
            refusal = Refusal(Reason.UNKNOWN_WORKLOAD, f"this pod's workload {pod.uid} is not in the state")
        elif contexts is None:
            refusal = Refusal(
                Reason.NO_CERTIFICATE, f"there is no certificate for {workload.identity} yet; `status` says what the CA answers"
            )
        elif len(pod.tunnels) >= MAX_TUNNELS and not _shut_an_idle_tunnel(pod):
            refusal = Refusal(
                Reason.TOO_MANY_CONNECTIONS, f"{MAX_TUNNELS} tunnels to this pod are in use in one worker: the limit"
            )
        if refusal is not None or workload is None or contexts is None:
            record = context.record(Direction.INBOUND, Party(join_address(*peer)), Party(join_address(*local), workload))
            reset_and_close(sock)
            context.sessions.refused_unheard(record, refusal or Refusal(Reason.INTERNAL, "no reason was given"))
            return
        if len(pod.handshakes) >= MAX_HANDSHAKES:
            next(iter(pod.handshakes)).lose(_TOO_MANY_HANDSHAKES)
        ServerTunnel(context, pod, workload, sock, contexts.server, peer, local)

    def accepted_plain(self, pod: Pod, sock: socket.SocketType, peer: tuple[str, int]) -> None:
        """Any other connection to the pod."""
        context = self._context
        late = self._originals.direct(sock.fileno())
        source = context.pod_of(late.source_cookie) if late is not None else None
        if late is not None and source is not None:
            # It was to go directly, and things changed before its SYN came: now it goes as if it had been led here at once.
            self._outbound.serve(source, sock, peer, (late.ip, late.port))
            return
        local = plain_address(sock.getsockname())
        if local[1] == PLAINTEXT_PORT:  # istio-cni's rules send everything there
            local = redirected_from(sock, socket.AF_INET6 if ":" in local[0] else socket.AF_INET) or local
        view = context.renewed_view()
        workload = view.workload(pod.uid)
        record = context.record(Direction.INBOUND, Party(join_address(*peer)), Party(join_address(*local), workload))
        session = Session(context.sessions, pod, record)
        session.source = AppSocket(context.poller, sock, session)
        if workload is None:
            session.refuse(Refusal(Reason.UNKNOWN_WORKLOAD, f"this pod's workload {pod.uid} is not in the state"))
        elif sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == MARK_LAST_LEG:
            # tcp_fwmark_accept shows the mark of the SYN: this is our own last leg, which the flow table should have let through.
            session.refuse(
                Refusal(Reason.FLOW_TABLE_FULL, "the kernel's table of flows is full: too many connections on this node at once")
            )
        elif local[0] not in pod.addresses:
            session.refuse(Refusal(Reason.ILLEGAL_PORT, f"{join_address(*local)} is no address of the pod"))
        elif (over := context.over_limit(pod)) is not None:
            session.refuse(over)
        else:
            record.source = Party(record.source.address, view.workload_at(workload.network, peer[0]))
            session.guard(lambda: self._judge(session, view, workload, local, peer))

    def _judge(self, session: Session, view: View, workload: Workload, local: tuple[str, int], peer: tuple[str, int]) -> None:
        context = self._context
        admission = admit_plain(view, workload, local[0], local[1], peer[0])
        if isinstance(admission, Refusal):
            session.refuse(admission)
            return
        context.sessions.dry_run(session.record, admission.dry_run)
        context.sessions.admitted(session, admission.subject, workload.uid)
        session.record.service = admission.service
        session.pending = context.dial_application(session.pod, peer[0], admission.address, partial(context.join, session))


def _shut_an_idle_tunnel(pod: Pod) -> bool:
    """Make room by the oldest tunnel without streams; False: all are in use."""
    idle = next((tunnel for tunnel in pod.tunnels if tunnel.idle), None)
    if idle is not None:
        idle.shut()
    return idle is not None
