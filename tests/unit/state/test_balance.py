"""Choosing endpoints and waypoints."""

from __future__ import annotations

from collections import Counter

import pytest

from nodeproxy.model.workload import Balancing, Gateway, LoadBalancer, Locality, Scope, Service, WeightedGateway, Workload
from nodeproxy.state.balance import Balancer, eligible_endpoints, target_port
from nodeproxy.state.kept import Endpoint
from tests.unit.state.builders import pod, service

SOURCE = pod("client", "10.0.0.1", node="n1", locality=Locality("r1", "z1", "s1"))


def endpoints(*workloads: Workload) -> tuple[Endpoint, ...]:
    return tuple((workload, {}) for workload in workloads)


def names(found: list[Endpoint]) -> list[str]:
    return [workload.name for workload, _ in found]


def choose(balancer: Balancer, of: Service, among: tuple[Endpoint, ...], times: int) -> list[str]:
    chosen = [balancer.choose(of, among, SOURCE, 80) for _ in range(times)]
    return [endpoint[0].name for endpoint in chosen if endpoint is not None]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 10, 97])
def test_round_robin_takes_each_once_a_round(count: int) -> None:
    among = endpoints(*(pod(f"w{n}", "10.0.0.2") for n in range(count)))
    balancer, of = Balancer(3), service("s")
    for _ in range(3):
        assert Counter(choose(balancer, of, among, count)) == {f"w{n}": 1 for n in range(count)}


def test_capacity_is_a_weight_and_choices_are_spread() -> None:
    among = endpoints(pod("a", "10.0.0.2", capacity=5), pod("b", "10.0.0.3", capacity=1), pod("none", "10.0.0.4", capacity=0))
    chosen = choose(Balancer(1), service("s"), among, 60)
    assert Counter(chosen) == {"a": 50, "b": 10}
    gaps = [index for index, name in enumerate(chosen) if name == "b"]
    assert {later - earlier for earlier, later in zip(gaps, gaps[1:], strict=False)} == {6}


def test_same_seed_same_choices_and_seeds_begin_apart() -> None:
    among = endpoints(*(pod(f"w{n}", "10.0.0.2") for n in range(50)))
    firsts = {seed: choose(Balancer(seed), service("s"), among, 5) for seed in range(8)}
    assert firsts == {seed: choose(Balancer(seed), service("s"), among, 5) for seed in range(8)}
    assert len({tuple(chosen) for chosen in firsts.values()}) > 4


def test_a_change_of_endpoints_is_seen() -> None:
    balancer, of = Balancer(1), service("s")
    assert set(choose(balancer, of, endpoints(pod("a", "10.0.0.2")), 3)) == {"a"}
    assert set(choose(balancer, of, endpoints(pod("b", "10.0.0.3")), 3)) == {"b"}
    assert choose(balancer, of, (), 1) == []


def test_unhealthy_ones_only_where_the_service_allows_them() -> None:
    among = endpoints(pod("sick", "10.0.0.2", healthy=False), pod("well", "10.0.0.3"))
    assert names(eligible_endpoints(service("s"), among, SOURCE, 80)) == ["well"]
    lenient = service("s", load_balancer=LoadBalancer(allow_unhealthy=True))
    assert names(eligible_endpoints(lenient, among, SOURCE, 80)) == ["sick", "well"]
    assert Balancer(1).choose(service("s"), among[:1], SOURCE, 80) is None


NEAR = pod("near", "10.0.0.2", node="n1", locality=Locality("r1", "z1", "s1"))
ZONE = pod("zone", "10.0.0.3", node="n2", locality=Locality("r1", "z1", "s2"))
REGION = pod("region", "10.0.0.4", node="n3", locality=Locality("r1", "z2", "s1"))
FAR = pod("far", "10.0.0.5", node="n4", locality=Locality("r2", "z1", "s1"))


@pytest.mark.parametrize(
    ("mode", "preferences", "among", "expected"),
    [
        (Balancing.UNSPECIFIED, (Scope.NODE,), (NEAR, FAR), ["near", "far"]),
        (Balancing.STRICT, (Scope.NODE,), (NEAR, FAR), ["near"]),
        (Balancing.STRICT, (Scope.REGION, Scope.ZONE), (NEAR, ZONE, REGION, FAR), ["near", "zone"]),
        (Balancing.STRICT, (Scope.NODE,), (FAR,), []),
        (Balancing.STRICT, (), (NEAR, FAR), ["near", "far"]),
        (Balancing.STRICT, (Scope.SUBZONE,), (NEAR, ZONE, REGION, FAR), ["near", "region", "far"]),
        (Balancing.STRICT, (Scope.CLUSTER, Scope.NETWORK), (NEAR, FAR), ["near", "far"]),
        (Balancing.FAILOVER, (Scope.REGION, Scope.ZONE, Scope.SUBZONE), (NEAR, ZONE, REGION, FAR), ["near"]),
        (Balancing.FAILOVER, (Scope.REGION, Scope.ZONE, Scope.SUBZONE), (ZONE, REGION, FAR), ["zone"]),
        (Balancing.FAILOVER, (Scope.REGION, Scope.ZONE, Scope.SUBZONE), (REGION, FAR), ["region"]),
        # FAR matches zone and subzone, but the region comes first: stop at the first mismatch
        (Balancing.FAILOVER, (Scope.REGION, Scope.ZONE), (FAR,), ["far"]),
    ],
)
def test_scopes(mode: Balancing, preferences: tuple[Scope, ...], among: tuple[Workload, ...], expected: list[str]) -> None:
    of = service("s", load_balancer=LoadBalancer(routing_preferences=preferences, mode=mode))
    assert names(eligible_endpoints(of, endpoints(*among), SOURCE, 80)) == expected


def test_failover_leaves_the_sick_out_before_it_ranks() -> None:
    of = service("s", load_balancer=LoadBalancer(routing_preferences=(Scope.NODE,), mode=Balancing.FAILOVER))
    sick = pod("sick", "10.0.0.9", node="n1", healthy=False)
    assert names(eligible_endpoints(of, endpoints(sick, FAR), SOURCE, 80)) == ["far"]


@pytest.mark.parametrize(
    ("own", "ports", "port", "expected"),
    [
        ({80: 1}, {80: 2}, 80, 1),
        ({}, {80: 2}, 80, 2),
        ({}, {80: 0}, 80, 80),
        ({80: 0}, {80: 2}, 80, 80),
        ({81: 1}, {}, 80, None),
        ({}, {}, 80, None),
    ],
)
def test_target_ports(own: dict[int, int], ports: dict[int, int], port: int, expected: int | None) -> None:
    assert target_port(service("s", ports=ports), own, port) == expected


def test_endpoints_without_the_port_or_without_an_address_are_left_out() -> None:
    among: tuple[Endpoint, ...] = ((pod("a", "10.0.0.2"), {81: 8081}), (pod("b", "10.0.0.3"), {}), (pod("c"), {81: 1}))
    of = service("s", ports={80: 8080})
    assert names(eligible_endpoints(of, among, SOURCE, 81)) == ["a"]
    assert names(eligible_endpoints(of, among, SOURCE, 80)) == ["a", "b"]
    assert eligible_endpoints(of, among, SOURCE, 82) == []


def test_another_network_only_if_there_is_nothing_else() -> None:
    remote = pod("remote", "10.0.0.2", network="n2", network_gateway=Gateway(destination="/192.0.2.1"))
    assert names(eligible_endpoints(service("s"), endpoints(remote, NEAR), SOURCE, 80)) == ["near"]
    assert names(eligible_endpoints(service("s"), endpoints(remote), SOURCE, 80)) == ["remote"]


def test_waypoints_by_weight() -> None:
    gateways = tuple(WeightedGateway(Gateway(destination=f"/10.0.0.{n}"), weight) for n, weight in enumerate((3, 1, 0)))
    of = service("s", weighted_waypoints=gateways)
    balancer = Balancer(5)
    chosen = Counter(found.gateway.destination for _ in range(40) if (found := balancer.choose_waypoint(of)))
    assert chosen == {"/10.0.0.0": 30, "/10.0.0.1": 10}
    assert balancer.choose_waypoint(service("t")) is None


def test_positions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nodeproxy.state.balance.MAX_ROTATIONS", 4)
    balancer, among = Balancer(1), endpoints(NEAR)
    for number in range(20):
        assert balancer.choose(service(f"s{number}"), among, SOURCE, 80) is not None
    assert len(balancer._rotations) <= 4
