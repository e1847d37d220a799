from __future__ import annotations

import pytest

from nodeproxy.model.delta import Delta
from nodeproxy.model.workload import (
    Balancing,
    LoadBalancer,
    Scope,
)
from tests.unit.translate.resources import State, pod, resource, service

pytestmark = pytest.mark.unit

WEB = {"app": "web"}
WEB_HOST = "shop/web.shop.svc.cluster.local"


def test_a_service_has_the_pods_that_it_selects():
    state = State()
    state.apply(
        service("shop/web", WEB, ports=((80, 8080), (443, "tls"), (81, 0)), spec={"clusterIPs": ["10.96.0.1", "fd00::1"]}),
        pod("shop/a", "10.0.0.1", labels={**WEB, "x": "y"}, ports={"tls": 8443}),
        pod("shop/b", "10.0.0.2", labels=WEB),
        pod("shop/c", "10.0.0.3", labels={"app": "other"}),
        pod("other/d", "10.0.0.4", labels=WEB),
    )
    found = state.service("shop/web")
    assert (found.vips, found.canonical) == (("/10.96.0.1", "/fd00::1"), True)
    assert found.ports == {80: 8080, 443: 0, 81: 81}
    assert state.pod("shop/a").services == {WEB_HOST: {80: 8080, 443: 8443, 81: 81}}
    assert state.pod("shop/b").services == {WEB_HOST: {80: 8080, 81: 81}}  # it has no port of that name
    assert state.pod("shop/c").services == {}
    assert state.pod("other/d").services == {}


def test_a_headless_service_has_endpoints_and_no_address():
    state = State()
    state.apply(service("shop/web", WEB, vip="None"), pod("shop/a", "10.0.0.1", labels=WEB))
    assert state.service("shop/web").vips == ()
    assert WEB_HOST in state.pod("shop/a").services


def test_an_external_name_is_no_service():
    state = State()
    assert state.apply(service("shop/web", WEB, spec={"type": "ExternalName", "externalName": "example.com"})) == Delta()
    assert [note.field for note in state.translator.notes()] == ["spec.type"]


def test_only_tcp_ports_are_taken():
    state = State()
    ports = [{"port": 53, "protocol": "UDP", "name": "dns"}, {"port": 53, "protocol": "TCP", "name": "dns-tcp"}]
    state.apply(service("shop/dns", WEB, ports=ports))
    assert state.service("shop/dns").ports == {53: 53}
    assert [(note.field, note.key) for note in state.translator.notes()] == [("spec.ports[0].protocol", "shop/dns")]


ZONE = LoadBalancer((Scope.NETWORK, Scope.REGION, Scope.ZONE), Balancing.FAILOVER)
NODE = LoadBalancer((*ZONE.routing_preferences, Scope.SUBZONE, Scope.NODE), Balancing.FAILOVER)
OWN = LoadBalancer((Scope.NODE,), Balancing.STRICT)
OWN_UNREADY = LoadBalancer((Scope.NODE,), Balancing.STRICT, True)


@pytest.mark.parametrize(
    ("spec", "annotations", "of_namespace", "expected"),
    [
        ({}, "", "", LoadBalancer()),
        ({"internalTrafficPolicy": "Local"}, "", "PreferClose", OWN),
        ({"trafficDistribution": "PreferSameZone"}, "", "", ZONE),
        ({"trafficDistribution": "PreferClose"}, "PreferSameNode", "", ZONE),
        ({}, "prefersamenode", "PreferClose", NODE),
        ({}, "", "PreferClose", ZONE),
        ({}, "nonsense", "PreferClose", LoadBalancer()),
        ({"publishNotReadyAddresses": True}, "", "", LoadBalancer(allow_unhealthy=True)),
        ({"publishNotReadyAddresses": True, "internalTrafficPolicy": "Local"}, "", "", OWN_UNREADY),
    ],
)
def test_balancing_follows_the_spec_then_annotations(spec, annotations, of_namespace, expected):
    key = "networking.istio.io/traffic-distribution"
    state = State()
    state.apply(
        resource("Namespace", "shop", annotations={key: of_namespace} if of_namespace else {}),
        service("shop/web", WEB, spec=spec, annotations={key: annotations} if annotations else {}),
    )
    assert state.service("shop/web").load_balancer == expected
