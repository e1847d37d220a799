from __future__ import annotations

import msgspec
import pytest

from nodeproxy.translate.objects import KINDS, EndpointSlice, Gateway, Namespace, Pod, Service

pytestmark = pytest.mark.unit


def test_a_pod_is_read_of_what_the_api_server_writes():
    pod = msgspec.json.decode(
        b'{"metadata":{"name":"a","namespace":"b","creationTimestamp":null,"managedFields":[{"manager":"x"}],'
        b'"ownerReferences":[{"apiVersion":"apps/v1","kind":"ReplicaSet","name":"a-1","controller":true,"uid":"u"}]},'
        b'"spec":{"nodeName":"n","containers":[{"name":"c","ports":[{"name":"http","containerPort":80,"protocol":"TCP"}]}]},'
        b'"status":{"podIP":"10.0.0.1","podIPs":[{"ip":"10.0.0.1"},{"ip":"fd00::1"}],'
        b'"conditions":[{"type":"Ready","status":"True"}]}}',
        type=Pod,
    )
    assert pod.key == "b/a"
    assert [item.ip for item in pod.status.pod_ips] == ["10.0.0.1", "fd00::1"]
    assert pod.spec.containers[0].ports[0].container_port == 80
    assert pod.metadata.owner_references[0].controller


def test_lists_that_go_writes_as_null_are_read():
    found = msgspec.json.decode(b'{"addressType":"IPv4","endpoints":null,"ports":null}', type=EndpointSlice)
    assert (found.endpoints, found.ports) == (None, None)


def test_a_target_port_is_a_number_or_a_name():
    ports = b'{"spec":{"clusterIP":"None","ports":[{"port":80,"targetPort":8080},{"port":81,"targetPort":"web"},{"port":82}]}}'
    found = msgspec.json.decode(ports, type=Service).spec
    assert [port.target_port for port in found.ports] == [8080, "web", 0]
    assert found.cluster_ip == "None"


def test_a_gateways_listener_is_read():
    listeners = b'{"spec":{"listeners":[{"port":15008,"allowedRoutes":{"namespaces":{"from":"All"}}}]}}'
    routes = msgspec.json.decode(listeners, type=Gateway).spec.listeners[0].allowed_routes
    assert routes is not None
    assert routes.namespaces is not None
    assert routes.namespaces.from_ == "All"


def test_a_cluster_wide_resource_has_a_key_without_a_slash():
    assert msgspec.json.decode(b'{"metadata":{"name":"a"}}', type=Namespace).key == "a"


def test_kinds_know_their_path():
    assert KINDS["Pod"].path("v1") == "/api/v1/pods"
    assert KINDS["Pod"].path("v1", "shop") == "/api/v1/namespaces/shop/pods"
    assert KINDS["ServiceEntry"].path("v1beta1") == "/apis/networking.istio.io/v1beta1/serviceentries"
    assert {kind.name for kind in KINDS.values() if not kind.optional} == {
        "Namespace", "Node", "ServiceAccount", "Service", "Pod", "EndpointSlice",
    }  # fmt: skip
