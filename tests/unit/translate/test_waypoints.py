from __future__ import annotations

import pytest

from nodeproxy.model.workload import (
    ApplicationTunnel,
    Gateway,
    WeightedGateway,
)
from tests.unit.translate.resources import State, gateway, pod, resource, service

pytestmark = pytest.mark.unit

WEB = {"app": "web"}
WEB_HOST = "shop/web.shop.svc.cluster.local"


USE = {"istio.io/use-waypoint": "wp"}
HERE = Gateway(destination="/10.96.9.9")


@pytest.mark.parametrize(
    ("kind", "of_service", "of_pod"),
    [("", HERE, None), ("service", HERE, None), ("workload", None, HERE), ("all", HERE, HERE), ("none", None, None)],
)
def test_a_waypoint_is_for_what_its_gateway_says(kind, of_service, of_pod):
    state = State()
    labels = {"istio.io/waypoint-for": kind} if kind else {}
    state.apply(
        service("shop/web", WEB),
        pod("shop/a", "10.0.0.1", labels=WEB),
        resource("Namespace", "shop", labels=USE),
        gateway("shop/wp", labels=labels),
    )
    assert state.service("shop/web").waypoint == of_service
    assert state.pod("shop/a").waypoint == of_pod


def test_a_class_says_what_its_gateways_do_not():
    state = State()
    state.apply(pod("shop/a", "10.0.0.1", labels=USE), gateway("shop/wp"))
    assert state.pod("shop/a").waypoint is None
    state.apply(resource("GatewayClass", "istio-waypoint", labels={"istio.io/waypoint-for": "workload"}))
    assert state.pod("shop/a").waypoint == HERE
    state.remove("GatewayClass", "istio-waypoint")
    assert state.pod("shop/a").waypoint is None


def test_an_own_label_wins_and_none_opts_out():
    state = State()
    state.apply(
        resource("Namespace", "shop", labels=USE),
        gateway("shop/wp"),
        gateway("shop/other", "waypoint.shop.svc.cluster.local"),
        service("shop/a", WEB, labels={"istio.io/use-waypoint": "other"}),
        service("shop/b", WEB, labels={"istio.io/use-waypoint": "none"}),
        service("shop/c", WEB),
        service("shop/wp", WEB, labels={"gateway.istio.io/managed": "istio.io-mesh-controller"}),
    )
    assert state.service("shop/a").waypoint == Gateway(destination="shop/waypoint.shop.svc.cluster.local", is_hostname=True)
    assert state.service("shop/b").waypoint is None
    assert state.service("shop/c").waypoint == HERE
    assert state.service("shop/wp").waypoint is None


@pytest.mark.parametrize(
    ("allowed", "there"),
    [
        (None, False),
        ({"from": "Same"}, False),
        ({"from": "All"}, True),
        ({"from": "Selector", "selector": {"matchLabels": {"team": "a"}}}, True),
        ({"from": "Selector", "selector": {"matchLabels": {"team": "b"}}}, False),
        ({"from": "Selector", "selector": {"matchExpressions": [{"key": "team", "operator": "In", "values": ["a"]}]}}, True),
        ({"from": "Selector", "selector": {"matchExpressions": [{"key": "team", "operator": "DoesNotExist"}]}}, False),
    ],
)
def test_a_waypoint_of_another_namespace_must_admit_this_one(allowed, there):
    state = State()
    listener = {"port": 15008, "protocol": "HBONE", "allowedRoutes": {"namespaces": allowed} if allowed else {}}
    state.apply(
        resource("Namespace", "shop", labels={"team": "a", **USE, "istio.io/use-waypoint-namespace": "infra"}),
        gateway("infra/wp", spec={"listeners": [listener]}),
        service("shop/web", WEB),
    )
    assert (state.service("shop/web").waypoint is not None) is there


def test_the_pods_of_a_waypoint_have_none_and_may_want_a_tunnel():
    state = State()
    binding = {"ambient.istio.io/waypoint-inbound-binding": "PROXY/15088"}
    state.apply(
        resource("Namespace", "shop", labels=USE),
        gateway("shop/wp", labels={"istio.io/waypoint-for": "all"}, annotations=binding),
        pod("shop/wp-1", "10.0.0.1", labels={"gateway.networking.k8s.io/gateway-name": "wp"}),
        pod("shop/a", "10.0.0.2"),
    )
    assert state.pod("shop/wp-1").waypoint is None
    assert state.pod("shop/wp-1").application_tunnel == ApplicationTunnel(15088, True)
    assert state.pod("shop/a").waypoint == HERE
    state.remove("Gateway", "shop/wp")
    assert state.pod("shop/wp-1").application_tunnel is None
    assert state.pod("shop/a").waypoint is None


def test_a_gateway_without_an_address_is_reached_at_its_service():
    state = State()
    state.apply(gateway("shop/wp", ""), service("shop/web", WEB, labels=USE))
    assert state.service("shop/web").waypoint is None
    assert [note.field for note in state.translator.notes()] == ["status.addresses"]
    labels = {"gateway.networking.k8s.io/gateway-name": "wp", "gateway.istio.io/managed": "istio.io-mesh-controller"}
    state.apply(service("shop/wp-istio", {"a": "b"}, labels=labels))
    found = Gateway(destination="shop/wp-istio.shop.svc.cluster.local", is_hostname=True)
    assert state.service("shop/web").waypoint == found
    state.apply(gateway("shop/wp"))
    assert state.service("shop/web").waypoint == HERE
    state.apply(gateway("shop/wp", ""))
    state.remove("Service", "shop/wp-istio")
    assert state.service("shop/web").waypoint is None


def test_two_waypoints_share_while_one_is_on_trial():
    state = State()
    labels = {**USE, "istio.io/use-waypoint-canary": "next"}
    weight = "istio.io/use-waypoint-canary-weight"
    new = Gateway(destination="/10.96.9.8")
    state.apply(gateway("shop/wp"), gateway("shop/next", "10.96.9.8"))
    state.apply(service("shop/web", WEB, labels=labels, annotations={weight: "30"}))
    assert state.service("shop/web").weighted_waypoints == (WeightedGateway(HERE, 70), WeightedGateway(new, 30))
    state.apply(service("shop/web", WEB, labels=labels, annotations={weight: "130"}))
    assert state.service("shop/web").weighted_waypoints == ()
    state.apply(service("shop/web", WEB), resource("Namespace", "shop", labels=labels, annotations={weight: "1"}))
    assert state.service("shop/web").weighted_waypoints == (WeightedGateway(HERE, 99), WeightedGateway(new, 1))
    state.remove("Gateway", "shop/next")
    assert state.service("shop/web").weighted_waypoints == ()
