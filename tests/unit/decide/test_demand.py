"""Deciding with a state that holds only what was asked for: nothing unknown passes, and what must be asked is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nodeproxy.decide.demand import Unanswered
from nodeproxy.decide.direct import Direct, LocalPod
from nodeproxy.decide.inbound import Admission, admit_hbone
from nodeproxy.decide.outbound import Route, RouteKind, outbound, outbound_on_demand
from nodeproxy.decide.trace import Trace
from nodeproxy.model.delta import Delta
from nodeproxy.model.reason import Reason, Refusal
from nodeproxy.model.workload import Gateway, Workload
from nodeproxy.state.balance import Balancer
from nodeproxy.state.store import StateWriter
from nodeproxy.state.view import View
from tests.unit.state.builders import pod, service

See = Callable[[Delta], View]

CLIENT = pod("client", "10.0.0.1")
SERVER = pod("server", "10.0.0.2", services={"ns/web.svc": {}})
WEB = service("web", "10.96.0.1")


@pytest.fixture
def see(tmp_path: Path) -> Iterator[See]:
    """Applies a delta and shows the state."""
    writer = StateWriter(tmp_path)
    writer.apply(Delta(workloads=(CLIENT,)))
    reader = writer.reader()

    def apply(delta: Delta) -> View:
        writer.apply(delta)
        return reader.view()

    yield apply
    reader.close()
    writer.close()


def go(view: View, ip: str, port: int = 80, source: Workload = CLIENT, names: set[str] | None = None) -> Route | Refusal:
    return outbound_on_demand(view, source, ip, port, Balancer(1), lambda uid: False, set() if names is None else names)


def asks_for(view: View, ip: str, source: Workload = CLIENT) -> tuple[str, ...]:
    found = go(view, ip, source=source)
    return found.names if isinstance(found, Unanswered) else ()


@pytest.mark.parametrize("port", [80, 443, 15001, 15006, 15008])
@pytest.mark.parametrize("ip", ["192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1"])
def test_who_is_unknown_is_asked_for_and_refused_until_then(see: See, ip: str, port: int) -> None:
    found = go(see(Delta()), ip, port)
    assert isinstance(found, Unanswered)
    assert found.reason is Reason.STATE_UNAVAILABLE
    assert found.names == (f"/{ip.removeprefix('::ffff:')}",)


def test_nobody_passes_through(see: See) -> None:
    found = go(see(Delta(absent=("/192.0.2.1",))), "192.0.2.1")
    assert found == Route(kind=RouteKind.PASSTHROUGH, address=("192.0.2.1", 80))


def test_nobody_is_unknown_again_when_that_is_forgotten(see: See) -> None:
    see(Delta(absent=("/192.0.2.1",)))
    assert asks_for(see(Delta(forgotten=("/192.0.2.1",))), "192.0.2.1") == ("/192.0.2.1",)


def test_who_was_nobody_and_comes_is_somebody(see: See) -> None:
    see(Delta(absent=("/10.0.0.2",)))
    found = go(see(Delta(workloads=(SERVER,))), "10.0.0.2")
    assert isinstance(found, Route)
    assert found.kind is RouteKind.HBONE


def test_who_goes_leaves_a_question(see: See) -> None:
    see(Delta(workloads=(SERVER,), present=("/10.0.0.2",)))
    assert asks_for(see(Delta(removed_workloads=("server",))), "10.0.0.2") == ("/10.0.0.2",)


def test_a_source_of_another_network_has_two_names_for_an_address(see: See) -> None:
    source = pod("far", "10.9.0.1", network="n")
    assert asks_for(see(Delta()), "10.0.0.2", source) == ("n/10.0.0.2", "/10.0.0.2")
    assert asks_for(see(Delta(workloads=(SERVER,))), "10.0.0.2", source) == ("n/10.0.0.2",), (
        "it would win over the default network"
    )
    assert isinstance(go(see(Delta(absent=("n/10.0.0.2",))), "10.0.0.2", source=source), Route)
    near = pod("near", "10.0.0.3", network="n")
    assert isinstance(go(see(Delta(workloads=(near,))), "10.0.0.3", source=source), Route), "the first one is enough"


def test_a_service_leads_on_without_a_question(see: See) -> None:
    names: set[str] = set()
    found = go(see(Delta(workloads=(SERVER,), services=(WEB,))), "10.96.0.1", names=names)
    assert isinstance(found, Route)
    assert (found.destination, names) == (SERVER, {"/10.96.0.1"})


@pytest.mark.parametrize("gateway", [Gateway("ns/wp.svc", is_hostname=True), Gateway("/10.96.0.9"), Gateway("/10.0.0.9")])
@pytest.mark.parametrize("of_service", [True, False])
def test_a_waypoint_that_is_unknown_is_asked_for(see: See, gateway: Gateway, of_service: bool) -> None:
    if of_service:
        view = see(Delta(services=(service("web", "10.96.0.1", waypoint=gateway),)))
    else:
        view = see(Delta(workloads=(pod("server", "10.96.0.1", waypoint=gateway),)))
    assert asks_for(view, "10.96.0.1") == (gateway.destination,)
    names: set[str] = set()
    view = see(Delta(absent=(gateway.destination,)))
    found = go(view, "10.96.0.1", names=names)
    assert isinstance(found, Refusal)
    assert found.reason is Reason.NO_WAYPOINT, "never around it"
    assert names == {"/10.96.0.1", gateway.destination}
    waypoint = pod("wp", "10.0.0.9", services={"ns/wp.svc": {}})
    view = see(Delta(workloads=(waypoint,), services=(service("wp", "10.96.0.9", ports={15008: 15008}),)))
    found = go(view, "10.96.0.1", names=names)
    assert isinstance(found, Route)
    assert (found.destination, found.via_waypoint) == (waypoint, True)


def test_without_the_mode_nothing_is_asked_for(see: See) -> None:
    found = outbound(see(Delta()), CLIENT, "192.0.2.1", 80, Balancer(1), lambda uid: False)
    assert isinstance(found, Route)


def test_it_tells_the_step(see: See) -> None:
    trace: Trace = []
    outbound_on_demand(see(Delta()), CLIENT, "192.0.2.1", 80, Balancer(1), lambda uid: False, set(), trace)
    assert [step.outcome for step in trace] == ["not known yet: /192.0.2.1 must be asked for"]


# ── inbound ──


def admit(view: View, authority: str, who: Workload = SERVER, names: set[str] | None = None) -> Admission | Refusal:
    client = "spiffe://cluster.local/ns/other/sa/client"
    return admit_hbone(view, who, authority, who.addresses[0], client, "10.0.0.1", names=set() if names is None else names)


def test_a_hostname_is_asked_for_where_it_may_be_meant(see: See) -> None:
    view = see(Delta(workloads=(SERVER,)))
    found = admit(view, "web.svc:80")
    assert isinstance(found, Unanswered)
    assert found.names == ("ns/web.svc", "other/web.svc")
    view = see(Delta(absent=("other/web.svc",), services=(WEB,)))
    names: set[str] = set()
    found = admit(view, "web.svc:80", names=names)
    assert isinstance(found, Admission)
    assert (found.address, names) == (("10.0.0.2", 8080), {"ns/web.svc", "other/web.svc"})
    view = see(Delta(absent=("ns/no.svc", "other/no.svc")))
    found = admit(view, "no.svc:80")
    assert isinstance(found, Refusal)
    assert found.reason is Reason.UNKNOWN_SERVICE


def test_its_own_address_is_never_a_question(see: See) -> None:
    view = see(Delta(workloads=(SERVER,)))
    assert isinstance(admit(view, "10.0.0.2:8080"), Admission)


def test_a_waypoint_is_asked_of_whom(see: See) -> None:
    waypoint = pod("wp", "10.0.0.9", services={"ns/wp.svc": {}})
    view = see(Delta(workloads=(waypoint,)))
    found = admit(view, "10.96.0.1:80", waypoint)
    assert isinstance(found, Unanswered)
    assert found.names == ("/10.96.0.1",)
    view = see(Delta(services=(service("web", "10.96.0.1", waypoint=Gateway("ns/wp.svc", is_hostname=True)),)))
    found = admit(view, "10.96.0.1:80", waypoint)
    assert isinstance(found, Unanswered)
    assert found.names == ("ns/wp.svc",)
    view = see(Delta(services=(service("wp", "10.96.0.9"),)))
    assert isinstance(admit(view, "10.96.0.1:80", waypoint), Admission)
    view = see(Delta(absent=("/10.96.0.2",)))
    found = admit(view, "10.96.0.2:80", waypoint)
    assert isinstance(found, Refusal)
    assert found.reason is Reason.AUTHORITY_MISMATCH


# ── the direct path ──


def test_nothing_is_direct_that_would_be_asked_for(see: See) -> None:
    client, server = pod("client", "10.0.0.1", network="n"), pod("server", "10.0.0.2", services={"ns/web.svc": {}})
    view = see(Delta(workloads=(client, server), services=(WEB,)))
    pods = [LocalPod("client", 1, ("10.0.0.1",)), LocalPod("server", 2, ("10.0.0.2",))]
    assert Direct(view, pods).hindrance(client, "server", 80) is None
    assert list(Direct(view, pods).services())
    hindrance = Direct(view, pods, on_demand=True).hindrance(client, "server", 80)
    assert hindrance is not None
    assert "must be asked for" in hindrance.detail
    assert not list(Direct(view, pods, on_demand=True).services())
    view = see(Delta(absent=("n/10.0.0.2", "n/10.96.0.1")))
    assert Direct(view, pods, on_demand=True).hindrance(client, "server", 80) is None
    assert list(Direct(view, pods, on_demand=True).services())
