"""Look-ups."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nodeproxy.model.delta import Everything
from nodeproxy.model.policy import Action, Match, Policy, PolicyScope, StringMatch
from nodeproxy.model.workload import Protocol, Workload
from nodeproxy.policy.authorize import MAX_NAMED, Candidates, Named
from nodeproxy.policy.match import Subject
from nodeproxy.state import kept
from nodeproxy.state.store import StateWriter
from nodeproxy.state.view import View
from tests.unit.state.builders import pod, service

Build = Callable[..., View]


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Build]:
    writer = StateWriter(tmp_path)
    reader = writer.reader()

    def view(*workloads: object, services: tuple[object, ...] = (), policies: tuple[object, ...] = ()) -> View:
        writer.replace(Everything(workloads, services, policies))  # type: ignore[arg-type]
        return reader.view()

    yield view
    reader.close()
    writer.close()


def test_addresses_belong_to_a_network(build: Build) -> None:
    view = build(pod("a", "10.0.0.1"), pod("b", "10.0.0.1", network="n2"))
    found = [view.workload_at(network, "10.0.0.1") for network in ("", "n2", "n3")]
    assert [workload and workload.uid for workload in found] == ["a", "b", None]


def test_of_two_workloads_with_one_address_a_pod_then_a_mesh_member_then_the_first_answers(build: Build) -> None:
    plain, member = pod("a", "10.0.0.1", protocol=Protocol.TCP), pod("z", "10.0.0.1")
    real = pod("p", "10.0.0.1", uid="c//Pod/ns/p", protocol=Protocol.TCP)
    assert build(plain, member).workload_at("", "10.0.0.1") == member
    assert build(plain, member, real).workload_at("", "10.0.0.1") == real
    twins = pod("b", "10.0.0.1"), pod("a", "10.0.0.1")
    assert build(*twins).workload_at("", "10.0.0.1") == twins[1]
    assert build(*reversed(twins)).workload_at("", "10.0.0.1") == twins[1]


def test_a_pod_of_the_hosts_network_has_no_address_of_its_own(build: Build) -> None:
    view = build(pod("h", "192.0.2.1", host_network=True, services={"ns/s.svc": {}}))
    assert view.workload_at("", "192.0.2.1") is None
    assert [workload.uid for workload, _ in view.endpoints("ns/s.svc")] == ["h"]


def test_services_by_virtual_address(build: Build) -> None:
    view = build(services=(service("a", "10.96.0.1", "fd00::1"), service("b", "10.96.0.2"), service("c", "10.96.0.2")))
    names = [
        found and found.name
        for found in map(lambda ip: view.service_at("", ip), ("10.96.0.1", "fd00::1", "10.96.0.2", "1.1.1.1"))
    ]
    assert names == ["a", "a", "b", None]


def test_a_hostname_means_the_clients_own_then_the_canonical_then_the_first(build: Build) -> None:
    host = "www.example.com"
    services = [service("s", hostname=host, namespace=name, canonical=name == "c") for name in ("a", "b", "c")]
    view = build(services=tuple(services))
    assert [found and found.namespace for found in (view.service_by_host(host, name) for name in ("b", "z"))] == ["b", "c"]
    view = build(services=tuple(services[:2]))
    found = view.service_by_host(host.upper(), "z")
    assert found is not None
    assert found.namespace == "a"
    assert view.service_by_host("other.example.com", "a") is None


def test_a_service_for_its_own_namespace_is_hidden_from_others(build: Build) -> None:
    view = build(services=(service("s", hostname="h", namespace="a", namespace_only=True),))
    assert view.service_by_host("h", "a") is not None
    assert view.service_by_host("h", "b") is None


def test_endpoints_come_in_the_order_of_uids_with_their_own_ports(build: Build) -> None:
    view = build(
        pod("b", "10.0.0.2", services={"ns/s.svc": {80: 81}}),
        pod("a", "10.0.0.1", services={"ns/s.svc": {}, "ns/t.svc": {}}),
        pod("c", "10.0.0.3"),
    )
    assert [(workload.uid, ports) for workload, ports in view.endpoints("ns/s.svc")] == [("a", {}), ("b", {80: 81})]
    assert view.endpoints("ns/s.svc") is view.endpoints("ns/s.svc")
    assert view.endpoints("ns/none") == ()


def policy(name: str, scope: PolicyScope, namespace: str = "ns") -> Policy:
    return Policy(name=name, namespace=namespace, scope=scope, action=Action.DENY)


def test_policies_that_hold(build: Build) -> None:
    listing = pod("w", "10.0.0.1", policies=("ns/listed", "ns/not-there", "ns/in-ns"))
    view = build(
        listing,
        policies=(
            policy("all", PolicyScope.GLOBAL, "root"),
            policy("in-ns", PolicyScope.NAMESPACE),
            policy("in-other", PolicyScope.NAMESPACE, "other"),
            policy("listed", PolicyScope.WORKLOAD_SELECTOR),
            policy("not-listed", PolicyScope.WORKLOAD_SELECTOR),
        ),
    )
    assert [found.key for found in view.policies_for(listing)] == ["ns/in-ns", "ns/listed", "root/all"]
    assert [found.key for found in view.policies_for(pod("x", namespace="other"))] == ["other/in-other", "root/all"]
    assert view.policies_for(listing) is view.policies_for(pod("y", policies=listing.policies))


def test_an_unchanged_policy_stays_the_same_object_across_epochs(build: Build) -> None:
    one = policy("all", PolicyScope.GLOBAL)
    first = build(policies=(one,)).policies_for(pod("w"))[0]
    second = build(pod("w"), policies=(one,)).policies_for(pod("w"))[0]
    assert second is first


def from_namespace(name: str, source: str, scope: PolicyScope, action: Action = Action.ALLOW, dry_run: bool = False) -> Policy:
    rule = ((Match(namespaces=(StringMatch(exact=source),)),),)
    return Policy(name=name, namespace="root", scope=scope, action=action, rules=(rule,), dry_run=dry_run)


def test_of_many_policies_those_that_may_match_are_looked_at(build: Build) -> None:
    everywhere = tuple(from_namespace(f"p{n:03}", f"ns{n}", PolicyScope.GLOBAL) for n in range(500))
    denying = (
        from_namespace("deny", "ns7", PolicyScope.GLOBAL, Action.DENY),
        from_namespace("dry", "ns7", PolicyScope.GLOBAL, dry_run=True),
    )
    listed = from_namespace("a-listed", "ns7", PolicyScope.WORKLOAD_SELECTOR)
    view = build(policies=(*everywhere, *denying, listed))

    def keys(workload: Workload, namespace: str) -> list[str]:
        relevant = view.relevant_policies(workload, Subject(f"spiffe://td/ns/{namespace}/sa/x", "10.0.0.1", "10.0.0.2", 80))
        assert isinstance(relevant, Candidates)
        assert len(relevant.policies) + relevant.left_out == len(view.policies_for(workload))
        assert (relevant.allow.count, relevant.dry_allow) == (500 + len(workload.policies), Named(("root/dry",), 1))
        assert len(relevant.allow.first) == MAX_NAMED
        return [policy.key for policy in relevant.policies]

    assert keys(pod("w"), "ns7") == ["root/deny", "root/dry", "root/p007"]
    assert keys(pod("w", policies=("root/a-listed",)), "ns7") == ["root/a-listed", "root/deny", "root/dry", "root/p007"]
    assert keys(pod("w"), "other") == []


def test_few_policies_are_all_looked_at(build: Build) -> None:
    few = tuple(from_namespace(f"p{n}", f"ns{n}", PolicyScope.GLOBAL) for n in range(16))
    subject = Subject("", "10.0.0.1", "10.0.0.2", 80)
    view = build(policies=few)
    assert view.relevant_policies(pod("w"), subject) is view.policies_for(pod("w"))
    assert isinstance(
        build(policies=(*few, from_namespace("more", "x", PolicyScope.NAMESPACE))).relevant_policies(
            pod("w", namespace="root"), subject
        ),
        Candidates,
    )


def test_emptiness(build: Build) -> None:
    assert build().is_incomplete
    assert not build(policies=(policy("p", PolicyScope.GLOBAL),)).is_incomplete


def test_everything_can_be_listed(build: Build) -> None:
    view = build(pod("b"), pod("a"), services=(service("s"),), policies=(policy("p", PolicyScope.GLOBAL),))
    assert [workload.uid for workload in view.workloads()] == ["a", "b"]
    assert [found.key for found in view.services()] == ["ns/s.svc"]
    assert [found.key for found in view.policies()] == ["ns/p"]


@pytest.mark.parametrize("name", ["", "x" * 600, "ü" * 300, "\x00"])
def test_names_that_cannot_be_keys_are_not_there(build: Build, name: str) -> None:
    view = build(pod("a", "10.0.0.1"))
    assert view.workload(name) is None
    assert view.service(name) is None
    assert view.workload_at("", name) is None
    assert view.workload_at(name, "10.0.0.9") is None
    assert view.service_by_host(name, "ns") is None
    assert view.endpoints(name) == ()


def test_caches_are_bounded(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MAX_CACHED", 8)
    monkeypatch.setattr(kept, "MAX_CACHED_ENDPOINTS", 4)
    workloads = [pod(f"w{n}", f"10.0.0.{n}", services={f"ns/s{n % 3}": {}}) for n in range(30)]
    view = build(*workloads)
    for n in range(30):
        assert view.workload_at("", f"10.0.0.{n}") == workloads[n]
        assert view.workload_at("", f"10.9.0.{n}") is None
        assert len(view.endpoints(f"ns/s{n % 3}")) == 10
    assert max(len(view._kept.workloads), len(view._kept.workloads_at)) <= 8
    assert len(view._kept.endpoints) <= 1
