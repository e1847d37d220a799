"""A DaemonSet that is rolled and a node that is drained, while 500 new connections come each second: none fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.kinds import make, service
from tests.cluster.opt_in import PORT, WORDS, OptInMesh
from tests.mesh.roll import ended, roll

RATE = "500"
# What `preStop` gives: until clients' nodes know that a pod ends, it serves on.
PRE_STOP_S = 2


@pytest.fixture(scope="module")
def mesh(definitions: list[Path]) -> Iterator[OptInMesh]:
    with OptInMesh.chained(definitions) as made:
        yield made


@pytest.fixture
def space(mesh: OptInMesh, unique: Callable[[str], str]) -> str:
    name = unique("roll")
    mesh.space(name, in_mesh=True)
    return name


def rolled(mesh: OptInMesh, number: int) -> None:
    """As a DaemonSet with maxSurge does it: the next agent serves before the first is asked to end."""
    _, first = roll(mesh.cluster.agents[number])
    ended(first)


def test_agents_are_rolled(mesh: OptInMesh, space: str, record_property: pytest.RecordProperty) -> None:
    mesh.create(1, "server", space, "pod", "serve", PORT, WORDS)
    address = mesh.running("server", space)[0]
    mesh.create(0, "client", space, "pod", "load", address, PORT, RATE)
    mesh.wait_in((0, "client", space), (1, "server", space))
    began = time.monotonic()
    for number in (0, 1):
        rolled(mesh, number)
    took_s = time.monotonic() - began
    load = mesh.load(0, "client", space)
    record_property(f"two nodes' agents rolled in {took_s:.1f} s under {RATE} new connections/s", str(load))
    assert load.failed == 0, load
    assert mesh.is_in(1, "server", space)


def test_a_node_is_drained(mesh: OptInMesh, space: str, record_property: pytest.RecordProperty) -> None:
    """Of two servers of a service the one is evicted, and comes again on the other node."""
    wait = {"lifecycle": {"preStop": {"sleep": {"seconds": PRE_STOP_S}}}}
    labels = {"app": "server"}
    made = mesh.api.create(service("api", space, labels, {80: int(PORT)}))
    for number in (0, 1):
        mesh.create(number, f"server{number}", space, "pod", "serve", PORT, WORDS, labels=labels, container=wait)
    for number in (0, 1):
        mesh.running(f"server{number}", space)
    write_endpoints(mesh, space)
    mesh.create(0, "client", space, "pod", "load", made["spec"]["clusterIP"], "80", RATE)
    mesh.wait_in((0, "client", space), (0, "server0", space), (1, "server1", space))
    mesh.running("client", space)
    mesh.api.end_pod("server1", space)
    write_endpoints(mesh, space)
    mesh.create(0, "server2", space, "pod", "serve", PORT, WORDS, labels=labels, container=wait)
    mesh.running("server2", space)
    mesh.wait_in((0, "server2", space))
    write_endpoints(mesh, space)
    mesh.ended("server1", space)
    load = mesh.load(0, "client", space)
    record_property(f"a node is drained under {RATE} new connections/s to a service", str(load))
    assert load.failed == 0, load


def write_endpoints(mesh: OptInMesh, space: str) -> None:
    """What the endpoint slice controller writes of the pods that there are: one that ends is not ready, and serves yet."""
    endpoints = []
    for item in mesh.api.list("Pod", space):
        if item["metadata"].get("labels", {}).get("app") == "server" and item["status"].get("podIP"):
            ends = "deletionTimestamp" in item["metadata"]
            name = {"kind": "Pod", "name": item["metadata"]["name"], "namespace": space}
            conditions = {"ready": not ends, "serving": True, "terminating": ends}
            endpoints.append({"addresses": [item["status"]["podIP"]], "conditions": conditions, "targetRef": name})
    labels = {"kubernetes.io/service-name": "api"}
    ports = [{"name": "p80", "port": int(PORT)}]
    mesh.api.apply(make("EndpointSlice", "api-1", space, labels=labels, addressType="IPv4", endpoints=endpoints, ports=ports))
