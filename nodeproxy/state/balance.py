"""Choosing one of a service's endpoints, or one of its waypoints.

Round robin by weight: in as many choices as the weights add up to, each endpoint comes exactly as often as its `capacity` says,
and the choices of one are spread out.  Every instance (one a worker) has its own position, begun at a point that its seed
decides, so that workers do not all begin with the same endpoint.

Semantics (Istio's): unhealthy endpoints only where the service allows them; STRICT keeps those that match every scope; FAILOVER
takes those that match most scopes in order, up to the first mismatch.  PASSTHROUGH is not chosen here
(`nodeproxy.decide.outbound`).
Knows nothing of connections, live or failed.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from math import gcd

from nodeproxy.model.workload import Balancing, Scope, Service, WeightedGateway, Workload
from nodeproxy.state.kept import Endpoint

# Positions kept: one for each service, port and kind of source that this worker has balanced.
MAX_ROTATIONS = 4096
# Steps of this share of the whole spread the visits most evenly (the golden ratio: Weyl's equidistribution).
_GOLDEN = 0.6180339887498949

_SCOPES: dict[Scope, Callable[[Workload], str]] = {
    Scope.REGION: lambda workload: workload.locality.region,
    Scope.ZONE: lambda workload: workload.locality.zone,
    Scope.SUBZONE: lambda workload: workload.locality.subzone,
    Scope.NODE: lambda workload: workload.node,
    Scope.CLUSTER: lambda workload: workload.cluster,
    Scope.NETWORK: lambda workload: workload.network,
}


class _Rotation:
    """A walk over [0, sum of weights) that visits every integer once before it repeats; each item owns as many as its weight."""

    __slots__ = ("_bounds", "_position", "_stride", "_total", "basis", "items")

    def __init__(self, basis: object, items: Sequence[object], weights: Sequence[int], start: int) -> None:
        self.basis = basis  # what the items were chosen from: while it is the same object, they still hold
        self.items = items
        self._bounds = list(accumulate(weights))
        self._total = self._bounds[-1] if self._bounds else 0
        if self._total:
            self._stride = max(1, round(self._total * _GOLDEN))
            while gcd(self._stride, self._total) != 1:
                self._stride += 1
            self._position = start % self._total

    def next_index(self) -> int:
        """The index of the next item, -1 if no item has a weight."""
        if not self._total:
            return -1
        self._position = (self._position + self._stride) % self._total
        return bisect_right(self._bounds, self._position)


class Balancer:
    """The choices of one worker."""

    def __init__(self, seed: int | None = None) -> None:
        """seed: same seed, same choices; None: by chance."""
        self._random = random.Random(seed)
        self._rotations: dict[tuple[object, ...], _Rotation] = {}

    def choose(self, service: Service, endpoints: tuple[Endpoint, ...], source: Workload, port: int) -> Endpoint | None:
        """The next endpoint for a connection from `source` to service port `port` (0: whatever port); None if none is eligible.

        endpoints: as `View.endpoints` gave them; the same tuple again is the fast path.
        """
        key = (service.key, port, source.network, place_of(service, source))
        rotation = self._rotations.get(key)
        if rotation is None or rotation.basis is not endpoints:
            eligible = eligible_endpoints(service, endpoints, source, port)
            rotation = self._begin(key, endpoints, eligible, [workload.capacity for workload, _ in eligible])
        index = rotation.next_index()
        return None if index < 0 else rotation.items[index]  # type: ignore[return-value]  # this key's items are endpoints

    def choose_waypoint(self, service: Service) -> WeightedGateway | None:
        """The next of a service's weighted waypoints."""
        key = (service.key, "waypoints")
        rotation = self._rotations.get(key)
        if rotation is None or rotation.basis != service.weighted_waypoints:
            waypoints = service.weighted_waypoints
            rotation = self._begin(key, waypoints, waypoints, [waypoint.weight for waypoint in waypoints])
        index = rotation.next_index()
        return None if index < 0 else rotation.items[index]  # type: ignore[return-value]  # this key's items are waypoints

    def _begin(self, key: tuple[object, ...], basis: object, items: Sequence[object], weights: Sequence[int]) -> _Rotation:
        if len(self._rotations) >= MAX_ROTATIONS:
            self._rotations.clear()
        rotation = self._rotations[key] = _Rotation(basis, items, weights, self._random.getrandbits(32))
        return rotation


def place_of(service: Service, source: Workload) -> tuple[str, ...]:
    """What the choice of an endpoint depends on of where a source runs, its network apart."""
    return tuple(_SCOPES[scope](source) for scope in service.load_balancer.routing_preferences)


def target_port(service: Service, own: dict[int, int], port: int) -> int | None:
    """The port behind service port `port`: by the endpoint's own map, then the service's; None if neither lists it."""
    mapped = own.get(port)
    if mapped is None:
        mapped = service.ports.get(port)
    return mapped if mapped is None else mapped or port


def eligible_endpoints(service: Service, endpoints: tuple[Endpoint, ...], source: Workload, port: int) -> list[Endpoint]:
    """The endpoints that may be chosen for a connection from `source` to service port `port` (0: whatever port)."""
    balancer = service.load_balancer
    found = [
        (workload, ports)
        for workload, ports in endpoints
        if workload.addresses
        and (workload.healthy or balancer.allow_unhealthy)
        and (port == 0 or target_port(service, ports, port) is not None)
    ]
    if balancer.mode in (Balancing.STRICT, Balancing.FAILOVER) and balancer.routing_preferences and found:
        ranks = [_matches(balancer.routing_preferences, source, workload) for workload, _ in found]
        wanted = len(balancer.routing_preferences) if balancer.mode is Balancing.STRICT else max(ranks)
        found = [endpoint for endpoint, rank in zip(found, ranks, strict=True) if rank == wanted]
    # Other networks can't be reached yet (double HBONE): chosen only if there is nothing else, so that the refusal can name the
    # gateway.
    return [(workload, ports) for workload, ports in found if not is_remote(source.network, workload)] or found


def is_remote(network: str, destination: Workload) -> bool:
    """Whether `destination` is in another network than a source in `network`, behind that network's gateway."""
    return destination.network != network and destination.network_gateway is not None


def _matches(preferences: tuple[Scope, ...], source: Workload, workload: Workload) -> int:
    """How many scopes match in order, up to the first that does not."""
    for count, scope in enumerate(preferences):
        value = _SCOPES[scope]
        if value(source) != value(workload):
            return count
    return len(preferences)
