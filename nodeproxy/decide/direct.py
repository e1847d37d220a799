"""Which pods of this node may reach one another without the proxy, said before any of them connects.

Invariant: what is said to be direct is what `outbound` and `admit_local` would let through as it is, whatever the addresses at
both ends and for as long as the state is the same; everything else is left to them.  Knows nothing of the kernel's tables, nor of
when they are written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from nodeproxy.decide.demand import missing_at
from nodeproxy.decide.outbound import has_waypoint, who_is
from nodeproxy.decide.waypoint import pick_ip
from nodeproxy.model.policy import Policy
from nodeproxy.model.workload import OWN_PORTS, Balancing, Service, Workload
from nodeproxy.policy.beforehand import ANY_OTHER_PORT, Beforehand, Hindrance, PoliciesBeforehand
from nodeproxy.state.balance import eligible_endpoints, is_remote, place_of, target_port
from nodeproxy.state.kept import Endpoint
from nodeproxy.state.view import View

# Exceptions of one pair of pods; policies that name more ports are asked for each connection.
MAX_PORTS = 64
# Policies of one destination that are looked at beforehand: half a second's work for a node full of identities.
MAX_POLICIES = 1000
# Endpoints that the kernel chooses among.
MAX_ENDPOINTS = 8
# A service that lists more workloads than this is not looked at: they are not all pods of one node.
_MAX_LISTED = 256

# The netns cookies of both pods, whether ports are direct, and the ports for which it is the other way.
Verdict = tuple[int, int, bool, tuple[int, ...]]
Address = tuple[str, int]
DirectService = tuple[str, int, tuple[Address, ...]]  # virtual address, port, endpoints
Summary = tuple[bool, tuple[int, ...]]  # of a verdict
# What decides which policies hold for a destination: its namespace and those that it lists.
Held = tuple[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class LocalPod:
    """An enrolled pod of this node.  cookie: of its network namespace; addresses: those that it was enrolled with."""

    uid: str
    cookie: int
    addresses: tuple[str, ...]


class Direct:
    """The answers for some pods.  What asks the view is for now; the rest is pure, and may take its time."""

    def __init__(self, view: View, pods: Iterable[LocalPod], *, on_demand: bool = False) -> None:
        """on_demand: the state holds only what was asked for."""
        self._view = view
        self._on_demand = on_demand
        # Without a workload a pod's connections are refused, and those to it are not its own.
        self._pods = {pod.uid: (pod, workload) for pod in pods if (workload := view.workload(pod.uid)) is not None}
        self._ways: dict[tuple[str, str], Hindrance | None] = {}

    # ── all pairs, in two steps: what the state says of the pods, and then their policies ──

    def find_ways(self) -> None:
        """Ask the view what stands between the pods, policies apart."""
        for network in {workload.network for _, workload in self._pods.values()}:
            for uid in self._pods:
                self._way(network, uid)

    def held(self) -> dict[Held, Workload]:
        """A destination for each set of policies that must be asked."""
        return {(workload.namespace, workload.policies): workload for _, workload in self._pods.values()}

    def identities(self) -> set[str]:
        """Of all sources."""
        return {workload.identity for _, workload in self._pods.values()}

    def verdicts(self, summaries: Mapping[Held, Mapping[str, Summary]]) -> Iterator[Verdict]:
        """What is direct, after `find_ways`; a pair that is not mentioned is not.  summaries: by what is held, and identity."""
        sources = [(source.cookie, workload.network, workload.identity) for source, workload in self._pods.values()]
        for destination, pod in self._pods.values():
            said = summaries.get((pod.namespace, pod.policies), {})
            for cookie, network, identity in sources:
                default, exceptions = said.get(identity, (False, ()))
                if (default or exceptions) and cookie != destination.cookie and self._ways[network, destination.uid] is None:
                    yield cookie, destination.cookie, default, exceptions

    # ── one pair ──

    def hindrance(self, source: Workload, destination_uid: str, port: int) -> Hindrance | None:
        """Why a connection from pod `source` to this port of the other pod goes through the proxy; None: it does not."""
        if source.uid not in self._pods:
            return Hindrance("the source is no enrolled pod of this node", source.uid)
        if destination_uid not in self._pods:
            return Hindrance("the destination is no enrolled pod of this node", destination_uid)
        if source.uid == destination_uid:
            return Hindrance("the pod calls itself", source.uid)
        if port in OWN_PORTS:
            return Hindrance(f"{port} is a port of the proxy's own")
        hindrance = self._way(source.network, destination_uid)
        if hindrance is not None:
            return hindrance
        destination = self._pods[destination_uid][1]
        if self._view.count_policies(destination) > MAX_POLICIES:
            return Hindrance(f"more than {MAX_POLICIES} policies hold for the destination: each connection is judged")
        asked = PoliciesBeforehand(self._view.policies_for(destination)).ask(source.identity)
        if len(asked.ports) > MAX_PORTS:
            return Hindrance(f"policies name more than {MAX_PORTS} ports for this source: each connection is judged")
        return asked.hindrance(port if port in asked.ports else ANY_OTHER_PORT)

    def _way(self, network: str, uid: str) -> Hindrance | None:
        """What stands between a source in `network` and the pod, policies apart."""
        key = (network, uid)
        if key not in self._ways:
            self._ways[key] = self._ask_way(network, *self._pods[uid])
        return self._ways[key]

    def _ask_way(self, network: str, pod: LocalPod, workload: Workload) -> Hindrance | None:
        if workload.waypoint is not None:
            return Hindrance("the destination has a waypoint", workload.waypoint.destination)
        if workload.application_tunnel is not None:
            return Hindrance("the destination wants an application tunnel", pod.uid)
        if is_remote(network, workload):
            return Hindrance(f"the destination is in network {workload.network!r}, behind a gateway", pod.uid)
        if not pod.addresses:
            return Hindrance("the destination has no address of its own", pod.uid)
        for address in pod.addresses:
            if self._on_demand and missing_at(self._view, network, address, set()):
                return Hindrance(f"who has {address} must be asked for", pod.uid)
            service, owner = who_is(self._view, network, address)
            if service is not None:
                return Hindrance(f"{address} of the destination is a service's as well", service.key)
            if owner is None or owner.uid != pod.uid:
                return Hindrance(f"the state does not say that {address} is the destination's", pod.uid)
        return None

    # ── services ──

    def services(self) -> Iterator[DirectService]:
        """Virtual addresses all of whose connections end at pods of this node, whoever of them makes them."""
        keys = {key for _, workload in self._pods.values() for key in workload.services}
        for key in sorted(keys):
            service = self._view.service(key)
            if service is not None:
                yield from self._service(service)

    def hindrance_of_service(self, service: Service, vip: str, port: int) -> Hindrance | None:
        """Why connections to a virtual address go through the proxy; None: the kernel chooses the endpoint."""
        if self._endpoints(service, vip, port) is None:
            detail = f"not all endpoints of {service.key} are pods of this node, equal and at most {MAX_ENDPOINTS}"
            return Hindrance(detail, service.key)
        return None

    def _service(self, service: Service) -> Iterator[DirectService]:
        listed = {port for _, workload in self._pods.values() for port in workload.services.get(service.key, {})}
        for port in sorted({*listed, *service.ports} - OWN_PORTS):
            for vip in service.vips:
                ip = vip.partition("/")[2]
                found = self._endpoints(service, ip, port)
                if found is not None:
                    yield ip, port, found

    def _endpoints(self, service: Service, ip: str, port: int) -> tuple[Address, ...] | None:
        view = self._view
        if has_waypoint(service) or service.load_balancer.mode is Balancing.PASSTHROUGH:
            return None
        # Whoever asks must mean the same service by this address, and have the same endpoints of it.
        sources = {(workload.network, place_of(service, workload)): workload for _, workload in self._pods.values()}
        for network in {network for network, _ in sources}:
            if self._on_demand and missing_at(view, network, ip, set()):
                return None
            found = who_is(view, network, ip)[0]
            if found is None or found.key != service.key:
                return None
        if not sources or view.count_endpoints(service.key) > _MAX_LISTED:
            return None
        endpoints = view.endpoints(service.key)
        eligible = [eligible_endpoints(service, endpoints, source, port) for source in sources.values()]
        first = eligible[0]
        weights = {workload.capacity for workload, _ in first}
        if (
            len(weights) != 1
            or min(weights) < 1
            or len(first) > MAX_ENDPOINTS
            or any(_uids(each) != _uids(first) for each in eligible)
        ):
            return None  # the kernel chooses for all alike, and knows no weights
        targets = [target for endpoint in first if (target := self._target(service, endpoint, ip, port)) is not None]
        return tuple(targets) if len(targets) == len(first) else None

    def _target(self, service: Service, endpoint: Endpoint, ip: str, port: int) -> Address | None:
        """The endpoint's own address, as `outbound` chooses it; None if it is not a local pod's of the same family."""
        workload, own = endpoint
        local = self._pods.get(workload.uid)
        address = pick_ip(workload, ip)
        if local is None or address not in local[0].addresses or (":" in address) != (":" in ip):
            return None
        return address, target_port(service, own, port) or port


def summarise(policies: tuple[Policy, ...], identities: Iterable[str]) -> dict[str, Summary]:
    """What a set of policies says about each identity: whether ports are direct, and those for which it is the other way."""
    asked = PoliciesBeforehand(policies)
    return {identity: _summary(asked.ask(identity)) for identity in identities}


def _summary(asked: Beforehand) -> Summary:
    if len(asked.ports) > MAX_PORTS:
        return False, ()
    default = asked.hindrance() is None
    return default, tuple([port for port in sorted(asked.ports) if (asked.hindrance(port) is None) != default])


def _uids(endpoints: Iterable[Endpoint]) -> list[str]:
    return [workload.uid for workload, _ in endpoints]
