"""A pod that is made in a namespace of the mesh is in it before its first packet: the plug-in in the node's chain sees to that.

Pods here send with the first instruction of their program, half of them already in an init container.
"""

from __future__ import annotations

import signal
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.opt_in import ONCE, PLUGIN, PORT, WORDS, OptInMesh
from tests.cluster.packets import opened
from tests.mesh.cluster import wait_until
from tests.mesh.evidence import rows_of

PODS = 200
CALLS = 40
MAX_CALL_MS = {True: 100.0, False: 20.0}  # in the mesh, outside of it


@pytest.fixture(scope="module")
def mesh(definitions: list[Path]) -> Iterator[OptInMesh]:
    with OptInMesh.chained(definitions) as made:
        yield made


@pytest.fixture
def space(mesh: OptInMesh, unique: Callable[[str], str]) -> str:
    """A namespace in the mesh."""
    name = unique("first")
    mesh.space(name, in_mesh=True)
    return name


def serve(mesh: OptInMesh, space: str) -> str:
    mesh.create(1, "server", space, "pod", "serve", PORT, WORDS)
    address = mesh.running("server", space)[0]
    mesh.wait_in((1, "server", space))
    return address


def test_the_first_packet_of_each_of_200_pods(mesh: OptInMesh, space: str, record_property: pytest.RecordProperty) -> None:
    address = serve(mesh, space)
    talk = ("pod", "connect", address, PORT, "hi")
    init = {"name": "init", "image": "init", "command": list(talk)}
    specs = [{**ONCE, "initContainers": [init]} if number % 2 else ONCE for number in range(PODS)]
    with mesh.cluster.lab.capture() as seen:
        mesh.create_all([mesh.manifest(0, f"new{number}", space, *talk, spec=spec) for number, spec in enumerate(specs)])
        said = [mesh.finished(0, f"new{number}", space, timeout_s=60) for number in range(PODS)]
    said += [mesh.runtimes[0].output(space, f"new{number}", "init").strip() for number in range(1, PODS, 2)]
    answered = [each for each in said if each.startswith(f"{WORDS} ")]
    first_ms = statistics.median(int(each.rpartition(" ")[2]) / 1000 for each in answered)
    record_property(
        f"first connections of {PODS} new pods, from their first instruction",
        f"{len(answered)} of {len(said)} in the mesh, answered after {first_ms:.1f} ms (median)",
    )
    assert len(answered) == len(said) == PODS * 3 // 2, [each for each in said if each not in answered]
    assert seen.complete
    assert opened(seen.kept(), int(PORT)) == []
    assert not seen.contains(WORDS.encode())
    rows = wait_until(lambda: arrived(mesh, address, len(said)), "each is in the log of the server's node")
    assert {row["src.identity"] for row in rows} == {f"spiffe://cluster.local/ns/{space}/sa/default"}


def arrived(mesh: OptInMesh, address: str, count: int) -> list[dict[str, str]]:
    rows = rows_of(mesh.cluster.agents[1], dst_addr=f"{address}:{PORT}")
    return rows if len(rows) == count else []


@pytest.mark.parametrize("in_mesh", [True, False], ids=["in the mesh", "outside"])
def test_what_a_call_takes(
    mesh: OptInMesh, unique: Callable[[str], str], in_mesh: bool, record_property: pytest.RecordProperty
) -> None:
    """Of the plug-in alone, as the runtime waits for it; pods come one after the other."""
    space = unique("call")
    mesh.space(space, in_mesh=in_mesh)
    took = mesh.runtimes[0].chain.took[PLUGIN, "ADD"]
    before = len(took)
    for number in range(CALLS):
        mesh.create(0, f"new{number}", space)
        mesh.sandbox(0, f"new{number}", space)
    calls_ms = sorted(each * 1000 for each in took[before:])
    assert len(calls_ms) == CALLS
    median_ms = statistics.median(calls_ms)
    record_property(
        f"the plug-in's call for a new pod {'in the mesh' if in_mesh else 'outside'}",
        f"{median_ms:.1f} ms (median of {CALLS}), the longest {calls_ms[-1]:.1f} ms",
    )
    assert median_ms < MAX_CALL_MS[in_mesh]
    if in_mesh:
        assert {(space, f"new{number}") for number in range(CALLS)} <= mesh.members(0)


def test_a_pod_that_is_deleted_while_it_is_added(mesh: OptInMesh, space: str) -> None:
    """Its namespace, its steering and its certificate are gone as if it had never been; 20 times."""
    node = mesh.runtimes[0]

    def namespaces() -> int:
        return len(list(Path("/run/netns").glob(f"cni-{node.node.netns_name}-*")))

    for number in range(20):
        before = namespaces()
        mesh.create(0, f"brief{number}", space)
        wait_until(lambda before=before: namespaces() > before, "it is about to be added", interval_s=0.001)
        mesh.api.end_pod(f"brief{number}", space, grace_s=0)
        wait_until(lambda before=before: namespaces() == before, "nothing is left of it")
    wait_until(lambda: not any(each.attachment.namespace == space for each in list(node.sandboxes.values())), "none runs")
    wait_until(lambda: not any(namespace == space for namespace, _ in mesh.members(0)), "none is in")


def test_pods_while_the_agent_is_away(mesh: OptInMesh, unique: Callable[[str], str], space: str) -> None:
    """Killed amid 50 ADDs: who is outside starts, who is inside waits for the next agent, and then talks in the mesh."""
    outside = unique("outside")
    mesh.space(outside)
    address = serve(mesh, space)
    agent = mesh.cluster.agents[0]
    talk = ("pod", "connect", address, PORT, "hi")
    mesh.create_all([mesh.manifest(0, f"new{number}", space, *talk, spec=ONCE) for number in range(25)])
    mesh.create_all([mesh.manifest(0, f"new{number}", outside, *talk, spec=ONCE) for number in range(25)])
    with mesh.cluster.lab.capture() as seen:
        agent.kill(signal.SIGKILL)
        outsiders = [mesh.finished(0, f"new{number}", outside) for number in range(25)]
        late = mesh.create(0, "late", space, *talk, spec=ONCE)
        wait_until(lambda: any(pod == f"{space}/late" for pod, _ in mesh.kubelets[0].failures), "a pod of the mesh is held back")
        refusal = next(error for pod, error in mesh.kubelets[0].failures if pod == f"{space}/late")
        agent.start()
        said = [mesh.finished(0, f"new{number}", space) for number in range(25)]
        said.append(mesh.finished(0, late["metadata"]["name"], space))
    assert refusal.code == 11, refusal  # CNI: try again later
    assert "agent" in refusal.message, refusal
    assert [each for each in outsiders if not each.startswith(f"{WORDS} ")] == []
    # What was added just before the agent died is refused its connections until the next one is there: closed, and not plain.
    assert sum(each.startswith(f"{WORDS} ") for each in said) >= 20, said
    addresses = {each.source for each in opened(seen.kept(), int(PORT))}
    members = {ip["ip"] for item in mesh.api.list("Pod", space) for ip in item["status"].get("podIPs", [])}
    assert addresses & members == set()


def test_pods_while_the_controller_is_away(mesh: OptInMesh, space: str) -> None:
    """A pod that the agent was never told of, in a namespace that it knows, waits, and does not begin in plain."""
    address = serve(mesh, space)
    mesh.control.close()
    talk = ("pod", "connect", address, PORT, "hi")
    with mesh.cluster.lab.capture() as seen:
        mesh.create(0, "new", space, *talk, spec=ONCE)
        wait_until(lambda: any(pod == f"{space}/new" for pod, _ in mesh.kubelets[0].failures), "it is held back", 30)
        mesh.control.start()
        said = mesh.finished(0, "new", space, timeout_s=60)
    assert said.startswith(f"{WORDS} "), said
    assert opened(seen.kept(), int(PORT)) == []
