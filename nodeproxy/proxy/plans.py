"""What becomes of the connections that pods make: decided once for each pod, client address and destination, and remembered.

Invariant: a remembered decision is used only while the state has the epoch that it was made in, and `forget` was not called
(membership of this node's pods has changed): so it is the decision of the moment.  A decision that balanced is made anew for
each connection; what follows from its outcome is remembered.  One that hangs on what must be asked for is not.  It must not know
sockets.
"""

from __future__ import annotations

import logging

from nodeproxy.decide.demand import unanswered
from nodeproxy.decide.inbound import Admission, admit_local
from nodeproxy.decide.outbound import Route, RouteKind, outbound, outbound_on_demand
from nodeproxy.model.address import join_address
from nodeproxy.model.connection import Party, Security
from nodeproxy.model.reason import Reason, Refusal
from nodeproxy.model.workload import Service, Workload
from nodeproxy.proxy.context import Context
from nodeproxy.proxy.pods import Pod
from nodeproxy.proxy.pool import PoolKey
from nodeproxy.proxy.session import defect
from nodeproxy.state.view import View
from nodeproxy.wire.baggage import encode_baggage
from nodeproxy.wire.hbone import connect_prefix

log = logging.getLogger(__name__)

# A plan takes some 1 KiB; a pod that tries every address makes no more than these.
MAX_PLANS = 2048

# To find an endpoint other than those that were tried: weights may have the same one chosen several times in a row.
_CHOICES = 8

Address = tuple[str, int]
_NOT_STEERED = Refusal(Reason.NO_ORIGINAL_DESTINATION, "the pod connected to the proxy's own port; connect to the service itself")


class Plan:
    """Connections of one pod that go the same way, or are refused for the same reason.

    source: the pod's workload, if the state has it.  destination, security, service, hbone_address: as in their records.
    refusal: they may not be.  Else route: how they go; admission: to a pod of this node; key, prefix: by tunnel, and what the
    header blocks of their requests begin with.
    balanced: client address and destination, if another connection to it may go another way; None: if not.
    """

    __slots__ = (
        "admission",
        "balanced",
        "destination",
        "hbone_address",
        "key",
        "prefix",
        "refusal",
        "route",
        "security",
        "service",
        "source",
    )

    def __init__(self, destination: Party, source: Workload | None = None, refusal: Refusal | None = None) -> None:
        self.destination = destination
        self.source = source
        self.refusal = refusal
        self.security = Security.NONE
        self.service: Service | None = None
        self.hbone_address = ""
        self.route: Route | None = None
        self.admission: Admission | None = None
        self.key: PoolKey | None = None
        self.prefix = b""
        self.balanced: tuple[str, Address] | None = None

    @property
    def where(self) -> str:
        """Where it leads to, as text."""
        return self.hbone_address or self.destination.address

    def party(self, client: str) -> Party:
        """The source of a connection from the address `client`."""
        source = self.source
        return Party(client, source, source.identity) if source is not None else Party(client)


class Plans:
    """The plans of a worker."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._epoch = -1
        self._plans: dict[tuple[object, ...], Plan] = {}

    def forget(self) -> None:
        """Decide anew: something beside the state has changed that decisions are made from."""
        self._plans.clear()

    def get(self, pod: Pod, client_ip: str, original: Address | None) -> Plan:
        """The plan for a connection of `pod` from `client_ip`; original: where it was led away from, None if it was not."""
        if original is None:
            return Plan(Party(""), refusal=_NOT_STEERED)
        view = self._context.renewed_view()
        if view.epoch != self._epoch:
            self._plans.clear()
            self._epoch = view.epoch
        plan = self._plans.get((pod.uid, client_ip, original))
        if plan is not None:
            return plan
        try:
            return self._decide(view, pod, client_ip, original)
        except Exception as error:
            log.exception("a defect, which ended one connection")
            return Plan(Party(join_address(*original)), refusal=defect(error))

    def another(self, pod: Pod, plan: Plan, not_to: tuple[str, ...]) -> Plan | None:
        """A plan for the same connection that leads elsewhere; not_to: keys of plans that were tried.  None: there is none."""
        if plan.balanced is None:
            return None
        for _ in range(_CHOICES):
            other = self.get(pod, *plan.balanced)
            if other.refusal is None and other.where not in not_to:
                return other
        return None

    def _decide(self, view: View, pod: Pod, client_ip: str, original: Address) -> Plan:
        context = self._context
        key: tuple[object, ...] = (pod.uid, client_ip, original)
        source = view.workload(pod.uid)
        if source is None and context.names is not None and not view.is_absent(pod.uid):
            return Plan(Party(join_address(*original)), refusal=unanswered((pod.uid,)))
        if source is None:
            detail = f"this pod's workload {pod.uid} is not in the state; its source has removed it or not sent it yet"
            return self._keep(key, Plan(Party(join_address(*original)), refusal=Refusal(Reason.UNKNOWN_WORKLOAD, detail)))
        hbone, names = context.same_node_hbone, context.names
        if names is None:
            route = outbound(view, source, *original, context.balancer, context.is_local, same_node_hbone=hbone)
        else:
            route = outbound_on_demand(view, source, *original, context.balancer, context.is_local, names, same_node_hbone=hbone)
        if isinstance(route, Refusal):
            return Plan(Party(join_address(*original)), source, route)
        if route.balanced:
            key = (*key, route.address, route.peer, route.destination.uid if route.destination else "")
            plan = self._plans.get(key)
            if plan is not None:
                return plan
        plan = _plan(view, context, pod, client_ip, source, route)
        if route.balanced:
            plan.balanced = client_ip, original
        return self._keep(key, plan)

    def _keep(self, key: tuple[object, ...], plan: Plan) -> Plan:
        if len(self._plans) >= MAX_PLANS:
            self._plans.clear()  # cheaper than to know which is the oldest
        self._plans[key] = plan
        return plan


def _plan(view: View, context: Context, pod: Pod, client_ip: str, source: Workload, route: Route) -> Plan:
    destination = route.destination
    plan = Plan(Party(join_address(*route.address), destination), source)
    plan.route, plan.service = route, route.service
    if route.kind is RouteKind.LOCAL and destination is not None:
        admission = _admit(view, context.pods[destination.uid], destination, route.address, source, client_ip)
        if isinstance(admission, Refusal):
            plan.refusal = admission
            return plan
        plan.admission = admission
        plan.destination = Party(join_address(*admission.address), destination, destination.identity)
    elif route.kind is RouteKind.HBONE:
        if destination is not None:
            plan.destination = Party(plan.destination.address, destination, destination.identity)
        plan.security = Security.MUTUAL_TLS
        plan.hbone_address = join_address(*route.peer)
        plan.key = PoolKey(pod.uid, source.identity, route.peer, route.identities)
        plan.prefix = connect_prefix(route.authority, encode_baggage(source))
    return plan


def _admit(view: View, pod: Pod, workload: Workload, address: Address, source: Workload, client_ip: str) -> Admission | Refusal:
    if address[0] not in pod.addresses:
        # From its namespace the last leg would go astray, and be awaited by nobody else's permission.
        detail = f"the state gives {address[0]} to {pod.uid}, whose namespace has {', '.join(pod.addresses) or 'none'}"
        return Refusal(Reason.CONNECT_UNREACHABLE, detail, pod.uid)
    return admit_local(view, workload, *address, source, client_ip)
