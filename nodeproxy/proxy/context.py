"""What every part of a worker works with, handed down from where the worker is put together."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field

from nodeproxy.decide.demand import Names
from nodeproxy.errors import KernelError
from nodeproxy.linux.pod_socket import last_leg_socket, outbound_socket
from nodeproxy.model.address import join_address
from nodeproxy.model.connection import Connection, Direction, Party
from nodeproxy.model.reason import Reason, Refusal
from nodeproxy.model.workload import Workload
from nodeproxy.proxy.app_socket import AppSocket
from nodeproxy.proxy.buffers import Budget
from nodeproxy.proxy.certificates import Certificates
from nodeproxy.proxy.dial import NO_RESULT, Dial, OnDone, connect_refusal, dial
from nodeproxy.proxy.pods import Pod
from nodeproxy.proxy.poller import Poller
from nodeproxy.proxy.session import Session
from nodeproxy.proxy.sessions import Sessions
from nodeproxy.proxy.waiting import Waiting
from nodeproxy.state.balance import Balancer
from nodeproxy.state.reader import StateReader
from nodeproxy.state.view import View
from nodeproxy.wire.baggage import encode_baggage
from nodeproxy.wire.hbone import ok_block

_INET, _INET6 = int(socket.AF_INET), int(socket.AF_INET6)
_LOOPBACK = frozenset({"127.0.0.1", "::1"})


@dataclass(slots=True)
class Context:
    """The worker's parts.

    waiting: connections whose names are asked for.  names: those that decisions have hung on since the agent was last told; None
    where the state holds all there is.
    """

    poller: Poller
    state: StateReader
    balancer: Balancer
    sessions: Sessions
    certificates: Certificates
    same_node_hbone: bool
    max_pod_connections: int
    waiting: Waiting
    names: Names = None
    pods: dict[str, Pod] = field(default_factory=dict)
    _view: View | None = None
    _ok_blocks: dict[str, tuple[Workload, bytes]] = field(default_factory=dict)

    @property
    def budget(self) -> Budget:
        """What connections may hold together."""
        return self.sessions.budget

    def is_local(self, uid: str) -> bool:
        """Whether the workload is a pod of this node that takes connections."""
        pod = self.pods.get(uid)
        return pod is not None and not pod.leaving

    def pod_of(self, cookie: int) -> Pod | None:
        """The pod of this node whose network namespace has this cookie."""
        return next((pod for pod in self.pods.values() if pod.cookie == cookie), None)

    def record(self, direction: Direction, source: Party, destination: Party) -> Connection:
        """The record of a connection that begins."""
        return Connection(id=self.sessions.new_id(), direction=direction, source=source, destination=destination)

    def refuse_full(self, pod: Pod, peer: tuple[str, int], direction: Direction, refusal: Refusal) -> None:
        """A connection that could not even be looked at."""
        record = self.record(direction, Party(join_address(*peer)), Party(""))
        self.sessions.refused_unheard(record, refusal)

    def dial_from(self, pod: Pod, address: tuple[str, int], on_done: OnDone) -> Dial | None:
        """Connect from the pod's namespace to somewhere else, as the pod itself would."""
        return self._dial(pod, "", address, on_done)

    def dial_application(self, pod: Pod, client_ip: str, address: tuple[str, int], on_done: OnDone) -> Dial | None:
        """Connect to the pod's application, with the client's address as source.

        A client whose address *is* the pod's (it called itself through a service) or is of the other family can't be shown; an
        application tunnel on loopback is told by its PROXY header.
        """
        if client_ip == address[0] or (":" in client_ip) != (":" in address[0]) or address[0] in _LOOPBACK:
            client_ip = ""
        return self._dial(pod, client_ip, address, on_done, near=True)

    def _dial(self, pod: Pod, client_ip: str, address: tuple[str, int], on_done: OnDone, *, near: bool = False) -> Dial | None:
        family = _INET6 if ":" in address[0] else _INET
        try:
            pod.enter()
            sock = last_leg_socket(family, client_ip) if client_ip else outbound_socket(family)
        except (OSError, KernelError) as error:
            on_done(None, connect_refusal(error.errno or 0, address))
            return None
        return dial(self.poller, sock, address, on_done, near=near)

    def join(self, session: Session, upstream: socket.SocketType | None, refusal: Refusal | None) -> None:
        """A dial is done: relay between who connected and `upstream`, or refuse."""
        if upstream is None:
            session.refuse(refusal or NO_RESULT)
        elif session.source is not None:
            session.relay(session.source, AppSocket(self.poller, upstream, session))

    def over_limit(self, pod: Pod) -> Refusal | None:
        """Why the pod may have no connection more than it has now, if so."""
        if pod.connections <= self.max_pod_connections:
            return None
        detail = f"the pod has {self.max_pod_connections} connections open in one worker: its limit"
        return Refusal(Reason.TOO_MANY_CONNECTIONS, detail)

    def workload(self, uid: str) -> Workload | None:
        """The pod's workload as the state has it now."""
        return self.view().workload(uid)

    def take_names(self) -> set[str]:
        """What decisions have hung on since this was last called."""
        names = self.names
        if not names:
            return set()
        self.names = set()
        return names

    def view(self) -> View:
        """The state as of this pass of the poller: a snapshot that is kept while waiting keeps the store from shrinking."""
        view = self._view
        if view is None:
            view = self._view = self.state.view()
            self.poller.defer(self._release)
        return view

    def renewed_view(self) -> View:
        """The newest state, whatever this pass has looked at before: a connection is judged by what holds when it is accepted."""
        if self._view is not None:
            self._view = self.state.view()
        return self.view()

    def ok_block(self, workload: Workload) -> bytes:
        """The header block of a 200 from `workload`, encoded once."""
        known = self._ok_blocks.get(workload.uid)
        if known is None or known[0] is not workload:
            known = self._ok_blocks[workload.uid] = (workload, ok_block(encode_baggage(workload)))
        return known[1]

    def forget_pod(self, uid: str) -> None:
        """The pod has left."""
        del self.pods[uid]
        self._ok_blocks.pop(uid, None)

    def _release(self) -> None:
        self._view = None
        self.state.release()
