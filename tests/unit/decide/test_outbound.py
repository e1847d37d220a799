"""The outbound decision matrix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from nodeproxy.decide.outbound import Route, RouteKind, outbound
from nodeproxy.decide.trace import Trace
from nodeproxy.model.reason import Reason, Refusal
from nodeproxy.model.workload import Balancing, Gateway, LoadBalancer, Protocol, WeightedGateway, Workload
from nodeproxy.state.balance import Balancer
from nodeproxy.state.view import View
from tests.unit.state.builders import pod, service

Build = Callable[..., View]

SOURCE = pod("client", "10.0.0.1", "fd00::1")
SERVER = pod("server", "10.0.0.2", "fd00::2", services={"ns/web.svc": {}}, service_account="server")
SERVER_ID = "spiffe://cluster.local/ns/ns/sa/server"
WEB = service("web", "10.96.0.1", "fd00:96::1", ports={80: 8080, 443: 0})
WAYPOINT = pod("wp", "10.0.0.9", "fd00::9", service_account="wp", services={"ns/wp.svc": {}})
WAYPOINT_ID = "spiffe://cluster.local/ns/ns/sa/wp"
WAYPOINT_SERVICE = service("wp", "10.96.0.9", ports={15008: 15008}, subject_alt_names=("spiffe://cluster.local/ns/ns/sa/wp-too",))


def go(view: View, ip: str, port: int, source: Workload = SOURCE, local: tuple[str, ...] = ()) -> Route | Refusal:
    return outbound(view, source, ip, port, Balancer(1), local.__contains__)


def route(view: View, ip: str, port: int, source: Workload = SOURCE, local: tuple[str, ...] = ()) -> Route:
    found = go(view, ip, port, source, local)
    assert isinstance(found, Route), found
    return found


def refusal(view: View, ip: str, port: int, source: Workload = SOURCE) -> Refusal:
    found = go(view, ip, port, source)
    assert isinstance(found, Refusal), found
    return found


def test_nothing_known_at_all(build: Build) -> None:
    assert refusal(build(), "192.0.2.1", 80).reason is Reason.STATE_UNAVAILABLE


@pytest.mark.parametrize("ip", ["192.0.2.1", "2001:db8::1"])
def test_unknown_destinations_pass_through(build: Build, ip: str) -> None:
    found = route(build(SOURCE), ip, 443)
    assert found == Route(kind=RouteKind.PASSTHROUGH, address=(ip, 443))


@pytest.mark.parametrize("port", [15001, 15006, 15008])
@pytest.mark.parametrize(
    "ip", ["127.0.0.1", "127.9.9.9", "::1", "10.0.0.2", "fd00::2", "10.96.0.1", "::ffff:10.0.0.2", "::ffff:127.0.0.1"]
)
def test_own_ports_are_refused_where_the_proxy_may_be(build: Build, ip: str, port: int) -> None:
    assert refusal(build(SOURCE, SERVER, services=(WEB,)), ip, port).reason is Reason.ILLEGAL_PORT


@pytest.mark.parametrize("port", [15001, 15006, 15008])
def test_own_ports_of_strangers_are_not_ours(build: Build, port: int) -> None:
    assert route(build(SOURCE, SERVER), "192.0.2.1", port).kind is RouteKind.PASSTHROUGH


@pytest.mark.parametrize(
    ("vip", "ip", "authority"),
    [("10.96.0.1", "10.0.0.2", "10.0.0.2:8080"), ("fd00:96::1", "fd00::2", "[fd00::2]:8080")],
)
def test_a_service_leads_to_an_endpoint_of_the_family_asked_for(build: Build, vip: str, ip: str, authority: str) -> None:
    found = route(build(SOURCE, SERVER, services=(WEB,)), vip, 80)
    assert found == Route(
        kind=RouteKind.HBONE,
        address=(ip, 8080),
        authority=authority,
        peer=(ip, 15008),
        identities=frozenset({SERVER_ID}),
        destination=SERVER,
        service=WEB,
        balanced=True,
    )


def test_an_endpoint_without_that_family_is_reached_by_the_other(build: Build) -> None:
    single = pod("single", "10.0.0.3", services={"ns/web.svc": {}})
    assert route(build(SOURCE, single, services=(WEB,)), "fd00:96::1", 80).address == ("10.0.0.3", 8080)


def test_ipv4_mapped_addresses_are_ipv4(build: Build) -> None:
    assert route(build(SOURCE, SERVER, services=(WEB,)), "::ffff:10.96.0.1", 80).address == ("10.0.0.2", 8080)


def test_the_endpoints_own_port_wins(build: Build) -> None:
    own = pod("own", "10.0.0.3", services={"ns/web.svc": {80: 9090}})
    assert route(build(SOURCE, own, services=(WEB,)), "10.96.0.1", 80).address == ("10.0.0.3", 9090)


def test_a_services_subject_alt_names_are_expected_too(build: Build) -> None:
    vm = service("web", "10.96.0.1", subject_alt_names=("spiffe://cluster.local/ns/vm/sa/vm",))
    assert route(build(SOURCE, SERVER, services=(vm,)), "10.96.0.1", 80).identities == {
        SERVER_ID,
        "spiffe://cluster.local/ns/vm/sa/vm",
    }
    # but not when the pod itself is addressed
    assert route(build(SOURCE, SERVER, services=(vm,)), "10.0.0.2", 80).identities == {SERVER_ID}


def test_endpoints_take_turns(build: Build) -> None:
    others = [pod(f"w{n}", f"10.0.1.{n}", services={"ns/web.svc": {}}) for n in range(3)]
    view, balancer = build(SOURCE, *others, services=(WEB,)), Balancer(1)
    found = Counter(outbound(view, SOURCE, "10.96.0.1", 80, balancer, lambda _: False).address[0] for _ in range(9))  # type: ignore[union-attr]
    assert found == {"10.0.1.0": 3, "10.0.1.1": 3, "10.0.1.2": 3}


@pytest.mark.parametrize(
    ("workloads", "port", "words"),
    [
        ((), 80, "no endpoint for port 80"),
        ((SERVER,), 81, "has no port 81; it has 80, 443"),
        ((pod("sick", "10.0.0.3", healthy=False, services={"ns/web.svc": {}}),), 80, "none of them healthy"),
    ],
)
def test_no_endpoint_is_a_refusal_that_says_why(build: Build, workloads: tuple[Workload, ...], port: int, words: str) -> None:
    found = refusal(build(SOURCE, *workloads, services=(WEB,)), "10.96.0.1", port)
    assert found.reason is Reason.NO_ENDPOINT
    assert words in found.detail
    assert found.resource == "ns/web.svc"


def test_a_pod_of_this_node_is_local(build: Build) -> None:
    view = build(SOURCE, SERVER, services=(WEB,))
    found = route(view, "10.96.0.1", 80, local=("server",))
    assert found == Route(kind=RouteKind.LOCAL, address=("10.0.0.2", 8080), destination=SERVER, service=WEB, balanced=True)
    assert route(view, "10.0.0.2", 22, local=("server",)).kind is RouteKind.LOCAL


def test_a_workload_outside_the_mesh_is_reached_in_plain(build: Build) -> None:
    plain = pod("plain", "10.0.0.3", protocol=Protocol.TCP, services={"ns/web.svc": {}})
    view = build(SOURCE, plain, services=(WEB,))
    assert route(view, "10.0.0.3", 22) == Route(kind=RouteKind.PLAIN, address=("10.0.0.3", 22), destination=plain)
    assert route(view, "10.96.0.1", 80) == Route(
        kind=RouteKind.PLAIN, address=("10.0.0.3", 8080), destination=plain, service=WEB, balanced=True
    )


def test_an_unhealthy_pod_that_is_addressed_itself_is_reached(build: Build) -> None:
    assert route(build(SOURCE, pod("sick", "10.0.0.3", healthy=False)), "10.0.0.3", 80).kind is RouteKind.HBONE


def test_a_pod_addressed_in_ipv6(build: Build) -> None:
    found = route(build(SOURCE, SERVER), "fd00::2", 80)
    assert (found.authority, found.peer) == ("[fd00::2]:80", ("fd00::2", 15008))


def test_passthrough_services_go_where_they_were_addressed(build: Build) -> None:
    external = service("ext", "192.0.2.7", load_balancer=LoadBalancer(mode=Balancing.PASSTHROUGH))
    found = route(build(SOURCE, services=(external,)), "192.0.2.7", 80)
    assert found == Route(kind=RouteKind.PASSTHROUGH, address=("192.0.2.7", 80), service=external)
    member = pod("m", "192.0.2.7")
    assert route(build(SOURCE, member, services=(external,)), "192.0.2.7", 80).kind is RouteKind.HBONE


def test_a_passthrough_service_is_not_a_way_around_its_waypoint(build: Build) -> None:
    external = service("ext", "192.0.2.7", load_balancer=LoadBalancer(mode=Balancing.PASSTHROUGH), waypoint=BY_ADDRESS)
    assert route(build(SOURCE, WAYPOINT, services=(external,)), "192.0.2.7", 80).via_waypoint
    assert refusal(build(SOURCE, services=(external,)), "192.0.2.7", 80).reason is Reason.NO_WAYPOINT


def test_look_ups_begin_in_the_sources_network(build: Build) -> None:
    here, there = pod("here", "10.0.0.5"), pod("there", "10.0.0.5", network="n2")
    view = build(SOURCE, here, there, SERVER)
    source = pod("c2", "10.0.0.1", network="n2")
    assert route(view, "10.0.0.5", 80).destination == here
    assert route(view, "10.0.0.5", 80, source).destination == there
    assert route(view, "10.0.0.2", 80, source).destination == SERVER  # else the default network


def test_another_network_is_refused_and_its_gateway_named(build: Build) -> None:
    remote = pod(
        "remote", "10.0.0.3", network="n2", network_gateway=Gateway(destination="/192.0.2.1"), services={"ns/web.svc": {}}
    )
    found = refusal(build(SOURCE, remote, services=(WEB,)), "10.96.0.1", 80)
    assert found.reason is Reason.UNSUPPORTED_PROTOCOL
    assert "/192.0.2.1" in found.detail


BY_ADDRESS = Gateway(destination="/10.0.0.9", hbone_port=15088)
BY_VIP = Gateway(destination="/10.96.0.9")
BY_HOST = Gateway(destination="ns/wp.svc", is_hostname=True)
BOTH_IDS = frozenset({WAYPOINT_ID, "spiffe://cluster.local/ns/ns/sa/wp-too"})


@pytest.mark.parametrize(
    ("gateway", "peer", "identities"),
    [
        (BY_ADDRESS, ("10.0.0.9", 15088), frozenset({WAYPOINT_ID})),
        (BY_VIP, ("10.0.0.9", 15008), BOTH_IDS),
        (BY_HOST, ("10.0.0.9", 15008), BOTH_IDS),
    ],
)
def test_a_services_waypoint_gets_the_original_target(
    build: Build, gateway: Gateway, peer: tuple[str, int], identities: frozenset[str]
) -> None:
    through = service("web", "10.96.0.1", waypoint=gateway)
    found = route(build(SOURCE, SERVER, WAYPOINT, services=(through, WAYPOINT_SERVICE)), "10.96.0.1", 80, local=("server", "wp"))
    assert found == Route(
        kind=RouteKind.HBONE,
        address=("10.96.0.1", 80),
        authority="10.96.0.1:80",
        peer=peer,
        identities=identities,
        destination=WAYPOINT,
        service=through,
        via_waypoint=True,
        balanced=True,
    )


def test_a_waypoint_is_reached_in_the_family_of_the_target(build: Build) -> None:
    through = service("web", "fd00:96::1", waypoint=BY_HOST)
    found = route(build(SOURCE, SERVER, WAYPOINT, services=(through, WAYPOINT_SERVICE)), "fd00:96::1", 80)
    assert (found.authority, found.peer) == ("[fd00:96::1]:80", ("fd00::9", 15008))


def test_a_service_needs_no_endpoint_of_its_own_to_have_a_waypoint(build: Build) -> None:
    through = service("web", "10.96.0.1", waypoint=BY_HOST)
    assert route(build(SOURCE, WAYPOINT, services=(through, WAYPOINT_SERVICE)), "10.96.0.1", 80).via_waypoint


@pytest.mark.parametrize("gateway", [BY_ADDRESS, BY_VIP, BY_HOST])
def test_a_pods_waypoint(build: Build, gateway: Gateway) -> None:
    behind = pod("behind", "10.0.0.3", waypoint=gateway, services={"ns/web.svc": {}})
    view = build(SOURCE, behind, WAYPOINT, services=(WEB, WAYPOINT_SERVICE))
    found = route(view, "10.0.0.3", 80)
    assert (found.authority, found.via_waypoint, found.destination) == ("10.0.0.3:80", True, WAYPOINT)
    # not when a service was addressed
    assert not route(view, "10.96.0.1", 80).via_waypoint
    # nor when the source is that waypoint
    direct = route(view, "10.0.0.3", 80, WAYPOINT)
    assert (direct.via_waypoint, direct.destination) == (False, behind)
    # but a pod that only shares the waypoint's identity must go through it
    assert route(view, "10.0.0.3", 80, pod("fake", "10.0.0.8", service_account="wp")).via_waypoint


@pytest.mark.parametrize(
    ("workloads", "services", "gateway"),
    [
        ((), (), BY_ADDRESS),
        ((), (), BY_HOST),
        ((), (WAYPOINT_SERVICE,), BY_HOST),
        ((pod("wp", "10.0.0.9", healthy=False, services={"ns/wp.svc": {}}),), (WAYPOINT_SERVICE,), BY_VIP),
    ],
)
def test_a_waypoint_that_is_away_is_a_refusal_and_no_way_around(
    build: Build, workloads: tuple[Workload, ...], services: tuple[object, ...], gateway: Gateway
) -> None:
    through = service("web", "10.96.0.1", waypoint=gateway)
    behind = pod("behind", "10.0.0.3", waypoint=gateway)
    view = build(SOURCE, SERVER, behind, *workloads, services=(through, *services))
    assert refusal(view, "10.96.0.1", 80).reason is Reason.NO_WAYPOINT
    assert refusal(view, "10.0.0.3", 80).reason is Reason.NO_WAYPOINT


def test_weighted_waypoints_share_by_weight(build: Build) -> None:
    weighted = (WeightedGateway(BY_ADDRESS, 3), WeightedGateway(Gateway(destination="/10.0.0.10"), 1))
    through = service("web", "10.96.0.1", weighted_waypoints=weighted)
    view, balancer = build(SOURCE, WAYPOINT, pod("wp2", "10.0.0.10"), services=(through,)), Balancer(2)
    found = Counter(outbound(view, SOURCE, "10.96.0.1", 80, balancer, lambda _: False).peer for _ in range(20))  # type: ignore[union-attr]
    assert found == {("10.0.0.9", 15088): 15, ("10.0.0.10", 15008): 5}


def test_trace_tells_the_steps_and_what_decided(build: Build) -> None:
    trace: Trace = []
    outbound(build(SOURCE, SERVER, services=(WEB,)), SOURCE, "10.96.0.1", 80, Balancer(1), lambda _: False, trace)
    assert [(step.what, step.resource) for step in trace] == [
        ("who is 10.96.0.1?", "ns/web.svc"),
        ("which endpoint?", "server"),
        ("how is it reached?", "server"),
    ]
