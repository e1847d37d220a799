"""Many pods of a node: all in soon after its agent starts, and a thousand that come and go leave nothing of themselves."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.kinds import make
from tests.cluster.opt_in import PORT, WORDS, OptInMesh
from tests.cluster.resources import held, memory_mb
from tests.mesh.cluster import Agent, wait_until
from tests.mesh.test_enrolment import all_pids

# What leaks, leaks with each of them; `--churn 1000 -o timeout=900` makes it a thousand, in some three minutes.
CHURNED = 100
WAVE = 20
ON_A_NODE = 250
ACCOUNTS = 25
ENROLLED_WITHIN_S = 5.0
RATE = "50"
# Python's heap and LMDB's pages grow by some and settle after some 600 pods; a pod that is kept costs 30 KB in all processes.
MAX_GROWTH_MB, MAX_GROWTH_MB_A_POD = 3.5, 0.003


@pytest.fixture(scope="module")
def mesh(definitions: list[Path]) -> Iterator[OptInMesh]:
    made = OptInMesh.of_controller(definitions)
    try:
        yield made
    finally:
        made.close()


def test_250_pods_are_in_within_five_seconds_of_the_agents_start(
    mesh: OptInMesh, unique: Callable[[str], str], record_property: pytest.RecordProperty
) -> None:
    space = unique("node")
    mesh.space(space, in_mesh=True)
    mesh.api.apply(*(make("ServiceAccount", f"account{number}", space) for number in range(ACCOUNTS)))
    names = [f"pod{number}" for number in range(ON_A_NODE)]
    specs = [{"serviceAccountName": f"account{number % ACCOUNTS}"} for number in range(ON_A_NODE)]
    began = time.monotonic()
    mesh.create_all([mesh.manifest(0, name, space, spec=spec) for name, spec in zip(names, specs, strict=True)])
    wait_until(lambda: len(mesh.runtimes[0].sandboxes) >= ON_A_NODE, "all run", 60)
    record_property(f"{ON_A_NODE} pods of a simulated kubelet run, without the plug-in", f"{time.monotonic() - began:.1f} s")
    wait_until(lambda: all(each["status"].get("podIP") for each in mesh.api.list("Pod", space)), "all have addresses", 30, 0.1)

    mesh.cluster.agents[1].start()
    agent = mesh.cluster.agents[0]
    began = time.monotonic()
    agent.start()
    wait_until(lambda: {(space, name) for name in names} <= mesh.members(0), "all are in the mesh", 60, 0.05)
    took_s = time.monotonic() - began
    record_property(
        f"from the agent's start until {ON_A_NODE} pods are in, with {ACCOUNTS} certificates",
        f"{took_s:.2f} s, of which its processes ran {cpu_s(agent):.2f} s",
    )
    agent.kill()
    began = time.monotonic()
    agent.start()
    wait_until(lambda: {(space, name) for name in names} <= mesh.members(0), "all are in the mesh", 30)
    record_property("the same of an agent that is started again after a kill -9", f"{time.monotonic() - began:.2f} s")
    assert took_s < ENROLLED_WITHIN_S
    for name in names:
        mesh.api.end_pod(name, space)
    wait_until(lambda: not mesh.api.list("Pod", space), "all have ended", 60, 0.1)
    wait_until(lambda: not any(namespace == space for namespace, _ in mesh.members(0)), "all are out")


def test_pods_that_come_and_go_leave_nothing(
    mesh: OptInMesh, unique: Callable[[str], str], record_property: pytest.RecordProperty, pytestconfig: pytest.Config
) -> None:
    mesh.chain()
    for agent in mesh.cluster.agents:
        if agent.process is not None:  # of the test before
            agent.kill()
        agent.start()
    mesh.wait_chained()
    space = unique("churn")
    mesh.space(space, in_mesh=True)
    churned(mesh, space, pytestconfig.getoption("--churn") or CHURNED, record_property)


def churned(mesh: OptInMesh, space: str, count: int, record: Callable[[str, object], None]) -> None:
    """`count` pods in waves, each with an account of its own, beside pods of both nodes that talk all the while."""
    mesh.create(1, "server", space, "pod", "serve", PORT, WORDS)
    mesh.create(0, "neighbour", space, "pod", "serve", PORT, WORDS)
    addresses = [mesh.running(name, space)[0] for name in ("server", "neighbour")]
    for name, address in zip(("far", "near"), addresses, strict=True):
        mesh.create(0, name, space, "pod", "load", address, PORT, RATE)
        mesh.create(0, f"{name}-standing", space, "pod", "hold", address, PORT)
    mesh.wait_in(
        (1, "server", space), *((0, name, space) for name in ("neighbour", "far", "near", "far-standing", "near-standing"))
    )
    agent = mesh.cluster.agents[0]
    wave(mesh, space, "warm", WAVE)
    before, memory_before = held(agent), memory_mb(agent)
    began = time.monotonic()
    for number in range(0, count, WAVE):
        wave(mesh, space, f"wave{number}", min(WAVE, count - number))
    took_s = time.monotonic() - began
    wait_until(lambda: grown(before, held(agent)) == {}, f"nothing is left of {count} pods", 20, 0.2)
    growth_mb = memory_mb(agent) - memory_before
    said = [mesh.load(0, name, space) for name in ("far", "near")]
    record(
        f"{count} pods started and ended on a node in {took_s:.0f} s",
        f"nothing left of them; memory {growth_mb:+.1f} MB; connections of others meanwhile: {said[0]}, {said[1]}",
    )
    for name in ("far-standing", "near-standing"):
        assert mesh.stopped(0, name, space).startswith("well after")
    assert [each.failed for each in said] == [0, 0]
    assert growth_mb < MAX_GROWTH_MB + count * MAX_GROWTH_MB_A_POD


def wave(mesh: OptInMesh, space: str, prefix: str, count: int) -> None:
    """Pods that come, are in, and go; a third by their own end, the others as they are deleted."""
    names = [f"{prefix}-{number}" for number in range(count)]
    mesh.api.apply(*(make("ServiceAccount", name, space) for name in names[:4]))
    manifests = []
    for number, name in enumerate(names):
        spec = {"serviceAccountName": names[number % 4], "restartPolicy": "Never"}
        command = ("pod", "sleep", "500", "0") if number % 3 == 0 else ("pod", "pause")
        manifests.append(mesh.manifest(0, name, space, *command, spec=spec))
    mesh.create_all(manifests)
    lasting = {(space, name) for number, name in enumerate(names) if number % 3}
    wait_until(lambda: lasting <= mesh.members(0), f"the pods {prefix} are in", 60, 0.1)
    for name in names:
        mesh.api.end_pod(name, space)
    gone = re.compile(rf"{prefix}-\d+")
    wait_until(
        lambda: not any(gone.fullmatch(each["metadata"]["name"]) for each in mesh.api.list("Pod", space)), "they are gone", 60
    )


def cpu_s(agent: Agent) -> float:
    """What an agent and its processes have used of CPUs since it began, those that have ended as well."""
    ticks = 0
    for pid in all_pids(agent):
        ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def grown(before: dict[str, int], after: dict[str, int]) -> dict[str, str]:
    """What there is more of."""
    return {what: f"{before.get(what, 0)} → {count}" for what, count in after.items() if count > before.get(what, 0)}
