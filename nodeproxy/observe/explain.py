"""What would happen to a connection, for `why`: the very decisions that a worker makes, asked to tell their steps.

Invariant: nothing is decided here.  The way out is `decide.outbound`'s, the destination's answer `decide.inbound`'s; a
destination whose node is another is judged by the policies that this node knows, which is what that node does with the same
state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from nodeproxy.decide.demand import Names, missing_at, unanswered
from nodeproxy.decide.inbound import Admission, admit_hbone, admit_local, admit_plain
from nodeproxy.decide.outbound import Route, RouteKind, outbound, outbound_on_demand, who_is
from nodeproxy.decide.trace import Step, Trace, note
from nodeproxy.decide.waypoint import pick_ip
from nodeproxy.errors import ConfigError
from nodeproxy.model.address import join_address
from nodeproxy.model.reason import Reason, Refusal
from nodeproxy.model.workload import Protocol, Service, Workload
from nodeproxy.policy.address import canonical_ip
from nodeproxy.policy.beforehand import Hindrance
from nodeproxy.state.balance import Balancer, target_port
from nodeproxy.state.view import View
from nodeproxy.wire.hbone import parse_authority

_MAX_EXAMPLES = 5
_MAX_PORT = 65535


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """How a connection would arrive where it ends, for whoever wants to hear that node's opinion (`explain_arrival`).

    kind: a RouteKind.  address: the ip:port at the end.  authority: HBONE's.  workload, node: uid of who is there, and its node,
    "" where that is not known.  via_waypoint: it is a waypoint, which decides where it goes from there.
    identity: what the source proves, "" in plain.  source_address: its IP.
    """

    kind: str
    address: str
    authority: str = ""
    workload: str = ""
    node: str = ""
    via_waypoint: bool = False
    identity: str = ""
    source_address: str = ""


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """steps: what was asked, in order.  outcome: one sentence.  refusal: why it would not be, None if it would.

    destination: the ip:port that was asked for, after names were resolved.  direct: the kernel would carry it, without the proxy.
    enrolled: whether the source is steered, as far as this node can know; None for another node's.  way: None if there is none.
    """

    source: str
    destination: str
    steps: tuple[Step, ...]
    outcome: str
    refusal: Refusal | None = None
    direct: bool = False
    enrolled: bool | None = None
    way: Way | None = None


# Why a connection from a workload to ip:port, which `outbound` gave a route, goes through the proxy; None: it does not.
DirectHindrance = Callable[[View, Workload, str, int, Route], Hindrance | None]


def explain(
    view: View,
    balancer: Balancer,
    source: str,
    destination: str,
    is_local: Callable[[str], bool],
    *,
    same_node_hbone: bool = False,
    direct: DirectHindrance | None = None,
    names: Names = None,
    outside: str = "",
) -> Explanation:
    """What would become of a connection from `source` to `destination`.

    names: None, or as in `outbound_on_demand`: then the refusal may be `Unanswered`.

    source: a workload's uid, "name.namespace", "namespace/name", name or address.
    destination: "ADDRESS:PORT", "HOST:PORT" of a service ("name.namespace" will do), or a workload as above, "WORKLOAD[:PORT]".
    outside: why nothing of the source is steered; "" if it is.
    Raises ConfigError if one of them names nothing, or several.
    """
    steps: Trace = []
    pod = find_workload(view, source)
    ip, port = _resolve(view, pod, destination, steps)
    if outside:
        note(steps, "is the source in the mesh?", f"no: {outside}", pod.uid)
        route = _as_it_is(view, pod, ip, port, balancer, names, steps)
    elif names is None:
        route = outbound(view, pod, ip, port, balancer, is_local, steps, same_node_hbone=same_node_hbone)
    else:
        route = outbound_on_demand(view, pod, ip, port, balancer, is_local, names, steps, same_node_hbone=same_node_hbone)
    refusal = route if isinstance(route, Refusal) else _at_destination(view, pod, route, steps, names, bool(outside))
    if refusal is not None:
        outcome = f"refused ({refusal.reason}): {refusal.detail}"
    else:
        outcome = "not captured, " * bool(outside) + _describe(route)
    is_direct = False
    if isinstance(route, Route) and route.kind is RouteKind.LOCAL and refusal is None and direct is not None:
        hindrance = direct(view, pod, ip, port, route)
        is_direct = hindrance is None
        said = "no: the kernel carries it" if hindrance is None else f"yes: {hindrance.detail}"
        note(steps, "through the proxy?", said, hindrance.resource if hindrance is not None else "")
        outcome += ", without the proxy" if is_direct else ", through the proxy"
    return Explanation(
        source=pod.uid,
        destination=join_address(ip, port),
        steps=tuple(steps),
        outcome=outcome,
        refusal=refusal,
        direct=is_direct,
        way=_way(route, pod, bool(outside)) if isinstance(route, Route) else None,
    )


def _as_it_is(
    view: View, source: Workload, ip: str, port: int, balancer: Balancer, names: Names, steps: Trace
) -> Route | Refusal:
    """Where a connection goes that nobody steers: kube-proxy, or what stands for it, picks one of a service's endpoints."""
    if names is not None and (missing := missing_at(view, source.network, ip, names)):
        return unanswered(missing)
    service, workload = who_is(view, source.network, ip)
    if service is not None:
        endpoint = balancer.choose(service, view.endpoints(service.key), source, port)
        if endpoint is None:
            detail = f"service {service.key} has no endpoint for port {port}"
            note(steps, "which endpoint?", detail, service.key)
            return Refusal(Reason.NO_ENDPOINT, detail, service.key)
        workload, own = endpoint
        ip, port = pick_ip(workload, ip), target_port(service, own, port) or port
        note(steps, "which endpoint?", f"{workload.name} at {join_address(ip, port)}, say: the cluster picks one", workload.uid)
    if workload is None:
        note(steps, f"who is {ip}?", "unknown")
        return Route(kind=RouteKind.PASSTHROUGH, address=(ip, port))
    note(steps, "how is it reached?", "in plain: without the source's identity", workload.uid)
    return Route(kind=RouteKind.PLAIN, address=(ip, port), destination=workload, service=service)


def _way(route: Route, source: Workload, outside: bool) -> Way:
    end = route.destination
    proves = route.kind in (RouteKind.HBONE, RouteKind.LOCAL) and not outside
    return Way(
        kind=route.kind.value,
        address=join_address(*(route.peer if route.via_waypoint else route.address)),
        authority=route.authority,
        workload=end.uid if end is not None else "",
        node=end.node if end is not None else "",
        via_waypoint=route.via_waypoint,
        identity=source.identity if proves else "",
        source_address=source.addresses[0] if source.addresses else "",
    )


def find_workload(view: View, text: str) -> Workload:
    """The workload that a person means: by uid, address, "name.namespace", "namespace/name" or name.  Raises ConfigError."""
    found = view.workload(text) or _by_address(view, text)
    if found is not None:
        return found
    named = [workload for workload in view.workloads() if text in _names(workload)]
    if len(named) == 1:
        return named[0]
    if not named:
        raise ConfigError(f"no workload is called {text!r}; `nodeproxy status` lists what this node knows")
    raise ConfigError(f"{len(named)} workloads are called {text!r}; say which: {', '.join(_examples(named))}")


def _examples(workloads: Iterable[Workload]) -> list[str]:
    shown = [workload.uid for workload in workloads]
    return shown[:_MAX_EXAMPLES] + (["…"] if len(shown) > _MAX_EXAMPLES else [])


def _names(workload: Workload) -> tuple[str, str, str]:
    return workload.name, f"{workload.name}.{workload.namespace}", f"{workload.namespace}/{workload.name}"


def _by_address(view: View, text: str) -> Workload | None:
    try:
        ip = canonical_ip(text)
    except ValueError:
        return None
    return view.workload_at("", ip) or next((workload for workload in view.workloads() if ip in workload.addresses), None)


def _resolve(view: View, source: Workload, destination: str, steps: Trace) -> tuple[str, int]:
    """The ip:port that a client which asks for `destination` connects to."""
    parsed = parse_authority(destination)
    if parsed is not None and parsed[2]:
        return parsed[0], parsed[1]
    name, port = (parsed[0], parsed[1]) if parsed is not None else (destination, 0)
    service = _find_service(view, name, source.namespace)
    if service is not None:
        return _service_address(view, source, service, port, steps)
    # A uid may have upper-case letters and slashes, which an authority has not.
    text, _, tail = destination.rpartition(":")
    if parsed is None and tail.isascii() and tail.isdigit() and text and _by_address(view, destination) is None:
        name, port = text, int(tail)
        if not 0 < port <= _MAX_PORT:
            raise ConfigError(f"{tail} is no port; ports go from 1 to {_MAX_PORT}")
    workload = find_workload(view, name)
    if not workload.addresses:
        raise ConfigError(f"workload {workload.uid} has no address; name an address and a port")
    if not port:
        port = min(_ports_of(view, workload), default=0)
        if not port:
            raise ConfigError(f"which port of {workload.uid}? write {destination}:PORT")
    note(steps, f"who is {name}?", f"workload {workload.name} at {workload.addresses[0]}", workload.uid)
    return workload.addresses[0], port


def _ports_of(view: View, workload: Workload) -> set[int]:
    """The ports of a workload that its services lead to."""
    found: set[int | None] = set()
    for key, own in workload.services.items():
        service = view.service(key)
        if service is not None:
            found.update(target_port(service, own, listed) for listed in (*own, *service.ports))
    return {port for port in found if port is not None}


def _find_service(view: View, name: str, namespace: str) -> Service | None:
    """By hostname; else by "name.namespace" or a name in the client's namespace."""
    found = view.service_by_host(name, namespace)
    if found is not None:
        return found
    wanted = (name, f"{name}.{namespace}")
    for service in view.services():
        if f"{service.name}.{service.namespace}" in wanted and _visible(service, namespace):
            return service
    return None


def _visible(service: Service, namespace: str) -> bool:
    return service.namespace == namespace or not service.namespace_only


def _service_address(view: View, source: Workload, service: Service, port: int, steps: Trace) -> tuple[str, int]:
    if not port:
        if not service.ports:
            raise ConfigError(f"service {service.key} has no ports; write HOST:PORT")
        port = min(service.ports)
    vips = [vip.partition("/") for vip in service.vips]
    for network, _, ip in vips:
        if network in (source.network, ""):
            note(steps, f"who is {service.hostname}?", f"a service at {ip}", service.key)
            return ip, port
    # A headless service: DNS answers with an endpoint's address.
    for workload, own in view.endpoints(service.key):
        if workload.addresses:
            note(steps, f"who is {service.hostname}?", f"a headless service, e.g. {workload.addresses[0]}", service.key)
            return workload.addresses[0], own.get(port, 0) or service.ports.get(port, 0) or port
    raise ConfigError(f"service {service.key} has neither a virtual address nor an endpoint; nothing can connect to it")


def _at_destination(view: View, source: Workload, route: Route, steps: Trace, names: Names, outside: bool) -> Refusal | None:
    """What the destination, or the waypoint before it, says."""
    pod = route.destination
    source_ip = source.addresses[0] if source.addresses else ""
    if pod is None:
        return None
    if route.kind is RouteKind.PLAIN and not (outside and pod.protocol is Protocol.HBONE):
        note(steps, "what does policy say?", "nothing: no proxy stands before a workload outside the mesh", pod.uid)
        return None
    answer: Admission | Refusal
    if route.kind is RouteKind.PLAIN:
        answer = admit_plain(view, pod, *route.address, source_ip, steps)
    elif route.kind is RouteKind.HBONE:
        answer = admit_hbone(view, pod, route.authority, route.peer[0], source.identity, source_ip, steps, names=names)
    else:
        answer = admit_local(view, pod, *route.address, source, source_ip, steps)
    if isinstance(answer, Refusal):
        return answer
    for refusal in answer.dry_run:
        note(steps, "what would dry-run policies say?", refusal.detail, refusal.resource)
    if route.via_waypoint:
        note(steps, "and then?", "the waypoint decides; what it sends on is judged once more where it arrives", pod.uid)
    return None


def _describe(route: Route | Refusal) -> str:
    if isinstance(route, Refusal):
        return route.detail
    target = join_address(*route.address)
    name = route.destination.name if route.destination is not None else ""
    if route.kind is RouteKind.PASSTHROUGH:
        return f"passed through to {target}, untouched"
    if route.kind is RouteKind.LOCAL:
        return f"connected to {name} at {target} on this node"
    if route.kind is RouteKind.PLAIN:
        where = "" if route.destination is not None and route.destination.protocol is Protocol.HBONE else ", outside the mesh"
        return f"connected to {name} at {target} in plain TCP{where}"
    via = f"through waypoint {name}" if route.via_waypoint else f"to {name}"
    return f"tunnelled {via} at {join_address(*route.peer)} in mutual TLS, for {target}"
