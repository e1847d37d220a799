"""From a mesh file's YAML to the value types, one function a kind of thing.

The schema is that of ztunnel's LOCAL_XDS_PATH (its serde names, camelCase), read as ztunnel reads it, with two differences that
make a hand-written file safer: an unknown key is an error everywhere, and where ztunnel would take an empty trust domain,
service account or cluster literally, they mean what istiod means by them.  Knows one entry at a time; what entries owe to each
other is `mesh_file`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from nodeproxy.agent.sources.yaml_nodes import Fields, Node
from nodeproxy.errors import ConfigError
from nodeproxy.model.delta import PodSpec
from nodeproxy.model.policy import Action, Clause, Match, Policy, PolicyScope, Rule, ServiceAccountMatch, StringMatch
from nodeproxy.model.workload import (
    DEFAULT_TRUST_DOMAIN,
    HBONE_PORT,
    ApplicationTunnel,
    Balancing,
    Gateway,
    LoadBalancer,
    Locality,
    Protocol,
    Scope,
    Service,
    WeightedGateway,
    Workload,
)
from nodeproxy.policy.address import canonical_ip, parse_cidr

_T = TypeVar("_T")

MAX_PORT = 65535
MAX_WEIGHT = (1 << 32) - 1  # a uint32 in istio.workload

# Maps, for each key of each entry is looked up.
_WORKLOAD_KEYS = dict.fromkeys(
    (
        "uid",
        "name",
        "namespace",
        "workloadIps",
        "protocol",
        "networkMode",
        "node",
        "network",
        "trustDomain",
        "serviceAccount",
        "workloadName",
        "workloadType",
        "canonicalName",
        "canonicalRevision",
        "hostname",
        "clusterId",
        "locality",
        "waypoint",
        "networkGateway",
        "nativeTunnel",
        "applicationTunnel",
        "authorizationPolicies",
        "status",
        "services",
        "capacity",
    )
)
_SERVICE_KEYS = dict.fromkeys(
    (
        "name",
        "namespace",
        "hostname",
        "vips",
        "ports",
        "subjectAltNames",
        "waypoint",
        "weightedWaypoints",
        "loadBalancer",
        "ipFamilies",
        "canonical",
        "visibility",
    )
)
_POLICY_KEYS = dict.fromkeys(("name", "namespace", "scope", "action", "rules", "dryRun"))
_MATCH_FIELDS = ("namespaces", "serviceAccounts", "principals", "sourceIps", "destinationIps", "destinationPorts")
_NEGATED = {name: "not" + name[0].upper() + name[1:] for name in _MATCH_FIELDS}
_MATCH_KEYS = dict.fromkeys((*_MATCH_FIELDS, *_NEGATED.values()))
_SCOPES = {"Global": PolicyScope.GLOBAL, "Namespace": PolicyScope.NAMESPACE, "WorkloadSelector": PolicyScope.WORKLOAD_SELECTOR}
_ACTIONS = {"Allow": Action.ALLOW, "Deny": Action.DENY}
_PROTOCOLS = {"TCP": Protocol.TCP, "HBONE": Protocol.HBONE}
_MODES = {
    "Standard": Balancing.UNSPECIFIED,
    "UNSPECIFIED_MODE": Balancing.UNSPECIFIED,
    "Strict": Balancing.STRICT,
    "Failover": Balancing.FAILOVER,
    "Passthrough": Balancing.PASSTHROUGH,
}
_PREFERENCES = {scope.value.title(): scope for scope in Scope}


def workload(node: Node) -> Workload:
    """An entry of `workloads`."""
    fields = node.fields(_WORKLOAD_KEYS)
    name, namespace = fields.text("name"), fields.need("namespace").text()
    cluster = fields.text("clusterId") or "Kubernetes"
    uid = fields.text("uid")
    if not uid:
        if not name:
            raise node.error("a workload needs the key 'uid', or 'name' to make one of; add it")
        uid = f"{cluster}//Pod/{namespace}/{name}"
    addresses = fields.get("workloadIps")
    if addresses is None and not fields.text("hostname"):
        raise node.error("a workload needs the key 'workloadIps'; add it, a list of addresses")
    capacity, status, mode = fields.get("capacity"), fields.get("status"), fields.get("networkMode")
    services, protocol = fields.get("services"), fields.get("protocol")
    return Workload(
        uid=uid,
        name=name or uid,
        namespace=namespace,
        addresses=tuple(_ip(item) for item in fields.items("workloadIps", of="an address")),
        network=fields.text("network"),
        protocol=Protocol.TCP if protocol is None else protocol.choice(_PROTOCOLS),
        trust_domain=fields.text("trustDomain") or DEFAULT_TRUST_DOMAIN,
        service_account=fields.text("serviceAccount") or "default",
        node=fields.text("node"),
        cluster=cluster,
        hostname=fields.text("hostname"),
        canonical_name=fields.text("canonicalName"),
        canonical_revision=fields.text("canonicalRevision"),
        workload_type=fields.text("workloadType").lower() or "pod",
        workload_name=fields.text("workloadName"),
        waypoint=_optional(fields, "waypoint", gateway),
        network_gateway=_optional(fields, "networkGateway", gateway),
        application_tunnel=_optional(fields, "applicationTunnel", _application_tunnel),
        native_tunnel=fields.boolean("nativeTunnel"),
        host_network=mode is not None and mode.choice({"Standard": False, "HostNetwork": True}),
        healthy=status is None or status.choice({"Healthy": True, "Unhealthy": False}),
        capacity=1 if capacity is None else capacity.integer(0, MAX_WEIGHT),
        locality=_optional(fields, "locality", _locality) or Locality(),
        services={} if services is None else {_slashed(key, "hostname"): _ports(value) for key, value in services.entries()},
        policies=tuple(_slashed(item, "name") for item in fields.items("authorizationPolicies", of="a policy's key")),
    )


def service(node: Node) -> Service:
    """An entry of `services`."""
    fields = node.fields(_SERVICE_KEYS)
    visibility, families = fields.get("visibility"), fields.get("ipFamilies")
    if families is not None:
        # Checked, then let go: an endpoint's address of the family of the virtual address that was asked for is preferred anyway.
        families.choice({"IPv4": 4, "IPv6": 6, "Dual": 0})
    return Service(
        name=fields.need("name").text(),
        namespace=fields.need("namespace").text(),
        hostname=fields.need("hostname").text(),
        vips=tuple(network_address(item) for item in fields.items("vips", of="a virtual address")),
        ports=_ports(fields.need("ports")),
        subject_alt_names=tuple(_spiffe(item) for item in fields.items("subjectAltNames", of="a subject alt name")),
        waypoint=_optional(fields, "waypoint", gateway),
        weighted_waypoints=tuple(_weighted(item) for item in fields.items("weightedWaypoints", of="a weighted waypoint")),
        load_balancer=_optional(fields, "loadBalancer", _load_balancer) or LoadBalancer(),
        canonical=fields.boolean("canonical"),
        namespace_only=visibility is not None and visibility.choice({"Public": False, "Namespace": True}),
    )


def policy(node: Node) -> Policy:
    """An entry of `policies`."""
    fields = node.fields(_POLICY_KEYS)
    return Policy(
        name=fields.need("name").text(),
        # A global policy is one of the root namespace, which may have no name here.
        namespace=fields.text("namespace"),
        scope=fields.need("scope").choice(_SCOPES),
        action=fields.need("action").choice(_ACTIONS),
        rules=tuple(_rule(item) for item in fields.need("rules").items(of="a rule")),
        dry_run=fields.boolean("dryRun"),
    )


def pod(node: Node) -> PodSpec:
    """An entry of `pods`."""
    fields = node.fields(("uid", "netns"))
    netns = fields.need("netns")
    if not netns.text().startswith("/"):
        raise netns.error(f"netns must be an absolute path, not {netns.text()!r}; write it like /run/netns/NAME")
    return PodSpec(uid=fields.need("uid").text(), netns=netns.text())


def gateway(node: Node) -> Gateway:
    """A waypoint's or network gateway's place."""
    return _gateway(node.fields(("destination", "hboneMtlsPort")))


def network_address(node: Node) -> str:
    """ "network/address" in canonical form."""
    network, slash, address = node.raw().partition("/")
    try:
        if slash:
            return f"{network}/{canonical_ip(address)}"
    except ValueError:
        pass  # told below, together with the missing slash
    raise node.error(f"{node.name} must be network/address, not {node.raw()!r}; in the default network, write /10.0.0.1")


def _optional(fields: Fields, name: str, read: Callable[[Node], _T]) -> _T | None:
    node = fields.get(name)
    return None if node is None else read(node)


def _gateway(fields: Fields) -> Gateway:
    destination, port = fields.need("destination"), fields.get("hboneMtlsPort")
    hbone_port = HBONE_PORT if port is None else port.integer(1, MAX_PORT)
    # As in ztunnel's untagged enum: an address if it can be one, else a hostname.
    network, slash, rest = destination.raw().partition("/")
    try:
        return Gateway(destination=f"{network}/{canonical_ip(rest)}", hbone_port=hbone_port)
    except ValueError:
        if not network or not slash or not rest:
            raise destination.error(
                f"{destination.name} must be network/address or namespace/hostname, not {destination.raw()!r}"
            ) from None
        return Gateway(destination=destination.raw(), hbone_port=hbone_port, is_hostname=True)


def _weighted(node: Node) -> WeightedGateway:
    fields = node.fields(("destination", "hboneMtlsPort", "weight"))
    weight = fields.get("weight")
    destination = fields.need("destination")
    nested = gateway(destination) if destination.is_map else _gateway(fields)
    return WeightedGateway(gateway=nested, weight=1 if weight is None else weight.integer(0, MAX_WEIGHT))


def _application_tunnel(node: Node) -> ApplicationTunnel:
    fields = node.fields(("protocol", "port"))
    port = fields.get("port")
    proxy = fields.need("protocol").choice({"NONE": False, "PROXY": True})
    return ApplicationTunnel(port=0 if port is None else port.integer(0, MAX_PORT), proxy=proxy)


def _locality(node: Node) -> Locality:
    fields = node.fields(("region", "zone", "subzone"))
    return Locality(region=fields.text("region"), zone=fields.text("zone"), subzone=fields.text("subzone"))


def _load_balancer(node: Node) -> LoadBalancer:
    fields = node.fields(("routingPreferences", "mode", "healthPolicy"))
    mode, health = fields.get("mode"), fields.get("healthPolicy")
    preferences = fields.items("routingPreferences", of="a routing preference")
    return LoadBalancer(
        routing_preferences=tuple(item.choice(_PREFERENCES) for item in preferences),
        mode=Balancing.UNSPECIFIED if mode is None else mode.choice(_MODES),
        allow_unhealthy=health is not None and health.choice({"OnlyHealthy": False, "AllowAll": True}),
    )


def _ports(node: Node) -> dict[int, int]:
    return {key.integer(1, MAX_PORT): value.integer(0, MAX_PORT) for key, value in node.entries()}


def _ip(node: Node) -> str:
    try:
        return canonical_ip(node.raw())
    except ValueError:
        raise node.error(f"{node.name} must be an IP address, not {node.raw()!r}; write it like 10.0.0.1 or fd00::1") from None


def _slashed(node: Node, second: str) -> str:
    namespace, slash, rest = node.text().partition("/")
    if not namespace or not slash or not rest or "/" in rest:
        raise node.error(f"{node.text()!r} must be namespace/{second}")
    return node.text()


def _spiffe(node: Node) -> str:
    if not node.text().startswith("spiffe://"):
        raise node.error(f"{node.name} must be a SPIFFE ID, not {node.text()!r}; write spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT")
    return node.text()


def _rule(node: Node) -> Rule:
    return tuple(_clause(item) for item in node.items(of="a clause"))


def _clause(node: Node) -> Clause:
    return tuple(_match(item) for item in node.items(of="a match"))


def _match(node: Node) -> Match:
    fields = node.fields(_MATCH_KEYS)
    found: dict[str, tuple[object, ...]] = {}
    readers: tuple[tuple[str, str, Callable[[Node], object]], ...] = (
        ("namespaces", "namespaces", _string_match),
        ("principals", "principals", _string_match),
        ("serviceAccounts", "service_accounts", _service_account),
        ("sourceIps", "source_ips", _cidr),
        ("destinationIps", "destination_ips", _cidr),
        # Istio takes 0, to which nobody connects.
        ("destinationPorts", "destination_ports", lambda item: item.integer(0, MAX_PORT)),
    )
    for name, attribute, read in readers:
        found[attribute] = tuple(read(item) for item in fields.items(name, of=f"an item of {name}"))
        negated = _NEGATED[name]
        found[f"not_{attribute}"] = tuple(read(item) for item in fields.items(negated, of=f"an item of {negated}"))
    return Match(**found)  # type: ignore[arg-type]  # each attribute has its own reader above


_KINDS: dict[str, Callable[[str], StringMatch]] = {
    "exact": lambda text: StringMatch(exact=text),
    "prefix": lambda text: StringMatch(prefix=text),
    "suffix": lambda text: StringMatch(suffix=text),
}


def _string_match(node: Node) -> StringMatch:
    """`{exact: foo}`, as ztunnel's serde also `{Exact: foo}`, `!Exact foo`, `Presence`."""
    advice = "write {exact: TEXT}, {prefix: TEXT}, {suffix: TEXT} or {presence: true}"
    if not node.is_map:
        kind = (node.local_tag or node.raw()).lower()
        if kind == "presence":
            return StringMatch(presence=True)
        if not node.local_tag or kind not in _KINDS:
            raise node.error(f"{node.name} must say how to compare; {advice}")
        return _KINDS[kind](node.text())
    entries = node.entries()
    if len(entries) != 1 or entries[0][0].raw().lower() not in (*_KINDS, "presence"):
        raise node.error(f"{node.name} must have one key; {advice}")
    kind, value = entries[0][0].raw().lower(), entries[0][1]
    if kind in _KINDS:
        return _KINDS[kind](value.text())
    if not value.is_map and not value.is_null and not value.boolean():
        raise value.error("presence can only be true; for its opposite use the field's not… twin")
    return StringMatch(presence=True)


def _service_account(node: Node) -> ServiceAccountMatch:
    fields = node.fields(("namespace", "serviceAccount"))
    return ServiceAccountMatch(namespace=fields.need("namespace").text(), service_account=fields.need("serviceAccount").text())


def _cidr(node: Node) -> str:
    try:
        parse_cidr(node.raw())
    except ConfigError as exc:
        raise node.error(str(exc)) from exc
    return node.raw()
