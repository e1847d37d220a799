"""A namespace is opted in by one label: pods that run are in mutual TLS within two seconds, and out again as the label goes.

What must not be seen is looked for in a capture of all that goes between the nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nodeproxy.lab.capture import Capture
from tests.cluster.kubelet import pod_uid
from tests.cluster.kubelet_mesh import LABEL
from tests.cluster.opt_in import ONCE, PORT, WORDS, OptInMesh
from tests.cluster.packets import opened
from tests.mesh.cluster import wait_until
from tests.mesh.evidence import rows_of

# New connections of a client, each second: enough that a gap of 20 ms would be seen.
RATE = "100"
FLAPS = 100
WITHIN_S = 2.0


@pytest.fixture(scope="module")
def mesh(definitions: list[Path]) -> Iterator[OptInMesh]:
    made = OptInMesh.of_controller(definitions)
    try:
        made.start_agents()
        yield made
    finally:
        made.close()


@pytest.fixture
def space(mesh: OptInMesh, unique: Callable[[str], str]) -> str:
    """A namespace outside the mesh."""
    name = unique("opt-in")
    mesh.space(name)
    return name


def serve(mesh: OptInMesh, space: str, name: str = "server", number: int = 1) -> str:
    """A server that says WORDS; its address."""
    mesh.create(number, name, space, "pod", "serve", PORT, WORDS)
    return mesh.running(name, space)[0]


def in_plain(seen: Capture) -> int:
    return len(opened(seen.kept(), int(PORT)))


def test_from_plain_to_mutual_tls_and_back(mesh: OptInMesh, space: str, record_property: pytest.RecordProperty) -> None:
    address = serve(mesh, space)
    mesh.create(0, "client", space, "pod", "load", address, PORT, RATE)
    mesh.create(0, "before", space, "pod", "hold", address, PORT)
    pods = ((0, "client", space), (1, "server", space))
    for name in ("client", "before"):
        mesh.running(name, space)
    with mesh.cluster.lab.capture() as seen:
        wait_until(lambda: in_plain(seen) > 20, "they talk in plain")
    assert seen.contains(WORDS.encode())

    labelled = mesh.label(space)
    took_s = mesh.wait_in(*pods, (0, "before", space)) - labelled
    record_property("from the label until pods of two nodes are in mutual TLS", f"{took_s:.2f} s")
    assert took_s < WITHIN_S
    logged = len(rows_of(mesh.cluster.agents[1]))
    with mesh.cluster.lab.capture() as seen:
        wait_until(lambda: len(rows_of(mesh.cluster.agents[1])) > logged + 200, "they talk in mutual TLS")
    assert seen.complete
    assert opened(seen.kept(), int(PORT)) == []
    assert not seen.contains(WORDS.encode())
    for row in rows_of(mesh.cluster.agents[1])[logged:]:
        assert row["src.identity"] == row["dst.identity"] == f"spiffe://cluster.local/ns/{space}/sa/default", row

    during = mesh.execute(0, "before", space, "pod", "hold", address, PORT)
    tunnelled = lambda: any(each["security"] == "mutual_tls" and each["id"] for each in standing(mesh, space, "before"))  # noqa: E731
    wait_until(tunnelled, "a connection stands in the mesh")
    unlabelled = mesh.label(space, None)
    took_s = mesh.wait_out(*pods) - unlabelled
    record_property("from the label's end until they are out", f"{took_s:.2f} s")
    assert took_s < WITHIN_S
    with mesh.cluster.lab.capture() as seen:
        wait_until(lambda: in_plain(seen) > 200, "they talk in plain again")
    assert tunnelled(), "what stood in the mesh drains, and is not cut"
    assert mesh.stopped(0, "before", space).startswith("well after"), "what stood before the label"
    assert during.output.read_text().startswith("well after"), "what was made in the mesh"
    load = mesh.load(0, "client", space)
    record_property(f"new connections of {RATE}/s as the label comes and goes", str(load))
    assert load.failed == 0, load


def standing(mesh: OptInMesh, space: str, name: str) -> list[dict[str, object]]:
    """The connections of a pod that its node's agent carries."""
    found = []
    for each in mesh.cluster.agents[0].get("/connections")["connections"]:
        workload = each["source"].get("workload", {})
        if (workload.get("namespace"), workload.get("name")) == (space, name):
            found.append(each)
    return found


def test_standing_connections_are_listed(mesh: OptInMesh, space: str) -> None:
    """One that stood before the label goes on outside the mesh, and `status` says so."""
    address = serve(mesh, space)
    mesh.create(0, "before", space, "pod", "hold", address, PORT)
    mesh.running("before", space)
    mesh.label(space)
    mesh.wait_in((0, "before", space), (1, "server", space))

    def outside(number: int, name: str) -> int:
        pods = mesh.cluster.agents[number].get("/status")["pods"]
        return int(next(each for each in pods if each["uid"].endswith(f"/{space}/{name}"))["standing_connections"])

    wait_until(lambda: outside(0, "before") == outside(1, "server") == 1, "it is counted on both sides")
    assert mesh.stopped(0, "before", space).startswith("well after")
    wait_until(lambda: outside(1, "server") == 0, "it has ended")


def test_a_pods_own_label_wins(mesh: OptInMesh, space: str) -> None:
    mesh.create(0, "in", space, labels={LABEL: "ambient"})
    mesh.create(0, "out", space, labels={LABEL: "none"})
    mesh.create(0, "host", space, labels={LABEL: "ambient"}, spec={"hostNetwork": True})
    mesh.create(0, "as-all", space)
    mesh.wait_in((0, "in", space))
    for name in ("out", "host", "as-all"):
        mesh.running(name, space)
    mesh.label(space)
    mesh.wait_in((0, "as-all", space))
    assert {name for namespace, name in mesh.members(0) if namespace == space} == {"in", "as-all"}
    mesh.api.patch("Pod", "out", space, metadata={"labels": {LABEL: None}})
    mesh.wait_in((0, "out", space))
    mesh.label(space, None)
    mesh.wait_out((0, "out", space), (0, "as-all", space))
    assert {name for namespace, name in mesh.members(0) if namespace == space} == {"in"}


def test_a_label_that_flaps_is_followed(mesh: OptInMesh, space: str) -> None:
    """100 times and no pause; what holds in the end is what it says in the end."""
    address = serve(mesh, space)
    mesh.create(0, "client", space, "pod", "load", address, PORT, RATE)
    mesh.running("client", space)
    pods = ((0, "client", space), (1, "server", space))
    for number in range(FLAPS):
        mesh.label(space, "ambient" if number % 2 == 0 else None)
    mesh.wait_out(*pods)
    mesh.label(space)
    mesh.wait_in(*pods)

    def only_in_mutual_tls() -> bool:  # nodes may be at an earlier change yet, at which the pods were in as well
        logged = len(rows_of(mesh.cluster.agents[1]))
        with mesh.cluster.lab.capture() as seen:
            wait_until(lambda: len(rows_of(mesh.cluster.agents[1])) > logged + 50, "they talk in mutual TLS")
        return in_plain(seen) == 0

    wait_until(only_in_mutual_tls, "what was said last holds")


def test_two_namespaces_at_once(mesh: OptInMesh, unique: Callable[[str], str]) -> None:
    """A pod's connections to one that is labelled together with it; and neither namespace's pods get the other's identity."""
    spaces = [unique("pair"), unique("pair")]
    for space in spaces:
        mesh.space(space)
        for number in (0, 1):
            mesh.create(number, f"web{number}", space, "pod", "serve", PORT, f"{space}-{number}")
    addresses = {(space, number): mesh.running(f"web{number}", space)[0] for space in spaces for number in (0, 1)}
    for space in spaces:
        mesh.label(space)
    mesh.wait_in(*((number, f"web{number}", space) for space in spaces for number in (0, 1)))
    for space, other in (spaces, reversed(spaces)):
        name = unique("caller")
        mesh.create(0, name, space, "pod", "connect", addresses[other, 1], PORT, "hi", spec=ONCE)
        assert mesh.finished(0, name, space).startswith(f"{other}-1 ")


def test_a_pod_that_is_replaced_under_its_name(mesh: OptInMesh, space: str) -> None:
    """As a StatefulSet does it: the same name, another uid and namespace; the one before leaves nothing to the new one."""
    mesh.label(space)
    address = serve(mesh, space, "client", 0)
    assert address
    mesh.wait_in((0, "client", space))
    before = next(each for each in mesh.cluster.agents[0].get("/status")["pods"] if each["uid"].endswith(f"/{space}/client"))
    mesh.stopped(0, "client", space)
    serve(mesh, space, "client", 0)
    mesh.wait_in((0, "client", space))
    after = next(each for each in mesh.cluster.agents[0].get("/status")["pods"] if each["uid"].endswith(f"/{space}/client"))
    assert before["addresses"] != after["addresses"]
    assert before["netns"] != after["netns"]


def test_a_static_pod(mesh: OptInMesh, space: str) -> None:
    """The kubelet knows it by the hash of its manifest; the API has a mirror with a uid of its own."""
    mesh.label(space)
    annotations = {f"kubernetes.io/config.{kind}": "0123456789abcdef0123456789abcdef" for kind in ("hash", "mirror")}
    made = mesh.api.create(
        mesh.manifest(0, "static-node0", space, annotations={**annotations, "kubernetes.io/config.source": "file"})
    )
    assert pod_uid(made) != made["metadata"]["uid"]
    mesh.running("static-node0", space)
    mesh.wait_in((0, "static-node0", space))


def test_a_restarted_kubelet_changes_nothing(mesh: OptInMesh, space: str) -> None:
    mesh.label(space)
    address = serve(mesh, space)
    mesh.create(0, "client", space, "pod", "load", address, PORT, RATE)
    mesh.wait_in((0, "client", space), (1, "server", space))
    mesh.running("client", space)
    with mesh.cluster.lab.capture() as seen:
        for number in (0, 1):
            mesh.restart_kubelet(number)
        load = mesh.load(0, "client", space)
    assert load.failed == 0, load
    assert opened(seen.kept(), int(PORT)) == []


def test_a_job_that_ends_leaves_the_mesh(mesh: OptInMesh, space: str) -> None:
    mesh.label(space)
    mesh.create(0, "job", space, "pod", "sleep", "1500", "0", spec=ONCE)
    mesh.wait_in((0, "job", space))
    mesh.finished(0, "job", space)
    mesh.wait_out((0, "job", space))
    assert not any(space in each["uid"] for each in mesh.cluster.agents[0].get("/status")["pods"])
