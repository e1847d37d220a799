"""What a person calls pods and services."""

from __future__ import annotations

import pytest

from nodeproxy.errors import ConfigError
from nodeproxy.fleet.names import Named, choose_pod, parse
from tests.unit.fleet.builders import found


@pytest.mark.parametrize(
    ("text", "kind", "namespace", "name", "port"),
    [
        ("frontend", "", "", "frontend", 0),
        ("orders:80", "", "", "orders", 80),
        ("shop/frontend", "", "shop", "frontend", 0),
        ("orders.shop:80", "", "shop", "orders", 80),
        ("pod/frontend", "pod", "", "frontend", 0),
        ("po/frontend:8080", "pod", "", "frontend", 8080),
        ("svc/orders:80", "service", "", "orders", 80),
        ("deploy/web", "deployment", "", "web", 0),
        ("sts/db", "other", "", "db", 0),
        ("Kubernetes//Pod/shop/frontend:80", "pod", "shop", "frontend", 80),
    ],
)
def test_names_in_their_parts(text: str, kind: str, namespace: str, name: str, port: int) -> None:
    assert parse(text) == Named(text=text, kind=kind, namespace=namespace, name=name, port=port)


@pytest.mark.parametrize(
    "text", ["10.0.0.1", "10.0.0.1:80", "fd00::1", "[fd00::1]:80", "orders.shop.svc.cluster.local:80", "x//y"]
)
def test_what_is_no_name_is_handed_on(text: str) -> None:
    assert parse(text).verbatim
    assert parse(text).text == text


@pytest.mark.parametrize("text", ["", "Frontend", "../x", "a/b/c", "shop/", "web:0", "web:99999", "web:http", "-x", "a" * 300])
def test_what_can_be_none_is_told(text: str) -> None:
    with pytest.raises(ConfigError, match="is no name|is no port"):
        parse(text)


WEB = {"workload": "deployment/web"}
PODS = [
    found("web-1", **WEB, ready=False),
    found("web-2", **WEB),
    found("web-3", **WEB, phase="Failed"),
    found("db-0", workload="workload/db"),
    found("twin-1", workload="deployment/twin"),
    found("twin-0", workload="workload/twin"),
    found("plain"),
]


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        ("plain", "plain", ""),
        ("pod/web-1", "web-1", ""),
        ("web", "web-2", "shop/web-2 is taken, one of 2 pods of deployment/web"),
        ("deploy/web", "web-2", "shop/web-2 is taken, one of 2 pods of deployment/web"),
        ("sts/db", "db-0", "shop/db-0 is taken, the pod of workload/db"),
        ("deploy/twin", "twin-1", "shop/twin-1 is taken, the pod of deployment/twin"),
    ],
)
def test_a_pod_or_one_of_a_workloads_pods(text: str, name: str, said: str) -> None:
    pod, told = choose_pod(PODS, parse(text), "shop")
    assert (pod.name, told) == (name, said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("twin", "may be deployment/twin or workload/twin of namespace shop: say which"),
        ("web-3", "has no pod 'web-3'.*did you mean web-"),
        ("pod/web", "did you mean web, web-1, web-2"),
        ("plian", "did you mean plain"),
        ("zzzzzz", "kubectl get pods -n shop"),
        ("deploy/db", "has no pod 'db'"),
    ],
)
def test_nobody_or_several_are_told_with_who_is_there(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        choose_pod(PODS, parse(text), "shop")
