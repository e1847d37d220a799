"""Whether a connection that reaches a pod may enter, and where in the pod it goes.

Three ways in: through HBONE (the client has proved an identity and names its target), in plain (no identity), and from a pod of
the same node (the identity is the source pod's, which the kernel vouches for).  Each ends in the pod's policies, asked with the
pod's own ip:port.
Invariant: nothing is admitted without them.  Knows nothing of streams and sockets; `status_for` says what HTTP status a refusal
becomes.
"""

from __future__ import annotations

import msgspec

from nodeproxy.decide.demand import Names, missing_at, missing_gateway, missing_services, unanswered
from nodeproxy.decide.trace import Trace, note
from nodeproxy.decide.waypoint import is_waypoint
from nodeproxy.model.policy import Action, Policy
from nodeproxy.model.reason import Reason, Refusal
from nodeproxy.model.workload import OWN_PORTS, Gateway, Service, Workload
from nodeproxy.policy.authorize import Candidates, Considered, authorize
from nodeproxy.policy.match import Subject
from nodeproxy.state.balance import target_port
from nodeproxy.state.view import View
from nodeproxy.wire.hbone import MAX_AUTHORITY_BYTES, parse_authority

Address = tuple[str, int]

_STATUS = {
    Reason.POLICY_DENY: 401,
    Reason.POLICY_NO_ALLOW: 401,
    Reason.NOT_CONNECT: 400,
    Reason.BAD_AUTHORITY: 400,
    Reason.AUTHORITY_MISMATCH: 400,
}


class Admission(msgspec.Struct, frozen=True, kw_only=True):
    """A connection that may enter.

    address: where to connect within the pod; loopback, and then from loopback too, for an application tunnel with PROXY protocol.
    target: what the client asked for, for the PROXY header; a virtual address if it named a service.
    subject: for `recheck`.  dry_run: what dry-run policies would have refused.
    """

    address: Address
    target: Address
    subject: Subject
    service: Service | None = None
    proxy_protocol: bool = False
    dry_run: tuple[Refusal, ...] = ()


def status_for(refusal: Refusal) -> int:
    """The HTTP status that tells a client of this refusal."""
    return _STATUS.get(refusal.reason, 503)


def admit_hbone(
    view: View,
    pod: Workload,
    authority: str,
    socket_ip: str,
    source_identity: str,
    source_ip: str,
    trace: Trace | None = None,
    forwarded_host: str = "",
    names: Names = None,
) -> Admission | Refusal:
    """A CONNECT to `authority` that came to the pod's `socket_ip`:15008.

    forwarded_host: `host` of its `forwarded` header, "" if it has none.  names: None, or as in
    `outbound.outbound_on_demand`.
    """
    parsed = parse_authority(authority)
    if parsed is None:
        note(trace, "is the authority well-formed?", f"no: {authority[:MAX_AUTHORITY_BYTES]!r}")
        detail = f"{authority[:MAX_AUTHORITY_BYTES]!r} is no ip:port or host:port; the client is at fault"
        return Refusal(Reason.BAD_AUTHORITY, detail)
    host, port, is_ip = parsed
    if is_ip:
        if host != socket_ip and pod.application_tunnel is None and not _is_waypoint_of(view, pod, host):
            if names is not None and (missing := _missing_of_waypoint(view, pod, host, names)):
                return unanswered(missing)
            note(trace, "does the authority name this pod?", f"no: it came to {socket_ip}", pod.uid)
            detail = f"CONNECT to {authority} came to {socket_ip}; the client's state of the mesh may be old"
            return Refusal(Reason.AUTHORITY_MISMATCH, detail, pod.uid)
        service = _service_behind(view, pod, port, forwarded_host)
        return _admit(view, pod, (socket_ip, port), (host, port), service, source_identity, source_ip, trace)
    namespace = _namespace_of(source_identity)
    if names is not None and (missing := missing_services(view, _services_called(host, namespace, pod), names)):
        return unanswered(missing)
    service = view.service_by_host(host, namespace)
    if service is None:
        note(trace, "which service is that?", f"none has the hostname {host}")
        return Refusal(Reason.UNKNOWN_SERVICE, f"no service has the hostname {host}")
    mapped = target_port(service, pod.services.get(service.key, {}), port)
    if mapped is None:
        note(trace, "which port?", f"service {service.key} has no port {port}", service.key)
        return Refusal(Reason.NO_ENDPOINT, f"service {service.key} has no port {port}", service.key)
    note(trace, "which service is that?", f"{service.key}, port {mapped} of the pod", service.key)
    target = (_vip(service, pod, socket_ip), port)
    return _admit(view, pod, (socket_ip, mapped), target, service, source_identity, source_ip, trace)


def admit_plain(view: View, pod: Workload, ip: str, port: int, source_ip: str, trace: Trace | None = None) -> Admission | Refusal:
    """A plaintext connection to the pod's ip:port, from whoever has `source_ip`."""
    return _admit(view, pod, (ip, port), (ip, port), _service_behind(view, pod, port, ""), "", source_ip, trace, tunnel=False)


def admit_local(
    view: View, pod: Workload, ip: str, port: int, source: Workload, source_ip: str, trace: Trace | None = None
) -> Admission | Refusal:
    """A connection from pod `source` of this node to ip:port of `pod` on the same node."""
    return _admit(view, pod, (ip, port), (ip, port), _service_behind(view, pod, port, ""), source.identity, source_ip, trace)


def recheck(view: View, pod: Workload, subject: Subject) -> Refusal | None:
    """What today's policies, and the workload as it is today, say about a connection that was admitted to `pod` earlier."""
    return authorize(view.relevant_policies(view.workload(pod.uid) or pod, subject), subject).refusal


def _admit(
    view: View,
    pod: Workload,
    address: Address,
    target: Address,
    service: Service | None,
    source_identity: str,
    source_ip: str,
    trace: Trace | None,
    *,
    tunnel: bool = True,
) -> Admission | Refusal:
    if address[1] in OWN_PORTS:
        note(trace, f"is {address[1]} a port of the proxy's own?", "yes: refused", pod.uid)
        return Refusal(Reason.ILLEGAL_PORT, f"port {address[1]} is the proxy's own; connect to the application's port", pod.uid)
    application = pod.application_tunnel if tunnel else None
    if application is not None and application.port:
        address = (address[0], application.port)
    subject = Subject(source_identity, source_ip, *address)
    considered: list[Considered] | None = None if trace is None else []
    policies = view.relevant_policies(pod, subject)
    verdict = authorize(policies, subject, considered)
    if trace is not None:
        _tell(trace, policies, considered or [], verdict.refusal, pod)
    if verdict.refusal is not None:
        return verdict.refusal
    proxy_protocol = application is not None and application.proxy
    if proxy_protocol:
        # Such an application listens on loopback only, so that nobody reaches it but through the tunnel (ztunnel does the same).
        address = ("::1" if ":" in address[0] else "127.0.0.1", address[1])
    return Admission(
        address=address, target=target, subject=subject, service=service, proxy_protocol=proxy_protocol, dry_run=verdict.dry_run
    )


def _tell(
    trace: Trace,
    policies: tuple[Policy, ...] | Candidates,
    considered: list[Considered],
    refusal: Refusal | None,
    pod: Workload,
) -> None:
    if isinstance(policies, Candidates):
        count = len(policies.policies)
        note(trace, "which policies can match?", f"{count} of the {count + policies.left_out} that hold for {pod.name}")
    for item in considered:
        policy = item.policy
        outcome = "does not match" if item.rule < 0 else f"matches with rule {item.rule}"
        if policy.stands_in:
            outcome += f"; it holds the place of one that can't be understood: {policy.stands_in}"
        dry_run = " (dry run)" if policy.dry_run else ""
        note(trace, f"{'allowed' if policy.action is Action.ALLOW else 'denied'} by policy?{dry_run}", outcome, policy.key)
    if refusal is not None:
        note(trace, "what does policy say?", refusal.detail, refusal.resource)
    else:
        note(trace, "what does policy say?", "allowed" if policies else f"allowed: no policy holds for {pod.name}")


def _is_waypoint_of(view: View, pod: Workload, ip: str) -> bool:
    """Whether `pod` is the waypoint of whatever has this address: then it is handed what is meant for that."""
    return any(is_waypoint(view, gateway, pod) for gateway in _waypoints_of(view, pod, ip))


def _waypoints_of(view: View, pod: Workload, ip: str) -> list[Gateway]:
    gateways = []
    for network in dict.fromkeys((pod.network, "")):
        owner = view.workload_at(network, ip)
        service = view.service_at(network, ip)
        gateways += [found.waypoint for found in (owner, service) if found is not None and found.waypoint is not None]
        if service is not None:
            gateways += [weighted.gateway for weighted in service.weighted_waypoints]
    return gateways


def _missing_of_waypoint(view: View, pod: Workload, ip: str, names: set[str]) -> tuple[str, ...]:
    """What must be asked to know whether `pod` is the waypoint of whatever has this address."""
    missing = list(missing_at(view, pod.network, ip, names))
    for gateway in _waypoints_of(view, pod, ip):
        missing += missing_gateway(view, gateway, names)
    return tuple(dict.fromkeys(missing))


def _services_called(host: str, namespace: str, pod: Workload) -> list[str]:
    """Keys of the services that a client in `namespace` may mean by a hostname which it sends to `pod`."""
    own = [key for key in pod.services if key.partition("/")[2].lower() == host.lower()]
    return [*own, f"{namespace}/{host}", f"{pod.namespace}/{host}"]


def _service_behind(view: View, pod: Workload, port: int, forwarded_host: str) -> Service | None:
    """The service that the client most likely meant: the one it says, else the first of the pod's that leads to this port."""
    first = None
    for key in sorted(pod.services):
        service = view.service(key)
        if service is None:
            continue
        own = pod.services[key]
        if forwarded_host and service.hostname == forwarded_host:
            return service
        if first is None and any(target_port(service, own, listed) == port for listed in (*own, *service.ports)):
            first = service
    return first


def _vip(service: Service, pod: Workload, socket_ip: str) -> str:
    """A virtual address of the service, in the pod's network if there is one; the pod's own for a service without any."""
    vips = [vip.partition("/") for vip in service.vips]
    best = max(vips, key=lambda vip: (vip[0] == pod.network, ":" not in vip[2]), default=("", "", socket_ip))
    return best[2]


def _namespace_of(identity: str) -> str:
    """The namespace in spiffe://trust-domain/ns/NAMESPACE/sa/…, "" if there is none."""
    return identity.partition("/ns/")[2].partition("/")[0]
