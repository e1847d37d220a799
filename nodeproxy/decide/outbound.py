"""Where a connection that a pod makes goes.

First match: an own port is refused; an unknown destination passes through; a service's waypoint, then a service's endpoint; a
pod's waypoint, then the pod; a pod of this node is reached directly, a mesh member through HBONE, anything else in plain.
Invariant: a destination that is known is never passed through because something of it is missing: that is a named refusal.  On
demand, one that is neither known nor known to be nobody is not passed through either: it must be asked for (`demand`).
Knows nothing of sockets, pools or certificates, and does not judge the destination's policy (`inbound` does, where the
destination is).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

import msgspec

from nodeproxy.decide.demand import Unanswered, missing_at, missing_gateway, unanswered
from nodeproxy.decide.trace import Trace, note
from nodeproxy.decide.waypoint import is_waypoint, pick_ip, resolve
from nodeproxy.model.address import join_address
from nodeproxy.model.reason import Reason, Refusal
from nodeproxy.model.workload import HBONE_PORT, OWN_PORTS, Balancing, Gateway, Protocol, Service, Workload
from nodeproxy.policy.address import canonical_ip
from nodeproxy.state.balance import Balancer, is_remote, target_port
from nodeproxy.state.view import View

Address = tuple[str, int]


class RouteKind(StrEnum):
    """How the destination is reached."""

    PASSTHROUGH = "passthrough"
    LOCAL = "local"
    HBONE = "hbone"
    PLAIN = "plain"


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """A way to the destination.

    address: the final target, after service mapping; through a waypoint the original one.
    authority: HBONE's `:authority`.  peer: the tunnel's other end.  identities: what the peer may prove to be.
    destination: who answers at the end of this way: the endpoint, the pod, or the waypoint.
    balanced: one of several was chosen, and the next connection may go another way.
    """

    kind: RouteKind
    address: Address
    authority: str = ""
    peer: Address = ("", 0)
    identities: frozenset[str] = frozenset()
    destination: Workload | None = None
    service: Service | None = None
    via_waypoint: bool = False
    balanced: bool = False


def outbound(
    view: View,
    source: Workload,
    ip: str,
    port: int,
    balancer: Balancer,
    is_local: Callable[[str], bool],
    trace: Trace | None = None,
    *,
    same_node_hbone: bool = False,
) -> Route | Refusal:
    """The way of a connection from `source` to ip:port.

    is_local: whether a workload (by uid) is an enrolled pod of this node.  same_node_hbone: such a pod is reached as on another.
    """
    if ":" in ip:
        ip = canonical_ip(ip)
    if view.is_incomplete:
        note(trace, "is the state there?", "no")
        return Refusal(Reason.STATE_UNAVAILABLE, "no source of state has answered in whole yet; see the agent's log for why")
    decision = _Decision(view, source, ip, port, balancer, is_local, same_node_hbone, trace)
    return decision.decide()


def outbound_on_demand(
    view: View,
    source: Workload,
    ip: str,
    port: int,
    balancer: Balancer,
    is_local: Callable[[str], bool],
    names: set[str],
    trace: Trace | None = None,
    *,
    same_node_hbone: bool = False,
) -> Route | Refusal:
    """As `outbound`, with a state that holds only what was asked for: the answer may be `Unanswered`.

    names: those that are answered and that the decision hung on are added to it.
    """
    if ":" in ip:
        ip = canonical_ip(ip)
    return _DecisionOnDemand(view, source, ip, port, balancer, is_local, same_node_hbone, trace, names).decide()


def who_is(view: View, network: str, ip: str) -> tuple[Service | None, Workload | None]:
    """Who has an address for a source in `network`: by that, then by the default one."""
    for each in dict.fromkeys((network, "")):
        service, workload = view.service_at(each, ip), view.workload_at(each, ip)
        if service is not None or workload is not None:
            return service, workload
    return None, None


class _Decision:
    """The arguments of one decision, so that its steps need not pass them on."""

    __slots__ = ("balancer", "ip", "is_local", "port", "same_node_hbone", "source", "trace", "view")

    def __init__(
        self,
        view: View,
        source: Workload,
        ip: str,
        port: int,
        balancer: Balancer,
        is_local: Callable[[str], bool],
        same_node_hbone: bool,
        trace: Trace | None,
    ) -> None:
        self.view, self.source, self.ip, self.port = view, source, ip, port
        self.balancer, self.is_local, self.trace = balancer, is_local, trace
        self.same_node_hbone = same_node_hbone

    def decide(self) -> Route | Refusal:
        ip, port = self.ip, self.port
        service, workload = who_is(self.view, self.source.network, ip)
        if port in OWN_PORTS and (service or workload or ip == "::1" or ip.startswith("127.")):
            note(self.trace, f"is {port} a port of the proxy's own?", "yes: refused")
            return Refusal(Reason.ILLEGAL_PORT, f"port {port} is the proxy's own; connect to the application's port")
        if service is not None and (service.load_balancer.mode is not Balancing.PASSTHROUGH or has_waypoint(service)):
            note(self.trace, f"who is {ip}?", "a service's virtual address", service.key)
            return self._to_service(service)
        if workload is None:
            note(self.trace, f"who is {ip}?", "unknown: passed through untouched")
            return Route(kind=RouteKind.PASSTHROUGH, address=(ip, port), service=service)
        note(self.trace, f"who is {ip}?", f"workload {workload.name}", workload.uid)
        return self._to_pod(workload, service)

    def _to_service(self, service: Service) -> Route | Refusal:
        gateway = service.waypoint
        if service.weighted_waypoints:
            chosen = self.balancer.choose_waypoint(service)
            gateway = chosen.gateway if chosen is not None else gateway
        if gateway is not None:
            return self._through(gateway, service.key, service)
        endpoints = self.view.endpoints(service.key)
        endpoint = self.balancer.choose(service, endpoints, self.source, self.port)
        if endpoint is None:
            detail = self._no_endpoint(service, endpoints)
            note(self.trace, "which endpoint?", detail, service.key)
            return Refusal(Reason.NO_ENDPOINT, detail, service.key)
        workload, own = endpoint
        target = (pick_ip(workload, self.ip), target_port(service, own, self.port) or self.port)
        note(self.trace, "which endpoint?", f"{workload.name} at {join_address(*target)}, of {len(endpoints)}", workload.uid)
        return self._last_step(workload, target, service, balanced=True)

    def _no_endpoint(self, service: Service, endpoints: tuple[tuple[Workload, dict[int, int]], ...]) -> str:
        if not any(target_port(service, own, self.port) is not None for _, own in endpoints) and self.port not in service.ports:
            return f"service {service.key} has no port {self.port}; it has {_ports(service)}"
        if not endpoints:
            return f"service {service.key} has no endpoint for port {self.port}; is a pod of it running?"
        return f"service {service.key} has {len(endpoints)} endpoints, none of them healthy, in scope and with port {self.port}"

    def _to_pod(self, workload: Workload, service: Service | None) -> Route | Refusal:
        gateway = workload.waypoint
        if gateway is not None and not self._source_is(gateway):
            return self._through(gateway, workload.uid, service)
        return self._last_step(workload, (self.ip, self.port), service)

    def _source_is(self, gateway: Gateway) -> bool:
        """Whether the connection comes from the waypoint.  The source is an enrolled pod: who it is, the state says."""
        if is_waypoint(self.view, gateway, self.source):
            note(self.trace, "through the waypoint?", "no: the source is the waypoint", self.source.uid)
            return True
        return False

    def _through(self, gateway: Gateway, owner: str, service: Service | None) -> Route | Refusal:
        found = resolve(self.view, gateway, self.source, self.ip, self.balancer, owner)
        if isinstance(found, Refusal):
            note(self.trace, "through the waypoint?", found.detail, owner)
            return found
        if is_remote(self.source.network, found.workload):
            return self._remote(found.workload)
        outcome = f"yes: {found.workload.name} at {join_address(found.ip, found.port)}"
        note(self.trace, "through the waypoint?", outcome, gateway.destination)
        return Route(
            kind=RouteKind.HBONE,
            address=(self.ip, self.port),
            authority=join_address(self.ip, self.port),
            peer=(found.ip, found.port),
            identities=found.identities,
            destination=found.workload,
            service=service,
            via_waypoint=True,
            balanced=True,
        )

    def _remote(self, workload: Workload) -> Refusal:
        gateway = workload.network_gateway.destination if workload.network_gateway else ""
        detail = f"{workload.uid} is in network {workload.network!r} behind gateway {gateway}; gateways are not supported yet"
        note(self.trace, "same network?", detail, workload.uid)
        return Refusal(Reason.UNSUPPORTED_PROTOCOL, detail, workload.uid)

    def _last_step(
        self, workload: Workload, target: Address, service: Service | None, *, balanced: bool = False
    ) -> Route | Refusal:
        if is_remote(self.source.network, workload):
            return self._remote(workload)
        is_local = self.is_local(workload.uid)
        if is_local and not self.same_node_hbone:
            note(self.trace, "how is it reached?", "within the node: it is a pod of this node", workload.uid)
            return Route(kind=RouteKind.LOCAL, address=target, destination=workload, service=service, balanced=balanced)
        if workload.protocol is not Protocol.HBONE and not is_local:
            note(self.trace, "how is it reached?", "in plain: it is not in the mesh (protocol TCP)", workload.uid)
            return Route(kind=RouteKind.PLAIN, address=target, destination=workload, service=service, balanced=balanced)
        identities = frozenset((workload.identity, *service.subject_alt_names)) if service else frozenset((workload.identity,))
        note(self.trace, "how is it reached?", f"through HBONE to {join_address(target[0], HBONE_PORT)}", workload.uid)
        return Route(
            kind=RouteKind.HBONE,
            address=target,
            authority=join_address(*target),
            peer=(target[0], HBONE_PORT),
            identities=identities,
            destination=workload,
            service=service,
            balanced=balanced,
        )


class _DecisionOnDemand(_Decision):
    """The same steps, each of which first sees to it that what it goes by is known.

    Apart from `_Decision`, which each connection pays for where everything is known.
    """

    __slots__ = ("names",)

    def __init__(
        self,
        view: View,
        source: Workload,
        ip: str,
        port: int,
        balancer: Balancer,
        is_local: Callable[[str], bool],
        same_node_hbone: bool,
        trace: Trace | None,
        names: set[str],
    ) -> None:
        super().__init__(view, source, ip, port, balancer, is_local, same_node_hbone, trace)
        self.names = names

    def decide(self) -> Route | Refusal:
        missing = missing_at(self.view, self.source.network, self.ip, self.names)
        return self._unanswered(f"who is {self.ip}?", missing) if missing else super().decide()

    def _through(self, gateway: Gateway, owner: str, service: Service | None) -> Route | Refusal:
        # All of a service's waypoints at once: the next connection may be led to another one.
        others = [weighted.gateway for weighted in service.weighted_waypoints] if service is not None else []
        gateways = dict.fromkeys((gateway, *others))
        missing = tuple([name for each in gateways for name in missing_gateway(self.view, each, self.names)])
        return self._unanswered("through the waypoint?", missing) if missing else super()._through(gateway, owner, service)

    def _unanswered(self, question: str, missing: tuple[str, ...]) -> Unanswered:
        note(self.trace, question, f"not known yet: {', '.join(missing)} must be asked for")
        return unanswered(missing)


def has_waypoint(service: Service) -> bool:
    """Whether the service must be reached through one."""
    return service.waypoint is not None or bool(service.weighted_waypoints)


def _ports(service: Service) -> str:
    return ", ".join(str(port) for port in sorted(service.ports)) or "none"
