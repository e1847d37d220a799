from __future__ import annotations

import pytest

from tests.unit.translate.resources import State, pod, service, slice_of

pytestmark = pytest.mark.unit

WEB = {"app": "web"}
WEB_HOST = "shop/web.shop.svc.cluster.local"


def test_an_endpoint_that_is_no_pod_is_a_workload_of_its_own():
    state = State()
    endpoints = [{"addresses": ["192.0.2.1"]}, {"addresses": ["192.0.2.2"], "conditions": {"ready": False}}]
    state.apply(slice_of("shop/web-1", "web", endpoints))
    assert not state.workloads
    state.apply(service("shop/web"))
    first = state.workloads["Kubernetes/discovery.k8s.io/EndpointSlice/shop/web-1/192.0.2.1"]
    second = state.workloads["Kubernetes/discovery.k8s.io/EndpointSlice/shop/web-1/192.0.2.2"]
    assert (first.addresses, first.services, first.host_network) == (("192.0.2.1",), {WEB_HOST: {80: 9090}}, True)
    assert (first.healthy, second.healthy) == (True, False)
    state.apply(slice_of("shop/web-1", "web", endpoints[:1]))
    assert list(state.workloads.values()) == [first]
    state.remove("Service", "shop/web")
    assert not state.workloads


def test_a_pod_in_a_slice_is_an_endpoint_of_a_service_without_a_selector():
    state = State()
    reference = {"kind": "Pod", "name": "a", "uid": "u1"}
    state.apply(service("shop/web"), slice_of("shop/web-1", "web", [{"addresses": ["10.0.0.1"], "targetRef": reference}]))
    state.apply(pod("shop/a", "10.0.0.1", uid="u1"))
    assert state.pod("shop/a").services == {WEB_HOST: {80: 8080}}
    state.apply(pod("shop/a", "10.0.0.1", uid="u2"))  # another pod of that name
    assert state.pod("shop/a").services == {}
    del reference["uid"]
    state.apply(slice_of("shop/web-1", "web", [{"addresses": ["10.0.0.1"], "targetRef": reference}]))
    assert state.pod("shop/a").services == {WEB_HOST: {80: 8080}}
    state.remove("EndpointSlice", "shop/web-1")
    assert state.pod("shop/a").services == {}


def test_slices_that_say_what_a_selector_says_are_let_go():
    state = State()
    managed = {"endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"}
    state.apply(service("shop/web"), slice_of("shop/web-1", "web", [{"addresses": ["192.0.2.1"]}], managed))
    state.apply(slice_of("shop/web-2", "web", [{"addresses": ["example.com"]}], addressType="FQDN"))
    assert not state.workloads
    assert [note.key for note in state.translator.notes()] == ["shop/web-2"]
