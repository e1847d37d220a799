"""The simulated kubelet does what tests take from it: pods that run, talk, begin again, end, and leave nothing behind."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.kubelet_mesh import KubeletMesh
from tests.mesh.cluster import wait_until

SPACE = "plain"
PORT = "8080"
COUNT = 40
ONCE = {"restartPolicy": "Never"}


@pytest.fixture(scope="module")
def mesh(definitions: list[Path]) -> Iterator[KubeletMesh]:
    made = KubeletMesh.of_controller(definitions)
    try:
        made.space(SPACE)
        yield made
    finally:
        made.close()


def test_pods_of_two_nodes_talk(mesh: KubeletMesh) -> None:
    mesh.create(1, "server", SPACE, "pod", "serve", PORT, "hello")
    for address in mesh.running("server", SPACE):
        name = f"client{'6' if ':' in address else '4'}"
        mesh.create(0, name, SPACE, "pod", "connect", address, PORT, "hi", spec=ONCE)
        wait_until(lambda name=name: mesh.api.get("Pod", name, SPACE)["status"]["phase"] == "Succeeded", "it has talked")
        assert mesh.runtimes[0].output(SPACE, name, "app").startswith("hello ")
    sandbox = mesh.sandbox(1, "server", SPACE)
    assert sandbox.pause is not None
    cgroup = Path(f"/proc/{sandbox.pause.process.pid}/cgroup").read_text()
    uid = sandbox.attachment.uid
    assert "kubepods" in cgroup
    assert uid in cgroup or uid.replace("-", "_") in cgroup


def test_init_containers_come_first_and_containers_come_again(mesh: KubeletMesh) -> None:
    init = {"name": "init", "image": "init", "command": ["pod", "sleep", "100", "0"]}
    mesh.create(0, "often", SPACE, "pod", "sleep", "50", "1", spec={"initContainers": [init]})
    wait_until(lambda: mesh.sandbox(0, "often", SPACE).restarts.get("app", 0) > 2, "it came again")
    mesh.api.end_pod("often", SPACE)
    mesh.ended("often", SPACE)


def test_a_probe_makes_a_pod_ready(mesh: KubeletMesh) -> None:
    probe = {"httpGet": {"path": "/healthz", "port": int(PORT)}, "periodSeconds": 1}
    mesh.create(0, "web", SPACE, "pod", "serve", PORT, "http", container={"readinessProbe": probe})
    mesh.running("web", SPACE)
    assert mesh.kubelets[0].probes[f"{SPACE}/web"][-1]


def test_a_restarted_kubelet_knows_its_pods(mesh: KubeletMesh) -> None:
    mesh.create(0, "stays", SPACE, "pod", "pause")
    mesh.create(0, "leaves", SPACE, "pod", "pause")
    mesh.running("stays", SPACE)
    mesh.running("leaves", SPACE)
    before = mesh.sandbox(0, "stays", SPACE)
    mesh.restart_kubelet(0, lambda: mesh.api.delete("Pod", "leaves", SPACE))
    wait_until(lambda: mesh.kubelets[0].sandbox(SPACE, "leaves") is None, "what left meanwhile is ended")
    assert mesh.sandbox(0, "stays", SPACE) is before


@pytest.mark.parametrize("number", [0, 1])
def test_pods_come_and_leave_nothing(mesh: KubeletMesh, number: int, record_property: pytest.RecordProperty) -> None:
    node = mesh.runtimes[number]

    def many() -> list[str]:
        return [each.attachment.name for each in list(node.sandboxes.values()) if each.attachment.name.startswith("many")]

    began = time.monotonic()
    names = [f"many{each}" for each in range(COUNT)]
    mesh.create_all([mesh.manifest(number, name, SPACE) for name in names])
    wait_until(lambda: len(many()) == COUNT, "all run", 60)
    record_property(f"{COUNT} pods of a simulated kubelet run ({node.driver})", f"{time.monotonic() - began:.1f} s")
    for name in names:
        mesh.api.end_pod(name, SPACE)
    wait_until(lambda: not any(each["metadata"]["name"] in names for each in mesh.api.list("Pod", SPACE)), "they are gone", 60)
    assert len(list(Path("/run/netns").glob(f"cni-{node.node.netns_name}-*"))) == sum(
        each.netns_name != "" for each in node.sandboxes.values()
    )
    kept = {path.name for path in (node.directory / "addresses" / "pods").iterdir() if path.name.startswith(("10.20.", "fd00"))}
    assert kept == {address for each in node.sandboxes.values() for address in each.addresses}
