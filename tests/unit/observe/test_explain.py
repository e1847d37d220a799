"""`why`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeproxy.errors import ConfigError
from nodeproxy.model.delta import Everything
from nodeproxy.model.policy import Action, Match, Policy, PolicyScope
from nodeproxy.model.reason import Reason
from nodeproxy.model.workload import Gateway, Protocol
from nodeproxy.observe.explain import Explanation, explain, find_workload
from nodeproxy.state.balance import Balancer
from nodeproxy.state.store import StateWriter
from nodeproxy.state.view import View
from tests.unit.state.builders import pod, service


@pytest.fixture
def view(tmp_path: Path) -> Iterator[View]:
    closed = Policy(
        name="closed",
        namespace="ns",
        scope=PolicyScope.NAMESPACE,
        action=Action.DENY,
        rules=(((Match(destination_ports=(9999,)),),),),
    )
    dry = Policy(name="dry", namespace="ns", scope=PolicyScope.NAMESPACE, action=Action.DENY, rules=((),), dry_run=True)
    writer = StateWriter(tmp_path)
    writer.replace(
        Everything(
            workloads=(
                pod("client", "10.0.0.1", uid="c//Pod/ns/client"),
                pod("web", "10.0.0.2", uid="c//Pod/ns/web", services={"ns/web.ns.svc": {}}),
                pod("twin", "10.0.0.3", namespace="a", uid="a/twin"),
                pod("twin", "10.0.0.4", namespace="b", uid="b/twin", protocol=Protocol.TCP),
                pod("headless", "10.0.0.5", services={"ns/headless.ns.svc": {}}),
                pod("wp", "10.0.0.9"),
            ),
            services=(
                service("web", "10.96.0.1", hostname="web.ns.svc"),
                service("headless", hostname="headless.ns.svc"),
                service("lost", hostname="lost.ns.svc"),
                service("behind", "10.96.0.3", hostname="behind.ns.svc", waypoint=Gateway(destination="/10.0.0.9")),
                service("secret", "10.96.0.4", hostname="secret.b.svc", namespace="b", namespace_only=True),
            ),
            policies=(closed, dry),
        )
    )
    reader = writer.reader()
    yield reader.view()
    reader.close()
    writer.close()


def why(view: View, source: str, destination: str, local: tuple[str, ...] = ()) -> Explanation:
    return explain(view, Balancer(1), source, destination, local.__contains__)


@pytest.mark.parametrize("name", ["c//Pod/ns/client", "10.0.0.1", "client", "client.ns", "ns/client", "::ffff:10.0.0.1"])
def test_a_workload_has_many_names(view: View, name: str) -> None:
    assert find_workload(view, name).uid == "c//Pod/ns/client"


def test_a_name_of_nobody_or_of_several(view: View) -> None:
    with pytest.raises(ConfigError, match="no workload is called 'nobody'"):
        find_workload(view, "nobody")
    with pytest.raises(ConfigError, match="2 workloads are called 'twin'; say which: a/twin, b/twin"):
        find_workload(view, "twin")
    assert find_workload(view, "twin.b").uid == "b/twin"


@pytest.mark.parametrize(
    ("destination", "address"),
    [
        ("10.96.0.1:80", "10.96.0.1:80"),
        ("web.ns.svc:80", "10.96.0.1:80"),
        ("web.ns:80", "10.96.0.1:80"),
        ("web:80", "10.96.0.1:80"),
        ("web", "10.96.0.1:80"),
        ("c//Pod/ns/web:22", "10.0.0.2:22"),
        ("c//Pod/ns/web", "10.0.0.2:8080"),
        ("headless.ns.svc:80", "10.0.0.5:8080"),
        ("twin.a:22", "10.0.0.3:22"),
        ("192.0.2.1:443", "192.0.2.1:443"),
        ("[2001:db8::1]:443", "[2001:db8::1]:443"),
    ],
)
def test_a_destination_has_many_names(view: View, destination: str, address: str) -> None:
    assert why(view, "client", destination).destination == address


@pytest.mark.parametrize(
    ("destination", "words"),
    [
        ("nobody:80", "no workload is called 'nobody'"),
        ("twin.a", "which port of a/twin"),
        ("lost:80", "neither a virtual address nor an endpoint"),
        ("twin.a:70000", "70000 is no port"),
        ("twin.a:0", "0 is no port"),
        ("secret.b:80", "no workload is called 'secret.b'"),
    ],
)
def test_a_destination_that_is_none(view: View, destination: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        why(view, "client", destination)


def test_an_allowed_connection_is_told_step_by_step(view: View) -> None:
    found = why(view, "client", "web:80")
    assert found.refusal is None
    assert found.source == "c//Pod/ns/client"
    assert found.outcome == "tunnelled to web at 10.0.0.2:15008 in mutual TLS, for 10.0.0.2:8080"
    assert [(step.what, step.resource) for step in found.steps] == [
        ("who is web.ns.svc?", "ns/web.ns.svc"),
        ("who is 10.96.0.1?", "ns/web.ns.svc"),
        ("which endpoint?", "c//Pod/ns/web"),
        ("how is it reached?", "c//Pod/ns/web"),
        ("denied by policy?", "ns/closed"),
        ("denied by policy? (dry run)", "ns/dry"),
        ("what does policy say?", ""),
        ("what would dry-run policies say?", "ns/dry"),
    ]


@pytest.mark.parametrize("local", [(), ("c//Pod/ns/web",)])
def test_a_denied_connection_names_the_policy(view: View, local: tuple[str, ...]) -> None:
    found = why(view, "client", "10.0.0.2:9999", local)
    assert found.refusal is not None
    assert found.refusal.reason is Reason.POLICY_DENY
    assert found.outcome == "refused (policy_deny): denied by DENY policy ns/closed, rule 0"


@pytest.mark.parametrize(
    ("destination", "local", "outcome"),
    [
        ("192.0.2.1:443", (), "passed through to 192.0.2.1:443, untouched"),
        ("web:80", ("c//Pod/ns/web",), "connected to web at 10.0.0.2:8080 on this node"),
        ("twin.b:22", (), "connected to twin at 10.0.0.4:22 in plain TCP, outside the mesh"),
        ("10.96.0.3:80", (), "tunnelled through waypoint wp at 10.0.0.9:15008 in mutual TLS, for 10.96.0.3:80"),
        ("web:81", (), "refused (no_endpoint): service ns/web.ns.svc has no port 81; it has 80"),
    ],
)
def test_outcomes(view: View, destination: str, local: tuple[str, ...], outcome: str) -> None:
    assert why(view, "client", destination, local).outcome.startswith(outcome)


def test_a_source_outside_the_mesh_goes_in_plain_and_is_judged_without_identity(view: View) -> None:
    found = explain(view, Balancer(1), "client", "web:80", ().__contains__, outside="nobody enrolled it")
    assert found.steps[1].outcome == "no: nobody enrolled it"
    assert found.outcome == "not captured, connected to web at 10.0.0.2:8080 in plain TCP"
    assert found.way is not None
    assert (found.way.kind, found.way.address, found.way.identity, found.way.source_address) == (
        "plain",
        "10.0.0.2:8080",
        "",
        "10.0.0.1",
    )
    portless = explain(view, Balancer(1), "client", "web:81", ().__contains__, outside="x")
    assert portless.refusal is not None
    assert portless.refusal.reason is Reason.NO_ENDPOINT
    denied = explain(view, Balancer(1), "client", "10.0.0.2:9999", ().__contains__, outside="x")
    assert denied.refusal is not None
    assert denied.refusal.reason is Reason.POLICY_DENY
    assert "outside the mesh" in explain(view, Balancer(1), "client", "10.0.0.4:80", ().__contains__, outside="x").outcome
    assert "passed through" in explain(view, Balancer(1), "client", "192.0.2.1:80", ().__contains__, outside="x").outcome


def test_the_way_says_whom_to_ask_next(view: View) -> None:
    tunnelled = why(view, "client", "web:80").way
    assert tunnelled is not None
    assert (tunnelled.kind, tunnelled.workload, tunnelled.authority) == ("hbone", "c//Pod/ns/web", "10.0.0.2:8080")
    assert tunnelled.identity == "spiffe://cluster.local/ns/ns/sa/default"
    waypoint = why(view, "client", "behind:80").way
    assert waypoint is not None
    assert (waypoint.via_waypoint, waypoint.address) == (True, "10.0.0.9:15008")
    passed = why(view, "client", "192.0.2.1:80").way
    assert passed is not None
    assert (passed.kind, passed.workload) == ("passthrough", "")
    assert why(view, "client", "web:15008").way is None
