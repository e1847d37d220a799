"""Enrolment by istio-cni, played by the test: who is told of is in, and who is taken back is out."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.istio_cni import HELLO, SNAPSHOT_SENT, add, keep
from tests.mesh.cluster import exactly, wait_until
from tests.mesh.roll import TAKE_S, Load, ended, greeters, roll, successor, took_over
from tests.mesh.zds import ZdsCluster, path_of

# A successor that executes this dies when it has everything and serves nothing yet.
DIES_BEFORE_DONE = (
    "import os",
    "from nodeproxy.agent.node import Node",
    "Node.take_over = lambda self, said: os.kill(os.getpid(), 9)",
)


@pytest.fixture(scope="module")
def mesh() -> Iterator[ZdsCluster]:
    mesh = ZdsCluster()
    try:
        mesh.start()
        yield mesh
    finally:
        mesh.close()


def test_who_is_added_is_in_and_who_is_deleted_drains(mesh: ZdsCluster) -> None:
    pod, uid = mesh.come("first")
    assert path_of(mesh, pod) == "plain"
    assert mesh.cni.connections[-1].hello == HELLO
    assert mesh.add(pod, uid) == ""
    assert path_of(mesh, pod) == "mesh"
    assert mesh.add(pod, uid) == ""  # the same once more
    server = mesh.pods["server"]
    with server.listen(8000) as listener, pod.connect(server.ip, 8000) as ours:
        theirs, _ = listener.accept()
        with theirs:
            assert mesh.cni.delete(uid) == [""]
            assert pod.uid not in mesh.rows()
            ours.sendall(b"goes on")
            assert exactly(theirs, 7) == b"goes on"
    assert path_of(mesh, pod) == "plain"
    assert mesh.cni.delete(uid) == [""]  # nobody knows it any more
    assert mesh.cni.connections[-1].is_alive()


def test_a_pod_of_which_the_control_plane_has_not_told_is_in_from_its_first_packet(mesh: ZdsCluster) -> None:
    pod, uid = mesh.come("early", told=False)
    began = time.monotonic()
    assert mesh.add(pod, uid) == ""
    assert time.monotonic() - began < 2
    assert mesh.rows()[pod.uid]["identity"] == pod.identity
    assert path_of(mesh, pod) == "mesh"
    mesh.server.put(mesh.message(pod))
    assert mesh.cni.delete(uid) == [""]


def test_another_namespace_of_a_pod_takes_the_place_of_the_first(mesh: ZdsCluster) -> None:
    pod, uid = mesh.come("sandboxed")
    assert mesh.add(pod, uid) == ""
    before = mesh.rows()[pod.uid]["addresses"]
    later, _ = mesh.come("sandboxed-later", told=False)
    pod.host = later.host
    mesh.server.put(mesh.message(pod))  # with its new addresses
    assert mesh.add(pod, uid) == ""
    assert mesh.rows()[pod.uid]["addresses"] == list(later.host.addresses) != before
    assert path_of(mesh, pod) == "mesh"
    assert mesh.cni.delete(uid) == [""]


def test_what_is_wrong_with_a_request_is_answered_and_nothing_is_left_open(mesh: ZdsCluster) -> None:
    pod, uid = mesh.come("wrong")
    connection = mesh.cni.connections[-1]
    process = mesh.agents[0].process
    assert process is not None
    descriptors = Path(f"/proc/{process.pid}/fd")
    before = len(list(descriptors.iterdir()))
    request = add(uid, "wrong", "shop", "web")
    node = os.open(f"/proc/{process.pid}/ns/net", os.O_RDONLY)
    own = os.open(pod.host.netns_path, os.O_RDONLY)
    null = os.open("/dev/null", os.O_RDONLY)
    mount = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    try:
        assert "0 descriptors came with Add" in connection.ask(request)
        assert "2 descriptors came with Add" in connection.ask(request, own, own)
        assert "too many descriptors" in connection.ask(request, *[own] * 200)
        assert "is not a network namespace" in connection.ask(request, null)
        assert "is not a network namespace" in connection.ask(request, mount)
        assert "the node's own network" in connection.ask(request, node)
        assert "1 descriptors came with Keep" in connection.ask(keep(uid), own)
        assert "no WorkloadRequest" in connection.ask(request[:-3], own)
        assert "none of add" in connection.ask(b"\x32\x00")
        assert "no pod's" in connection.ask(add("../x", "wrong", "shop", "web"), own)
        assert "workload_info.name" in connection.ask(add(uid, "a/b", "shop", "web"), own)
        assert "workload_info.namespace" in connection.ask(add(uid, "a", "", "web"), own)
        assert "larger" in connection.ask(request + b"\x32\x00" * 10_000, own)
    finally:
        for fd in (node, own, null, mount):
            os.close(fd)
    assert pod.uid not in mesh.rows()
    wait_until(lambda: len(list(descriptors.iterdir())) <= before, "nothing is left open")
    assert connection.is_alive()


def test_two_pods_can_not_have_one_namespace(mesh: ZdsCluster) -> None:
    pod, uid = mesh.come("owner")
    other, other_uid = mesh.come("thief")
    assert mesh.add(pod, uid) == ""
    assert "enrolled already" in mesh.add(other, other_uid, pod.host)
    assert not mesh.agents[0].get("/status")["ready"]
    assert mesh.cni.delete(other_uid) == [""]
    assert path_of(mesh, pod) == "mesh"
    assert mesh.cni.delete(uid) == [""]
    mesh.wait_ready()


def test_the_snapshot_says_who_stays(mesh: ZdsCluster) -> None:
    stays, stays_uid = mesh.come("stays")
    goes, goes_uid = mesh.come("goes")
    kept, kept_uid = mesh.come("kept")
    for pod, uid in ((stays, stays_uid), (goes, goes_uid), (kept, kept_uid)):
        assert mesh.add(pod, uid) == ""
    accepted = mesh.cni.accepted
    mesh.cni.stop()
    del mesh.cni.pods[goes_uid]
    mesh.cni.pods[kept_uid] = mesh.cni.pods[kept_uid][0], ""
    assert path_of(mesh, goes) == "mesh"  # as long as nobody says otherwise
    mesh.cni.start()
    wait_until(lambda: mesh.cni.accepted > accepted and mesh.cni.connections, "it is back")
    wait_until(lambda: goes.uid not in mesh.rows(), "who is not named leaves")
    assert path_of(mesh, stays) == "mesh"
    assert path_of(mesh, kept) == "mesh"
    assert path_of(mesh, goes) == "plain"
    assert mesh.cni.delete(stays_uid) == mesh.cni.delete(kept_uid) == [""]


def test_a_restarted_agent_is_closed_until_it_is_told_and_then_as_before(mesh: ZdsCluster) -> None:
    pod, uid = mesh.come("restarted")
    kept, kept_uid = mesh.come("restarted-kept")
    gone, gone_uid = mesh.come("restarted-gone")
    for each, its_uid in ((pod, uid), (kept, kept_uid), (gone, gone_uid)):
        assert mesh.add(each, its_uid) == ""
    server = mesh.pods["server"]
    agent = mesh.agents[0]
    agent.kill(signal.SIGKILL)
    mesh.cni.drop()
    mesh.cni.hold.clear()
    del mesh.cni.pods[gone_uid]
    mesh.cni.pods[kept_uid] = mesh.cni.pods[kept_uid][0], ""
    accepted = mesh.cni.accepted
    agent.start(wait=False)
    wait_until(lambda: mesh.cni.accepted > accepted, "it asks", 60)
    wait_until(lambda: agent.get("/status")["state"]["received"], "it has its state")
    assert any("istio-cni" in each for each in agent.get("/status")["pending"])
    for each in (pod, kept, gone):
        with pytest.raises(ConnectionRefusedError):
            each.connect(server.ip, 9)  # closed, not open
    mesh.cni.hold.set()
    agent.wait_ready(60)
    assert path_of(mesh, pod) == "mesh"
    assert path_of(mesh, gone) == "plain"
    with pytest.raises(ConnectionRefusedError):
        kept.connect(server.ip, 9)  # istio-cni does not know its namespace, and it stays closed
    assert mesh.add(kept, kept_uid) == ""
    assert path_of(mesh, kept) == "mesh"
    for its_uid in (uid, kept_uid):
        assert mesh.cni.delete(its_uid) == [""]
    assert not mesh.rows()


def test_of_two_pods_of_one_name_the_later_is_in_and_the_other_when_that_has_gone(mesh: ZdsCluster) -> None:
    pod, uid = mesh.come("twin")
    later, later_uid = mesh.come("twin-later", told=False)
    assert mesh.add(pod, uid) == ""
    assert mesh.add(pod, later_uid, later.host) == ""
    addresses = [list(each.host.addresses) for each in (pod, later)]
    assert mesh.rows()[pod.uid]["addresses"] == addresses[1]
    mesh.cni.drop()
    wait_until(lambda: mesh.cni.connections, "istio-cni has told of both again")
    mesh.wait_ready()
    assert mesh.rows()[pod.uid]["addresses"] == addresses[1]
    assert mesh.cni.delete(later_uid) == [""]
    assert mesh.rows()[pod.uid]["addresses"] == addresses[0]
    assert path_of(mesh, pod) == "mesh"
    assert mesh.cni.delete(uid) == [""]
    assert pod.uid not in mesh.rows()


def test_a_pod_that_can_not_come_in_for_one_that_goes_is_no_error_of_what_was_asked(mesh: ZdsCluster) -> None:
    owner, owner_uid = mesh.come("twins-owner")
    pod, uid = mesh.come("twins")
    later, later_uid = mesh.come("twins-later", told=False)
    assert mesh.add(owner, owner_uid) == ""
    assert "enrolled already" in mesh.add(pod, uid, owner.host)
    assert mesh.add(pod, later_uid, later.host) == ""
    assert mesh.cni.delete(later_uid) == [""]
    assert mesh.rows()[pod.uid]["addresses"] == []
    assert any(pod.uid in why for why in mesh.agents[0].get("/status")["pending"])
    assert mesh.cni.delete(uid) == mesh.cni.delete(owner_uid) == [""]
    mesh.wait_ready()


def test_what_istio_cni_says_is_counted(mesh: ZdsCluster) -> None:
    pod, uid = mesh.come("counted")
    before = mesh.metrics()
    assert mesh.add(pod, uid) == ""
    assert mesh.cni.connections[-1].ask(b"\x32\x00") != ""
    after = mesh.metrics()
    assert after["nodeproxy_zds_connected"] == 1
    assert after["nodeproxy_zds_pods"] == before["nodeproxy_zds_pods"] + 1
    for labels in ('outcome="done",request="add"', 'outcome="malformed",request="unknown"'):
        name = f"nodeproxy_zds_requests_total{{{labels}}}"
        assert after[name] == before.get(name, 0) + 1
    assert mesh.cni.delete(uid) == [""]


def test_another_agent_takes_over_and_no_pod_notices(mesh: ZdsCluster) -> None:
    pod, uid = mesh.come("rolled")
    early, early_uid = mesh.come("rolled-early", told=False)
    gone, gone_uid = mesh.come("rolled-gone")
    for each, its_uid in ((pod, uid), (early, early_uid), (gone, gone_uid)):
        assert mesh.add(each, its_uid) == ""
    server = mesh.pods["server"]
    with greeters([server]), server.listen(8000) as listener, pod.connect(server.ip, 8000) as ours:
        theirs, _ = listener.accept()
        with theirs:
            loads = [Load(each, [server.ip], 50.0) for each in (pod, early)]
            try:
                new, old = roll(mesh.agents[0])
            finally:
                told = [load.end() for load in loads]
            assert [failure for each in told for failure in each["failures"]] == []
            assert all(each["tried"] > 20 for each in told)
            assert {pod.uid, early.uid, gone.uid} <= mesh.rows().keys()
            ours.sendall(b"goes on")
            assert exactly(theirs, 7) == b"goes on"
            wait_until(lambda: len(mesh.alive()) == 1, "only the one that serves is connected")
            assert mesh.cni.delete(gone_uid) == [""]
            assert path_of(mesh, gone) == "plain"
            later, later_uid = mesh.come("rolled-later")
            assert mesh.add(later, later_uid) == ""
            for each in (pod, early, later):
                assert path_of(mesh, each) == "mesh"
            assert old.process is not None
            assert old.process.poll() is None  # it has a connection still
    assert ended(old) == 0
    assert "Traceback" not in new.log() + old.log()
    assert mesh.cni.errors == []
    for its_uid in (uid, early_uid, later_uid):
        assert mesh.cni.delete(its_uid) == [""]


def test_a_pod_that_comes_while_another_agent_prepares_is_in_when_that_serves(mesh: ZdsCluster, tmp_path: Path) -> None:
    held, go_on = tmp_path / "held", tmp_path / "go on"
    held_up = (
        "import asyncio, pathlib",
        "from nodeproxy.agent.node import Node",
        "take_over = Node.take_over",
        "async def held_up(self, said):",
        f"    pathlib.Path({str(held)!r}).touch()",
        f"    while not pathlib.Path({str(go_on)!r}).exists():",
        "        await asyncio.sleep(0.01)",
        "    await take_over(self, said)",
        "Node.take_over = held_up",
    )
    pod, uid = mesh.come("between")
    gone, gone_uid = mesh.come("between-gone")
    assert mesh.add(gone, gone_uid) == ""
    old, new = mesh.agents[0], successor(mesh.agents[0], *held_up)
    wait_until(lambda: held.exists() and len(mesh.alive()) == 1, "one has let go, and the other has not begun", TAKE_S)
    assert mesh.cni.delete(gone_uid) == [""]
    answers: list[str] = []
    asking = threading.Thread(target=lambda: answers.append(mesh.add(pod, uid)))
    asking.start()
    go_on.touch()
    wait_until(lambda: took_over(new), "it has taken over", TAKE_S)
    asking.join()
    assert answers == [""]
    mesh.agents[0] = new
    new.wait_ready()
    assert path_of(mesh, pod) == "mesh"
    assert path_of(mesh, gone) == "plain"
    assert ended(old) == 0
    assert mesh.cni.delete(uid) == [""]


def test_an_agent_whose_successor_dies_goes_on_by_a_new_snapshot(mesh: ZdsCluster) -> None:
    pod, uid = mesh.come("kept-on")
    assert mesh.add(pod, uid) == ""
    accepted = mesh.cni.accepted
    assert ended(successor(mesh.agents[0], *DIES_BEFORE_DONE)) == -signal.SIGKILL
    wait_until(lambda: mesh.cni.accepted >= accepted + 2 and len(mesh.alive()) == 1, "it asks istio-cni once more")
    mesh.wait_ready()
    assert path_of(mesh, pod) == "mesh"
    later, later_uid = mesh.come("kept-on-later")
    assert mesh.add(later, later_uid) == ""
    for each, its_uid in ((pod, uid), (later, later_uid)):
        assert path_of(mesh, each) == "mesh"
        assert mesh.cni.delete(its_uid) == [""]
        assert path_of(mesh, each) == "plain"


def test_a_flood_of_requests_is_answered_one_by_one(mesh: ZdsCluster) -> None:
    pod, uid = mesh.come("flooded")
    assert mesh.add(pod, uid) == ""
    connection = mesh.cni.connections[-1]
    with connection.lock:
        for _ in range(5):
            for _ in range(100):
                connection.sock.send(keep("unknown"))
            for _ in range(100):
                assert connection.sock.recv(1024)
    assert connection.ask(SNAPSHOT_SENT) == ""
    assert connection.is_alive()
    assert path_of(mesh, pod) == "mesh"
    assert mesh.cni.delete(uid) == [""]
