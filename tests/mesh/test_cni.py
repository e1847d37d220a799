"""A node's agent and the CNI plug-in: new pods are in the mesh before their first packet, and wait while the agent is away."""

from __future__ import annotations

import itertools
import json
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from nodeproxy.cni.chain import PROGRAM
from nodeproxy.model.node_pod import Membership
from tests.cni_plugin import Done
from tests.mesh.cluster import wait_until
from tests.mesh.cni import CHAIN, CniCluster
from tests.mesh.roll import ended, roll
from tests.pace import PACE


@pytest.fixture(scope="module")
def mesh() -> Iterator[CniCluster]:
    with CniCluster.serving() as cluster:
        cluster.wait_installed()
        yield cluster


def test_the_agent_keeps_list_and_plug_in_in_their_places(mesh: CniCluster) -> None:
    wait_until(lambda: mesh.agents[0].get("/status")["cni"]["file"], "the agent has seen to it")
    assert mesh.agents[0].get("/status")["cni"] == {"kept": True, "file": str(mesh.file), "error": ""}
    assert mesh.agents[1].get("/status")["cni"] is None
    assert (mesh.directory / "node" / "cni" / "namespaces").read_text() == "shop\n"
    assert mesh.call("STATUS", None) == (0, None, b"")
    mesh.file.write_bytes(CHAIN)
    mesh.wait_installed()
    done = mesh.agents[0].nodeproxy("cni", "uninstall", "--conf-dir", str(mesh.conf), "--bin-dir", str(mesh.bin))
    assert done.returncode == 1
    assert "keeps the plug-in in the chain" in done.stderr
    shown = mesh.agents[0].nodeproxy("cni", "status", "--conf-dir", str(mesh.conf), "--bin-dir", str(mesh.bin))
    assert (shown.returncode, shown.stdout.splitlines()[0]) == (0, f"chain    {mesh.file}: bridge → nodeproxy-cni")


def test_a_new_pods_first_connection_is_in_the_mesh(mesh: CniCluster, record_property: Callable[[str, object], None]) -> None:
    took_ms = []
    for number in range(12):
        pod = mesh.new(f"new-{number}")
        mesh.wait_told(pod)
        began = time.monotonic()
        done = mesh.call("ADD", pod)
        took_ms.append((time.monotonic() - began) * 1000)
        assert done.status == 0, done
        assert mesh.path_of(pod) == "mesh"
        assert mesh.call("CHECK", pod) == (0, None, b"")
    median_ms = statistics.median(took_ms)
    record_property("CNI ADD of a pod in the mesh, with its certificate", f"{median_ms:.0f} ms at the median")
    assert median_ms < 100 * PACE
    pods = [each for each in mesh.running if each.name.startswith("new-")]
    assert mesh.call("DEL", pods[0]) == (0, None, b"")
    assert mesh.rows()[pods[0].key]["state"] != "in"
    check = mesh.call("CHECK", pods[0])
    assert (check.status, check.said["code"]) == (1, 100)
    valid = [{"containerID": f"c-{pod.name}", "ifname": "eth0"} for pod in pods[2:]]
    assert mesh.call("GC", None, **{"cni.dev/valid-attachments": valid}) == (0, None, b"")
    assert [mesh.rows()[pod.key]["state"] == "in" for pod in pods[1:4]] == [False, True, True]
    metrics = mesh.agents[0].metrics()
    assert 'nodeproxy_cni_calls_total{command="ADD",outcome="in_mesh"} 12.0' in metrics
    assert "nodeproxy_cni_add_seconds_count 12.0" in metrics
    assert "nodeproxy_cni_installed 1.0" in metrics


def test_a_pod_outside_does_not_wait(mesh: CniCluster, record_property: Callable[[str, object], None]) -> None:
    pod = mesh.new("outside", Membership.UNLABELLED)
    mesh.wait_told(pod)
    took_ms = []
    for _ in range(15):
        began = time.monotonic()
        assert mesh.call("ADD", pod).status == 0
        took_ms.append((time.monotonic() - began) * 1000)
    record_property("CNI ADD of a pod outside", f"{statistics.median(took_ms):.1f} ms at the median")
    assert statistics.median(took_ms) < 20
    assert mesh.rows()[pod.key]["state"] == "unlabelled"


def test_many_pods_at_once(mesh: CniCluster, record_property: Callable[[str, object], None]) -> None:
    pods = [mesh.new(f"many-{number}", families=(4,)) for number in range(30)]
    mesh.wait_told(*pods)
    began = time.monotonic()
    with ThreadPoolExecutor(len(pods)) as pool:
        done = list(pool.map(lambda pod: mesh.call("ADD", pod), pods))
    record_property("CNI ADD of 30 pods at once", f"{(time.monotonic() - began) * 1000:.0f} ms in all")
    assert {each.status for each in done} == {0}, done
    assert [mesh.path_of(pod) for pod in pods[:3]] == ["mesh"] * 3
    for pod in pods:
        mesh.call("DEL", pod)


def test_no_pod_is_held_back_while_one_agent_takes_over_from_another(mesh: CniCluster) -> None:
    """One after the other is put in, without a pause, from before the next agent starts until after it serves."""
    pods = [mesh.new(f"rolled-{number}", families=(4,)) for number in range(20)]
    mesh.wait_told(*pods)
    stop, refused, added = threading.Event(), [], []

    def work() -> None:
        for pod in itertools.cycle(pods):
            if stop.is_set():
                return
            done = mesh.call("ADD", pod)
            (refused if done.status else added).append(done.said)
            mesh.call("DEL", pod)

    working = threading.Thread(target=work)
    working.start()
    try:
        wait_until(lambda: len(added) > 3, "pods come")
        new, old = roll(mesh.agents[0])
        before = len(added)
        wait_until(lambda: len(added) > before + 5 or refused, "pods come to the new agent", 20)
    finally:
        stop.set()
        working.join()
    assert refused == []
    assert ended(old) == 0
    assert (new.run_dir / "cni.sock").exists()  # the one that ended left it
    assert mesh.call("ADD", pods[0]).status == 0
    assert mesh.path_of(pods[0]) == "mesh"


def test_an_agent_that_is_killed_in_the_middle_of_a_call(mesh: CniCluster) -> None:
    held, outside = mesh.new("held"), mesh.new("passed", Membership.UNLABELLED, namespace="other")
    mesh.wait_told(held, outside)
    agent = mesh.agents[0]
    assert agent.process is not None
    agent.process.send_signal(signal.SIGSTOP)  # it takes no call, nor ends one
    calls = [mesh.begin("ADD", pod) for pod in (held, outside)]
    agent.kill(signal.SIGKILL)
    no, yes = (Done(each.wait(), json.loads(said), b"") for each in calls if (said := each.communicate(timeout=5)[0]))
    assert (no.status, no.said["code"]) == (1, 11)
    assert "is away, and pods of namespace shop belong into the mesh" in no.said["msg"]
    assert (yes.status, yes.said["ips"][0]["address"].partition("/")[0]) == (0, outside.pod.ip)
    assert mesh.call("ADD", held).said["code"] == 11  # nor while it is away
    assert mesh.call("DEL", held) == (0, None, b"")
    assert mesh.call("STATUS", None) == (0, None, b"")
    assert PROGRAM.encode() in mesh.file.read_bytes()
    mesh.file.write_bytes(CHAIN)  # another CNI, while nobody looks
    agent.start()
    mesh.wait_installed()
    mesh.wait_told(held)
    assert mesh.call("ADD", held).status == 0
    assert mesh.path_of(held) == "mesh"


def test_the_agents_end_leaves_the_plug_in_and_a_command_removes_it(mesh: CniCluster) -> None:
    agent = mesh.agents[0]
    agent.kill(signal.SIGTERM)
    assert not (agent.run_dir / "cni.sock").exists()
    assert mesh.call("ADD", mesh.new("late")).said["code"] == 11
    done = agent.nodeproxy("cni", "uninstall", "--conf-dir", str(mesh.conf), "--bin-dir", str(mesh.bin))
    assert done.returncode == 0, done.stderr
    assert mesh.file.read_bytes() == CHAIN
    assert [path.name for path in (*mesh.conf.iterdir(), *mesh.bin.iterdir())] == [mesh.file.name]
