"""Which gateways are waypoints, and which of them a workload or service asks for.

A gateway is a waypoint once it can be reached: at an address of its status or, as long as nobody writes one, at the service that
has its label.  What asks for one that is not there goes without, as with istiod: a new waypoint must not cut its users off.
Knows nothing of what the users are.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from nodeproxy.model.workload import ApplicationTunnel, Gateway, WeightedGateway
from nodeproxy.policy.address import canonical_ip
from nodeproxy.translate import names, objects
from nodeproxy.translate.selection import matches
from nodeproxy.translate.settings import MeshSettings

Labels = Mapping[str, str]
_HBONE_PORT = 15008  # of a waypoint's HBONE listener, whatever else it listens on
_FULL = 100  # percent
_MAX_PORT = 65535
_MAX_DIGITS = 5


class Waypoint(msgspec.Struct, frozen=True, kw_only=True):
    """A gateway that traffic can be sent through.

    key: "namespace/name" of the Gateway.  tunnel: how its own pods want what is tunnelled to them.
    allowed: whose traffic it takes.
    """

    key: str
    namespace: str
    gateway: Gateway
    for_services: bool
    for_workloads: bool
    tunnel: ApplicationTunnel | None = None
    allowed: objects.AllowedNamespaces = objects.AllowedNamespaces()

    def admits(self, namespace: str, labels: Labels) -> bool:
        """Whether what lives in a namespace with these labels may use it."""
        return admits(self.allowed, self.namespace, namespace, labels)


def admits(allowed: objects.AllowedNamespaces, own: str, namespace: str, labels: Labels) -> bool:
    """Whether a gateway of the namespace `own` takes what lives in a namespace with these labels."""
    if allowed.from_ == "All":
        return True
    if allowed.from_ == "Selector":
        return matches(allowed.selector, labels)
    return namespace == own


def traffic(gateway: objects.Gateway, gateway_class: objects.GatewayClass | None) -> str:
    """What a gateway is a waypoint for: "service", "workload", "all" or anything else, which is nothing."""
    default = "service" if gateway_class is None else gateway_class.metadata.labels.get(names.WAYPOINT_FOR, "service")
    return gateway.metadata.labels.get(names.WAYPOINT_FOR, default)


def tunnel(gateway: objects.Gateway, gateway_class: objects.GatewayClass | None) -> ApplicationTunnel | None:
    """How a gateway's own pods want what is tunnelled to them; None: as HBONE."""
    default = "" if gateway_class is None else gateway_class.metadata.annotations.get(names.INBOUND_BINDING, "")
    return _tunnel(gateway.metadata.annotations.get(names.INBOUND_BINDING, default))


def named(labels: Labels, namespace: str) -> str | None:
    """The key of the waypoint that these labels ask for; "" for none at all, None if they say nothing."""
    name = labels.get(names.USE_WAYPOINT)
    if name is None:
        return None
    return "" if name == names.NONE else f"{labels.get(names.USE_WAYPOINT_NAMESPACE, namespace)}/{name}"


def named_canary(labels: Labels, namespace: str) -> str | None:
    """The key of the second waypoint that these labels ask for."""
    name = labels.get(names.USE_CANARY)
    if not name or name == names.NONE:
        return None
    return f"{labels.get(names.USE_CANARY_NAMESPACE, namespace)}/{name}"


def references(labels: Labels, namespace: str) -> tuple[str, ...]:
    """The keys of all gateways on which the meaning of these labels depends."""
    if not (names.USE_WAYPOINT in labels or names.GATEWAY_NAME in labels or names.USE_CANARY in labels):
        return ()
    found = [named(labels, namespace), named_canary(labels, namespace)]
    if names.GATEWAY_NAME in labels:
        found.append(f"{namespace}/{labels[names.GATEWAY_NAME]}")
    return tuple({key: None for key in found if key})


class Waypoints:
    """All gateways, their classes, and the services that are gateways'."""

    def __init__(self, settings: MeshSettings) -> None:
        self._settings = settings
        self._gateways: dict[str, objects.Gateway] = {}
        self._classes: dict[str, objects.GatewayClass] = {}
        self._by_class: dict[str, set[str]] = {}
        self._services: dict[str, set[str]] = {}
        self._waypoints: dict[str, Waypoint] = {}

    def apply_gateway(self, key: str, gateway: objects.Gateway | None) -> bool:
        """A gateway is new, changed or gone (None); whether its users are concerned."""
        former = self._gateways.pop(key, None)
        if former is not None:
            self._by_class[former.spec.gateway_class_name].discard(key)
        if gateway is not None:
            self._gateways[key] = gateway
            self._by_class.setdefault(gateway.spec.gateway_class_name, set()).add(key)
        return self._settle(key)

    def apply_class(self, name: str, gateway_class: objects.GatewayClass | None) -> list[str]:
        """A class is new, changed or gone; the keys of the gateways whose users are concerned."""
        self._classes.pop(name, None)
        if gateway_class is not None:
            self._classes[name] = gateway_class
        return [key for key in sorted(self._by_class.get(name, ())) if self._settle(key)]

    def apply_service(self, namespace: str, name: str, gateway: str, there: bool) -> bool:
        """The service `name` is there (or not) with the label of `gateway`; whether that gateway's users are concerned."""
        key = f"{namespace}/{gateway}"
        services = self._services.setdefault(key, set())
        (services.add if there else services.discard)(name)
        if not services:
            del self._services[key]
        return self._settle(key)

    def get(self, key: str) -> Waypoint | None:
        """The waypoint of a gateway's key."""
        return self._waypoints.get(key)

    def of_instance(self, namespace: str, labels: Labels) -> Waypoint | None:
        """The waypoint that something with these labels is an instance of."""
        name = labels.get(names.GATEWAY_NAME)
        return self._waypoints.get(f"{namespace}/{name}") if name else None

    def for_workload(self, namespace: str, labels: Labels, namespace_labels: Labels) -> Gateway | None:
        """Where to send what is addressed to a workload with these labels."""
        found = self._wanted(namespace, labels, namespace_labels)
        return found.gateway if found is not None and found.for_workloads else None

    def for_service(self, namespace: str, labels: Labels, namespace_labels: Labels) -> Waypoint | None:
        """Where to send what is addressed to a service with these labels.  Waypoints' own services have none."""
        if labels.get(names.GATEWAY_MANAGED) in names.MANAGED_WAYPOINTS:
            return None
        found = self._wanted(namespace, labels, namespace_labels)
        return found if found is not None and found.for_services else None

    def shared(
        self, primary: Waypoint, namespace: str, labels: Labels, annotations: Labels, home: tuple[Labels, Labels]
    ) -> tuple[WeightedGateway, ...]:
        """The two waypoints that share a service's connections while one of them is on trial; empty if none is.

        home: the namespace's labels and annotations, which hold where the primary waypoint is the namespace's too.  What is
        wrong about the second leaves all to the first.
        """
        inherited = named(labels, namespace) is None
        key = named_canary(labels, namespace)
        if key is None and inherited:
            key = named_canary(home[0], namespace)
        second = self._waypoints.get(key) if key else None
        if second is None or second.key == primary.key:
            return ()
        if not second.for_services or not second.admits(namespace, home[0]):
            return ()
        text = annotations.get(names.CANARY_WEIGHT)
        if text is None and inherited:
            text = home[1].get(names.CANARY_WEIGHT)
        weight = 0 if text is None else _number(text)
        if not 0 <= weight <= _FULL:
            return ()
        return (WeightedGateway(primary.gateway, _FULL - weight), WeightedGateway(second.gateway, weight))

    def _wanted(self, namespace: str, labels: Labels, namespace_labels: Labels) -> Waypoint | None:
        key = named(labels, namespace)
        if key is None:
            key = named(namespace_labels, namespace)
        found = self._waypoints.get(key) if key else None
        return found if found is not None and found.admits(namespace, namespace_labels) else None

    def _settle(self, key: str) -> bool:
        former = self._waypoints.pop(key, None)
        gateway = self._gateways.get(key)
        found = None if gateway is None else self._waypoint(key, gateway)
        if found is not None:
            self._waypoints[key] = found
        return found != former

    def _waypoint(self, key: str, gateway: objects.Gateway) -> Waypoint | None:
        address = self._address(key, gateway)
        if address is None:
            return None
        gateway_class = self._classes.get(gateway.spec.gateway_class_name)
        purpose = traffic(gateway, gateway_class)
        own_tunnel = tunnel(gateway, gateway_class)
        return Waypoint(
            key=key,
            namespace=gateway.metadata.namespace,
            gateway=address,
            for_services=purpose in ("service", "all"),
            for_workloads=purpose in ("workload", "all"),
            tunnel=own_tunnel,
            allowed=allowed_namespaces(gateway, own_tunnel),
        )

    def _address(self, key: str, gateway: objects.Gateway) -> Gateway | None:
        namespace, name = gateway.metadata.namespace, gateway.metadata.name
        addresses = gateway.status.addresses
        for item in addresses:
            if item.type == "Hostname":
                return Gateway(destination=f"{namespace}/{item.value}", is_hostname=True)
        for item in addresses:
            try:
                return Gateway(destination=f"{self._settings.network}/{canonical_ip(item.value)}")
            except ValueError:
                continue  # the next one may be an address
        services = self._services.get(key)
        if addresses or not services:
            return None
        service = name if name in services else min(services)
        return Gateway(destination=f"{namespace}/{self._settings.hostname(namespace, service)}", is_hostname=True)


def _tunnel(binding: str) -> ApplicationTunnel | None:
    protocol, _, text = binding.partition("/")
    port = _number(text) if text else 0
    if protocol not in ("NONE", "PROXY") or not 0 <= port <= _MAX_PORT:
        return None
    return ApplicationTunnel(port=port, proxy=protocol == "PROXY")


def _number(text: str) -> int:
    """A decimal number of a few digits; -1 if it is none."""
    return int(text) if text.isdecimal() and len(text) <= _MAX_DIGITS else -1


def allowed_namespaces(gateway: objects.Gateway, tunnel: ApplicationTunnel | None) -> objects.AllowedNamespaces:
    """Whose traffic the listener takes that tunnelled traffic comes to; `tunnel`: the gateway's."""

    def bound(listener: objects.Listener) -> bool:
        if tunnel is None:
            return False
        return listener.port == tunnel.port if tunnel.port else tunnel.proxy and listener.protocol == "istio.io/PROXY"

    for listener in gateway.spec.listeners:
        if bound(listener):
            break
    else:
        for listener in gateway.spec.listeners:
            if listener.protocol == "HBONE" and listener.port == _HBONE_PORT:
                break
        else:
            return objects.AllowedNamespaces()
    routes = listener.allowed_routes
    return objects.AllowedNamespaces() if routes is None or routes.namespaces is None else routes.namespaces
