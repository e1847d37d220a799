"""Which pod a waypoint's name stands for.

A gateway is named by "network/address" (a workload's or a service's virtual one) or by a service key.  Invariant: a waypoint
that must be passed and can't be found is a refusal, never a way around it.
"""

from __future__ import annotations

import msgspec

from nodeproxy.model.reason import Reason, Refusal
from nodeproxy.model.workload import Gateway, Service, Workload
from nodeproxy.state.balance import Balancer
from nodeproxy.state.view import View


class Waypoint(msgspec.Struct, frozen=True):
    """A pod to hand a connection to.  identities: what it may prove to be."""

    workload: Workload
    ip: str
    port: int
    identities: frozenset[str]
    service: Service | None = None


def pick_ip(workload: Workload, like: str) -> str:
    """The workload's first address of the family of `like`, else its first."""
    is_v6 = ":" in like
    for address in workload.addresses:
        if (":" in address) == is_v6:
            return address
    return workload.addresses[0]


def gateway_service(view: View, gateway: Gateway) -> Service | None:
    """The service that a gateway is named by, if it is named by one."""
    if gateway.is_hostname:
        return view.service(gateway.destination)
    network, _, ip = gateway.destination.partition("/")
    return view.service_at(network, ip)


def gateway_workload(view: View, gateway: Gateway) -> Workload | None:
    """The workload that a gateway is named by, if it is named by a workload's address."""
    if gateway.is_hostname:
        return None
    network, _, ip = gateway.destination.partition("/")
    return view.workload_at(network, ip)


def resolve(view: View, gateway: Gateway, source: Workload, target_ip: str, balancer: Balancer, owner: str) -> Waypoint | Refusal:
    """A pod of `gateway`; owner: the key of what asked for it, for the refusal."""
    service = gateway_service(view, gateway)
    if service is not None:
        # Port 0: an endpoint needn't list the HBONE port to be a waypoint.
        endpoint = balancer.choose(service, view.endpoints(service.key), source, 0)
        if endpoint is None:
            return _refuse(owner, f"waypoint service {service.key} has no healthy endpoint; is the waypoint running?")
        workload, own = endpoint
        port = own.get(gateway.hbone_port) or service.ports.get(gateway.hbone_port) or gateway.hbone_port
        identities = frozenset((workload.identity, *service.subject_alt_names))
        return Waypoint(workload, pick_ip(workload, target_ip), port, identities, service)
    found = gateway_workload(view, gateway)
    if found is None:
        return _refuse(owner, f"waypoint {gateway.destination} is not known; is it deployed, and part of the mesh?")
    ip = gateway.destination.partition("/")[2]
    return Waypoint(found, ip, gateway.hbone_port, frozenset((found.identity,)))


def _refuse(owner: str, detail: str) -> Refusal:
    return Refusal(Reason.NO_WAYPOINT, f"{owner} must be reached through its waypoint: {detail}", owner)


def is_waypoint(view: View, gateway: Gateway, pod: Workload) -> bool:
    """Whether `pod` is one of the pods that `gateway` stands for."""
    service = gateway_service(view, gateway)
    if service is not None:
        return service.key in pod.services
    found = gateway_workload(view, gateway)
    return found is not None and found.uid == pod.uid
