from __future__ import annotations

import pytest

from nodeproxy.model.workload import (
    Balancing,
    LoadBalancer,
    Locality,
)
from tests.unit.translate.resources import State, entry, pod, resource, service

pytestmark = pytest.mark.unit

WEB = {"app": "web"}
WEB_HOST = "shop/web.shop.svc.cluster.local"


def test_a_service_entry_is_a_service_for_each_host_with_its_endpoints():
    state = State()
    endpoints = [
        {"address": "192.0.2.1", "ports": {"https": 8443}, "weight": 3, "locality": "r/z/s", "serviceAccount": "ext"},
        {"address": "db.example.com", "network": "n2"},
    ]
    state.apply(entry("shop/ext", ["a.example.com", "b.example.com"], addresses=["240.0.0.1/32"], endpoints=endpoints))
    assert set(state.services) == {"shop/a.example.com", "shop/b.example.com"}
    found = state.services["shop/a.example.com"]
    assert (found.name, found.vips, found.ports, found.canonical) == ("ext", ("/240.0.0.1",), {443: 443}, True)
    first = state.workloads["Kubernetes/networking.istio.io/ServiceEntry/shop/ext/192.0.2.1"]
    second = state.workloads["Kubernetes/networking.istio.io/ServiceEntry/shop/ext/db.example.com"]
    assert first.services == {"shop/a.example.com": {443: 8443}, "shop/b.example.com": {443: 8443}}
    assert (first.capacity, first.locality, first.service_account) == (3, Locality("r", "z", "s"), "ext")
    assert (second.addresses, second.hostname, second.network) == ((), "db.example.com", "n2")
    state.remove("ServiceEntry", "shop/ext")
    assert state.everything == ({}, {}, {})


def test_a_service_entry_can_not_be_called_as_another_resource():
    state = State()
    state.apply(pod("shop/web", "10.0.0.1"))
    before = state.everything
    hosts = ["/Pod/shop/web", "a b", "", "x" * 254, "é.example.com"]
    state.apply(entry("Kubernetes/ext", hosts, endpoints=[{"address": "fd00::1%x//Pod/shop/web"}]))
    assert state.everything == before
    assert [note.field for note in state.translator.notes()] == [f"spec.hosts[{index}]" for index in range(len(hosts))]
    state.apply(entry("Kubernetes/ext", ["*.a.example.com"], endpoints=[{"address": "fd00::1%x//Pod/shop/web"}]))
    (found,) = (workload for workload in state.workloads.values() if workload.namespace == "Kubernetes")
    assert (found.addresses, found.services) == ((), {"Kubernetes/*.a.example.com": {443: 443}})


def test_a_service_entry_that_dns_resolves_has_its_hosts_as_endpoints():
    state = State()
    given = {"addresses": [{"value": "240.240.0.1", "host": "a.example.com"}, {"value": "bad", "host": "a.example.com"}]}
    state.apply(entry("shop/ext", ["a.example.com"], resolution="DNS", status=given))
    (found,) = state.workloads.values()
    assert (found.hostname, found.services) == ("a.example.com", {"shop/a.example.com": {443: 443}})
    assert state.services["shop/a.example.com"].vips == ("/240.240.0.1",)


def test_a_service_entry_without_resolution_passes_through():
    state = State()
    state.apply(entry("shop/ext", ["a.example.com"], resolution="NONE", addresses=["192.0.2.0/24"]))
    found = state.services["shop/a.example.com"]
    assert found.load_balancer == LoadBalancer(mode=Balancing.PASSTHROUGH, allow_unhealthy=True)
    assert found.vips == ()
    assert [note.field for note in state.translator.notes()] == ["spec.addresses[0]"]


def test_selectors_of_entries_and_services_find_pods_and_workload_entries():
    state = State()
    state.apply(
        entry("shop/ext", ["a.example.com"], workloadSelector={"labels": WEB}),
        service("shop/web", WEB),
        pod("shop/a", "10.0.0.1", labels=WEB, ports={"https": 8443}),
        resource(
            "WorkloadEntry", "shop/vm", labels={"x": "y"}, spec={"address": "192.0.2.9", "labels": WEB, "ports": {"p80": 8000}}
        ),
    )
    assert state.pod("shop/a").services == {WEB_HOST: {80: 8080}, "shop/a.example.com": {443: 8443}}
    machine = state.workloads["Kubernetes/networking.istio.io/WorkloadEntry/shop/vm"]
    assert machine.services == {WEB_HOST: {80: 8000}, "shop/a.example.com": {443: 443}}
    assert (machine.addresses, machine.canonical_name, machine.workload_name) == (("192.0.2.9",), "web", "vm")
    state.remove("Service", "shop/web")
    state.remove("ServiceEntry", "shop/ext")
    machine = state.workloads["Kubernetes/networking.istio.io/WorkloadEntry/shop/vm"]
    assert machine.services == state.pod("shop/a").services == {}


def test_of_one_host_the_kubernetes_service_counts_then_the_oldest_entry():
    state = State()
    host = "web.shop.svc.cluster.local"
    state.apply(entry("shop/young", [host], "2026-02-01T00:00:00Z", endpoints=[{"address": "192.0.2.1"}]))
    state.apply(entry("shop/old", [host], "2026-01-01T00:00:00Z", endpoints=[{"address": "192.0.2.2"}]))
    state.apply(entry("other/older", [host], "2025-01-01T00:00:00Z"))
    assert {key: (item.name, item.canonical) for key, item in state.services.items()} == {
        f"shop/{host}": ("old", False),
        f"other/{host}": ("older", True),
    }
    assert [item.name for item in state.workloads.values()] == ["old"]  # the other's endpoints are nobody's
    state.apply(service("shop/web", WEB))
    assert {key: (item.name, item.canonical) for key, item in state.services.items()} == {
        f"shop/{host}": ("web", True),
        f"other/{host}": ("older", False),
    }
    assert not state.workloads
    state.remove("Service", "shop/web")
    state.remove("ServiceEntry", "shop/old")
    assert state.services[f"shop/{host}"].name == "young"
    assert [item.name for item in state.workloads.values()] == ["young"]
