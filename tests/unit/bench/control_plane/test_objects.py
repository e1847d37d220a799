from __future__ import annotations

from collections import Counter

import pytest

from tests.bench.control_plane.objects import Size, first, pod_place, pods, rest, service_addresses, services

SIZE = Size(7, 250, 120)


def test_there_is_as_much_as_was_asked_for() -> None:
    kinds = Counter(item["kind"] for item in (*first(SIZE), *rest(SIZE), *services(SIZE), *service_addresses(SIZE), *pods(SIZE)))
    assert kinds == {
        "Node": 7,
        "Namespace": 2,
        "AuthorizationPolicy": 2,
        "ServiceAccount": 120,
        "Service": 120,
        "IPAddress": 120,
        "EndpointSlice": 120,
        "Pod": 250,
    }


def test_pods_have_names_and_addresses_of_their_own_and_nodes_that_exist() -> None:
    found = list(pods(SIZE))
    nodes = {item["metadata"]["name"] for item in first(SIZE) if item["kind"] == "Node"}
    assert len({(pod["metadata"]["namespace"], pod["metadata"]["name"]) for pod in found}) == SIZE.pods
    assert len({pod["status"]["podIP"] for pod in found}) == SIZE.pods
    assert {pod["spec"]["nodeName"] for pod in found} == nodes
    assert [(pod["metadata"]["namespace"], pod["metadata"]["name"]) for pod in found] == [
        pod_place(SIZE, number) for number in range(SIZE.pods)
    ]


def test_the_endpoints_of_a_service_are_the_pods_that_it_selects() -> None:
    found, all_pods = list(rest(SIZE)), list(pods(SIZE))
    slices = {
        (item["metadata"]["namespace"], item["metadata"]["labels"]["kubernetes.io/service-name"]): item["endpoints"]
        for item in found
        if item["kind"] == "EndpointSlice"
    }
    for service in services(SIZE):
        space = service["metadata"]["namespace"]
        selected = {
            pod["status"]["podIP"]
            for pod in all_pods
            if pod["metadata"]["namespace"] == space and service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
        }
        endpoints = slices[space, service["metadata"]["name"]]
        assert {address for endpoint in endpoints for address in endpoint["addresses"]} == selected
        assert selected


def test_a_service_has_a_pod() -> None:
    with pytest.raises(ValueError, match="at least a pod a service"):
        Size(1, 5, 6)
