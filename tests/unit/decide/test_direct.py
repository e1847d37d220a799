"""What is said to be direct against what the proxy would do, over random states; and what hinders, case by case."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from nodeproxy.decide.direct import MAX_POLICIES, MAX_PORTS, Direct, LocalPod, summarise
from nodeproxy.decide.direct_relevance import Relevance
from nodeproxy.decide.inbound import Admission, admit_local
from nodeproxy.decide.outbound import Route, RouteKind, outbound
from nodeproxy.model.delta import Everything
from nodeproxy.model.policy import Action, Match, Policy, PolicyScope, StringMatch
from nodeproxy.model.workload import (
    OWN_PORTS,
    ApplicationTunnel,
    Balancing,
    Gateway,
    LoadBalancer,
    Locality,
    Scope,
    Service,
    Workload,
)
from nodeproxy.state.balance import Balancer
from nodeproxy.state.changes import Touched
from nodeproxy.state.store import StateWriter
from nodeproxy.state.view import View
from tests.unit.policy.test_beforehand import random_policies
from tests.unit.state.builders import pod, service

Build = Callable[..., View]

CLIENT = pod("client", "10.0.0.1", "fd00::1", service_account="client")
SERVER = pod("server", "10.0.0.2", "fd00::2", service_account="server", services={"ns/web.svc": {}})
OTHER = pod("other", "10.0.0.3", service_account="other", services={"ns/web.svc": {}})
WEB = service("web", "10.96.0.1", "fd00:96::1", ports={80: 8080, 443: 0})


def local(*workloads: Workload) -> list[LocalPod]:
    return [LocalPod(each.uid, 100 + number, each.addresses) for number, each in enumerate(workloads)]


def table(view: View, *workloads: Workload) -> tuple[dict[tuple[int, int, int], bool], dict[tuple[str, int], Any]]:
    direct = Direct(view, local(*workloads))
    direct.find_ways()
    summaries = {held: summarise(view.policies_for(each), direct.identities()) for held, each in direct.held().items()}
    verdicts = {}
    for source, destination, default, exceptions in direct.verdicts(summaries):
        verdicts |= {(source, destination, port): not default for port in exceptions}
        if default:
            verdicts[source, destination, 0] = True
    return verdicts, {(ip, port): endpoints for ip, port, endpoints in direct.services()}


# ── against the proxy ──

MANY_PORTS = (1, 80, 443, 8080, 9000, 65535)


def random_state(rng: random.Random) -> tuple[list[Workload], list[Service], tuple[Policy, ...]]:
    """Some local pods (the first four), others, services over all of them, and policies."""
    policies = tuple(
        Policy(
            name=each.name,
            namespace=rng.choice(("prod", "back")),
            scope=rng.choice(list(PolicyScope)),
            action=each.action,
            rules=each.rules,
            dry_run=each.dry_run,
        )
        for each in random_policies(rng)
    )
    workloads = []
    for number in range(6):
        addresses = [f"10.0.0.{number + 1}", *([f"fd00::{number + 1}"] if rng.random() < 0.5 else [])]
        more: dict[str, Any] = {"namespace": rng.choice(("prod", "back")), "service_account": rng.choice(("web", "db"))}
        if rng.random() < 0.1:
            more["waypoint"] = Gateway("/10.0.0.6")
        if rng.random() < 0.1:
            more["network"] = "far"
        if rng.random() < 0.1:
            more["healthy"] = False
        if rng.random() < 0.05:
            more["application_tunnel"] = ApplicationTunnel(port=8080)
        if rng.random() < 0.1:
            more["network_gateway"] = Gateway("/192.0.2.1")
        if rng.random() < 0.05:
            addresses.append("10.96.0.1")  # a virtual one
        keys = [key for key in ("ns/a.svc", "ns/b.svc") if rng.random() < 0.4]
        more["services"] = {key: {80: rng.choice((0, 8080, 9000))} for key in keys}
        more["policies"] = tuple(each.key for each in policies if rng.random() < 0.5)
        workloads.append(pod(f"w{number}", *addresses, **more))
    services = [
        service(
            name,
            *vips,
            ports={80: 0, 443: 8080},
            load_balancer=LoadBalancer(
                mode=rng.choice((Balancing.UNSPECIFIED, Balancing.UNSPECIFIED, *Balancing)),
                routing_preferences=(Scope.NETWORK,) if rng.random() < 0.3 else (),
                allow_unhealthy=rng.random() < 0.3,
            ),
            waypoint=Gateway("/10.0.0.6") if rng.random() < 0.1 else None,
        )
        for name, vips in (("a", ("10.96.0.1", "fd00:96::1")), ("b", ("10.96.0.2",)))
    ]
    return workloads, services, policies


def proxied(view: View, source: Workload, ip: str, port: int, local_uids: set[str]) -> tuple[str, tuple[str, int]] | None:
    """Whom the proxy would connect in plain, (uid, address), whatever the source's address is; None: not so."""
    ends = set()
    for seed in range(3):
        route = outbound(view, source, ip, port, Balancer(seed), local_uids.__contains__)
        if not isinstance(route, Route) or route.kind is not RouteKind.LOCAL or route.destination is None:
            return None
        for source_ip in (*source.addresses, "192.0.2.77", "fd99::1"):
            admission = admit_local(view, route.destination, *route.address, source, source_ip)
            if not isinstance(admission, Admission) or admission.dry_run or admission.proxy_protocol:
                return None
            ends.add((route.destination.uid, admission.address))
    return ends.pop() if len(ends) == 1 else None


@pytest.mark.parametrize("seed", range(40))
def test_direct_is_what_the_proxy_would_let_through(build: Build, seed: int) -> None:
    rng = random.Random(seed)
    workloads, services, policies = random_state(rng)
    view = build(*workloads, services=tuple(services), policies=policies)
    pods = local(*workloads[:4])
    uids = {each.uid for each in pods}
    verdicts, virtual = table(view, *workloads[:4])
    for source in pods:
        workload = view.workload(source.uid)
        assert workload is not None
        for destination in pods:
            for port in MANY_PORTS:
                key = (source.cookie, destination.cookie)
                said = verdicts.get((*key, port), verdicts.get((*key, 0), False))
                hindered = Direct(view, pods).hindrance(workload, destination.uid, port)
                assert said == (hindered is None)
                for ip in destination.addresses if said else ():
                    assert proxied(view, workload, ip, port, uids) == (destination.uid, (ip, port))
        for (ip, port), endpoints in virtual.items():
            for endpoint in endpoints:
                owner = next(each for each in pods if endpoint[0] in each.addresses)
                key = (source.cookie, owner.cookie)
                if not verdicts.get((*key, endpoint[1]), verdicts.get((*key, 0), False)):
                    continue  # then the kernel leaves the choice to the proxy
                route = None
                for choice in range(200):
                    route = outbound(view, workload, ip, port, Balancer(choice), uids.__contains__)
                    if isinstance(route, Route) and route.address == endpoint:
                        break
                assert isinstance(route, Route)
                assert (route.kind, route.address) == (RouteKind.LOCAL, endpoint)
                assert owner.uid == (route.destination and route.destination.uid)


def test_the_random_states_have_both(build: Build) -> None:
    """The property above does not hold for want of cases."""
    direct = services = 0
    for seed in range(40):
        workloads, listed, policies = random_state(random.Random(seed))
        verdicts, virtual = table(build(*workloads, services=tuple(listed), policies=policies), *workloads[:4])
        direct += sum(verdicts.values())
        services += len(virtual)
    assert direct > 100
    assert services > 10


# ── what hinders ──


def hindrance(view: View, port: int = 80) -> str | None:
    found = Direct(view, local(CLIENT, SERVER)).hindrance(CLIENT, "server", port)
    return None if found is None else found.detail


def test_two_pods_without_policies(build: Build) -> None:
    verdicts, virtual = table(build(CLIENT, SERVER), CLIENT, SERVER)
    assert verdicts == {(100, 101, 0): True, (101, 100, 0): True}
    assert virtual == {}


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"waypoint": Gateway("/10.0.0.9")}, "the destination has a waypoint"),
        ({"application_tunnel": ApplicationTunnel(port=1)}, "the destination wants an application tunnel"),
        ({"network": "far", "network_gateway": Gateway("/192.0.2.1")}, "the destination is in network 'far', behind a gateway"),
        ({"addresses": ("10.0.0.2",)}, "the state does not say that fd00::2 is the destination's"),
        ({"host_network": True}, "the state does not say that 10.0.0.2 is the destination's"),
    ],
)
def test_a_destination_that_is_not_direct(build: Build, change: dict[str, Any], detail: str) -> None:
    view = build(CLIENT, replace(SERVER, **change))
    assert hindrance(view) == detail
    verdicts, _ = table(view, CLIENT, SERVER)
    assert (100, 101, 0) not in verdicts


def test_an_address_that_is_a_services_too(build: Build) -> None:
    assert hindrance(build(CLIENT, SERVER, services=(service("clash", "10.0.0.2"),))) == (
        "10.0.0.2 of the destination is a service's as well"
    )


def test_not_for_strangers_itself_and_own_ports(build: Build) -> None:
    view = build(CLIENT, SERVER, OTHER)
    direct = Direct(view, local(CLIENT, SERVER))
    assert str(direct.hindrance(OTHER, "server", 80)).count("source is no enrolled pod")
    assert str(direct.hindrance(CLIENT, "other", 80)).count("destination is no enrolled pod")
    assert str(direct.hindrance(CLIENT, "client", 80)).count("calls itself")
    for port in OWN_PORTS:
        assert str(direct.hindrance(CLIENT, "server", port)).count("own")


def allow(*ports: int) -> Policy:
    rules = tuple(((Match(destination_ports=(port,)),),) for port in ports)
    return Policy(name="p", namespace="ns", scope=PolicyScope.NAMESPACE, action=Action.ALLOW, rules=rules)


def test_ports_that_differ_are_said_apart(build: Build) -> None:
    verdicts, _ = table(build(CLIENT, SERVER, policies=(allow(80, 443),)), CLIENT, SERVER)
    assert {key[2]: said for key, said in verdicts.items() if key[:2] == (100, 101)} == {80: True, 443: True}
    deny = Policy(
        name="d",
        namespace="ns",
        scope=PolicyScope.NAMESPACE,
        action=Action.DENY,
        rules=(((Match(destination_ports=(22,), principals=(StringMatch(suffix="/client"),)),),),),
    )
    verdicts, _ = table(build(CLIENT, SERVER, policies=(deny,)), CLIENT, SERVER)
    assert {key[2]: said for key, said in verdicts.items() if key[:2] == (100, 101)} == {0: True, 22: False}
    assert {key[2]: said for key, said in verdicts.items() if key[:2] == (101, 100)} == {0: True}


def test_too_many_ports(build: Build) -> None:
    view = build(CLIENT, SERVER, policies=(allow(*range(1, MAX_PORTS + 2)),))
    assert table(view, CLIENT, SERVER)[0] == {}
    assert str(hindrance(view, 1)).startswith(f"policies name more than {MAX_PORTS} ports")
    assert len(table(build(CLIENT, SERVER, policies=(allow(*range(1, MAX_PORTS + 1)),)), CLIENT, SERVER)[0]) == 2 * MAX_PORTS


def test_too_many_policies(build: Build) -> None:
    many = tuple(replace(allow(80), name=f"p{number}") for number in range(MAX_POLICIES + 1))
    assert str(hindrance(build(CLIENT, SERVER, policies=many))).startswith(f"more than {MAX_POLICIES} policies hold")
    assert hindrance(build(CLIENT, SERVER, policies=many[1:])) is None


# ── services ──

ENDPOINTS = {
    ("10.96.0.1", 80): (("10.0.0.3", 8080), ("10.0.0.2", 8080)),
    ("10.96.0.1", 443): (("10.0.0.3", 443), ("10.0.0.2", 443)),
}


def test_a_service_whose_endpoints_are_all_here(build: Build) -> None:
    _, virtual = table(build(CLIENT, SERVER, OTHER, services=(WEB,)), CLIENT, SERVER, OTHER)
    assert virtual == ENDPOINTS  # "other" has no IPv6 address: there the proxy crosses over


def test_a_service_that_is_not_only_here(build: Build) -> None:
    assert table(build(CLIENT, SERVER, OTHER, services=(WEB,)), CLIENT, SERVER)[1] == {}


@pytest.mark.parametrize(
    "change",
    [
        {"waypoint": Gateway("/10.0.0.9")},
        {"load_balancer": LoadBalancer(mode=Balancing.PASSTHROUGH)},
        {"load_balancer": LoadBalancer(mode=Balancing.STRICT, routing_preferences=(Scope.ZONE,))},
        {"vips": ("far/10.96.0.1",)},
    ],
)
def test_a_service_that_the_kernel_cannot_choose_for(build: Build, change: dict[str, Any]) -> None:
    client = replace(CLIENT, locality=Locality(zone="z1"))
    assert table(build(client, SERVER, OTHER, services=(replace(WEB, **change),)), client, SERVER, OTHER)[1] == {}


@pytest.mark.parametrize("change", [{"capacity": 2}, {"healthy": False}, {"addresses": ()}])
def test_endpoints_that_are_not_alike(build: Build, change: dict[str, Any]) -> None:
    """Another weight is the proxy's to heed; one that may not be chosen leaves the other alone."""
    view = build(CLIENT, SERVER, replace(OTHER, **change), services=(WEB,))
    virtual = Direct(view, local(CLIENT, SERVER, OTHER)).services()
    found = {(ip, port): endpoints for ip, port, endpoints in virtual}
    assert found.get(("10.96.0.1", 80)) == (None if "capacity" in change else (("10.0.0.2", 8080),))


# ── what a change touches ──


@pytest.mark.parametrize("seed", range(60))
def test_a_change_that_does_not_touch_changes_nothing(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    state = list(random_state(rng))
    told: list[Touched] = []
    writer = StateWriter(tmp_path, before_commit=told.append)
    reader = writer.reader()
    writer.replace(Everything(*map(tuple, state)))
    locals_ = state[0][:4]
    before, relevance = table(reader.view(), *locals_), Relevance(reader.view(), local(*locals_))
    told.clear()
    # Two resources of another state take the places of two of this one, or one goes.
    others = random_state(random.Random(seed + 1000))
    kind = rng.randrange(3)
    kept = {each.uid if kind == 0 else each.key: each for each in state[kind]}
    for each in rng.sample(list(others[kind]), min(2, len(others[kind]))):
        kept[each.uid if kind == 0 else each.key] = each
    if kept and rng.random() < 0.3:
        del kept[rng.choice(list(kept))]
    state[kind] = list(kept.values())
    writer.replace(Everything(*map(tuple, state)))
    after = table(reader.view(), *locals_)
    reader.close()
    writer.close()
    assert any(map(relevance.touches, told)) or before == after
