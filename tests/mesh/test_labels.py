"""Pods are put into the mesh and out of it by what the controller tells of their labels."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeproxy.model.node_pod import Membership
from tests.mesh.cluster import exactly, wait_until
from tests.mesh.labelled import LabelledCluster, RunningPod
from tests.mesh.roll import ended, roll
from tests.pace import PACE

PORT = 9000


@pytest.fixture(scope="module")
def mesh() -> Iterator[LabelledCluster]:
    with LabelledCluster.serving() as cluster:
        yield cluster


_ports = iter(range(PORT, PORT + 1000))


def path_of(mesh: LabelledCluster, client: RunningPod) -> str:
    """How a new connection from the pod to the other node's goes."""
    server, port = mesh.pods["server"], next(_ports)
    with server.listen(port) as listener, client.pod.connect(server.ip, port) as ours:
        theirs, _ = listener.accept()
        with theirs:
            ours.sendall(b"x")
            assert exactly(theirs, 1) == b"x"
        target = f"{server.ip}:{port}"
    try:
        rows = wait_until(lambda: [r for r in mesh.agents[1].access_log() if r["dst.addr"] == target], "it was logged", 2)
    except AssertionError:
        return "nobody saw it"
    return "mesh" if rows[0].get("src.identity") == client.pod.identity else "plain"


def test_a_running_pod_gets_a_label_and_loses_it(mesh: LabelledCluster) -> None:
    pod = mesh.run("labelled")
    pod.tell(Membership.UNLABELLED)
    wait_until(lambda: pod.key in mesh.rows(), "its node is told of it")
    row = mesh.rows()[pod.key]
    assert (row["state"], row["error"], row["since"]) == ("unlabelled", "", 0)
    assert "neither the pod nor its namespace" in row["why"]
    assert path_of(mesh, pod) == "plain"
    explained = mesh.agents[0].get("/why", source=pod.key, destination=f"{mesh.pods['server'].ip}:{PORT}")
    assert (explained["enrolled"], explained["way"]["kind"]) == (False, "plain")
    assert "neither the pod nor its namespace" in explained["steps"][0]["outcome"]
    began = time.monotonic()
    pod.tell()
    mesh.wait_in(pod)
    assert time.monotonic() - began < 2 * PACE
    wait_until(lambda: mesh.agents[0].get("/status")["ready"], "it has its certificate")
    assert path_of(mesh, pod) == "mesh"
    server = mesh.pods["server"]
    with server.listen(8000) as listener, pod.pod.connect(server.ip, 8000) as ours:
        theirs, _ = listener.accept()
        with theirs:
            pod.tell(Membership.OPTED_OUT)
            mesh.wait_out(pod)
            ours.sendall(b"goes on")
            assert exactly(theirs, 7) == b"goes on"
    assert mesh.rows()[pod.key]["state"] == "opted_out"
    assert path_of(mesh, pod) == "plain"


def test_every_pod_of_the_node_is_told_with_its_state(mesh: LabelledCluster) -> None:
    pods = {
        membership: mesh.run(f"state-{number}")
        for number, membership in enumerate(Membership)
        if membership is not Membership.NAMESPACE_LABEL
    }
    for membership, pod in pods.items():
        pod.tell(membership)
    waiting = mesh.run("state-waiting")
    waiting.stop()
    waiting.tell()
    mesh.wait_in(pods[Membership.POD_LABEL])
    wait_until(lambda: mesh.rows().get(waiting.key, {}).get("why") == "it has no process yet", "it is waited for")
    rows = mesh.rows()
    for membership, pod in pods.items():
        assert rows[pod.key]["state"] == ("in" if membership.in_mesh else membership.value)
        assert rows[pod.key]["why"]
    assert rows[waiting.key]["state"] == "waiting"
    shown = mesh.agents[0].nodeproxy("status").stdout
    assert "opted_out" in shown
    assert "1 is waited for" in shown
    waiting.start()
    mesh.wait_in(waiting)


def test_containers_restart_and_the_pod_stays(mesh: LabelledCluster) -> None:
    pod = mesh.run("restarting")
    pod.tell()
    mesh.wait_in(pod)
    since = mesh.rows()[pod.key]["since"]
    first = mesh.rows()[pod.key]["netns"]
    second = pod.start()
    pod.processes[0].kill()
    pod.processes[0].wait()
    wait_until(lambda: mesh.rows()[pod.key]["netns"] != first, "it is found by its other process")
    row = mesh.rows()[pod.key]
    assert (row["since"], row["state"], row["netns"]) == (since, "in", f"/proc/{second.pid}/ns/net")
    pod.stop()  # all containers crash; nobody says that the pod has ended
    time_of_watch = time.monotonic() + 1.5
    wait_until(lambda: time.monotonic() > time_of_watch, "it was looked at")
    assert mesh.rows()[pod.key]["state"] == "in"
    assert path_of(mesh, pod) == "mesh"


def test_another_sandbox_takes_the_place_of_the_first(mesh: LabelledCluster) -> None:
    pod = mesh.run("sandboxed")
    pod.tell()
    mesh.wait_in(pod)
    before = mesh.rows()[pod.key]["addresses"]
    later = mesh.pod(0, "sandboxed-later")
    pod.stop()
    pod.start(later.host)
    pod.pod.host = later.host  # as the kubelet reports it
    later.entry["workloadIps"] = list(later.host.addresses)
    mesh.server.put(mesh.message(pod.pod))
    mesh.server.put_node(pod.node_pod())
    wait_until(lambda: mesh.rows()[pod.key]["addresses"] not in (before, []), "its new network is steered")
    assert mesh.rows()[pod.key]["addresses"] == list(later.host.addresses)
    wait_until(lambda: mesh.agents[0].get("/status")["ready"], "it has its certificate again")
    assert path_of(mesh, pod) == "mesh"


def test_a_restarted_agent_keeps_whom_it_had_while_the_controller_is_away(mesh: LabelledCluster) -> None:
    pod, out = mesh.run("kept"), mesh.run("kept-out")
    pod.tell()
    out.tell(Membership.OPTED_OUT)
    mesh.wait_in(pod)
    wait_until(lambda: mesh.agents[0].get("/status")["ready"], "it has its certificate")
    mesh.server.stop()
    for number in (signal.SIGKILL, signal.SIGTERM):
        mesh.agents[0].kill(number)
        with pytest.raises((ConnectionRefusedError, ConnectionResetError)):  # reset by a worker that ends with its agent
            pod.pod.connect(mesh.pods["server"].ip, 9)  # closed, not open
        mesh.agents[0].start()
        mesh.wait_in(pod)
        assert mesh.rows()[out.key]["state"] == "opted_out"
        assert path_of(mesh, pod) == "mesh"
        assert path_of(mesh, out) == "plain"
    mesh.serve()


def test_who_lost_its_label_while_the_agent_was_away_leaves(mesh: LabelledCluster) -> None:
    pod, stays = mesh.run("leaver"), mesh.run("stays")
    pod.tell()
    stays.tell()
    mesh.wait_in(pod, stays)
    mesh.agents[0].kill()
    pod.tell(Membership.OPTED_OUT)
    mesh.agents[0].start()
    mesh.wait_out(pod)
    mesh.wait_in(stays)
    wait_until(lambda: path_of(mesh, pod) == "plain", "it is plain")
    assert path_of(mesh, stays) == "mesh"


def test_connections_that_stood_before_are_told_until_they_end(mesh: LabelledCluster) -> None:
    pod, server = mesh.run("standing"), mesh.pods["server"]
    pod.tell(Membership.UNLABELLED)
    with server.listen(8100) as listener, pod.pod.listen(8100) as local:
        ours = [pod.pod.connect(server.ip, 8100) for _ in range(2)]
        theirs = [listener.accept()[0] for _ in ours]
        loop = pod.pod.connect("127.0.0.1", 8100)
        looped = local.accept()[0]
        pod.tell()
        mesh.wait_in(pod)
        wait_until(lambda: mesh.rows()[pod.key]["standing_connections"] == 2, "they are counted")
        assert path_of(mesh, pod) == "mesh"
        for sock in ours:
            sock.sendall(b"as before")
        for sock in theirs:
            assert exactly(sock, 9) == b"as before"
        for sock in (*ours, *theirs, loop, looped):
            sock.close()
    wait_until(lambda: mesh.rows()[pod.key]["standing_connections"] == 0, "they have ended", 15)


def test_a_pod_that_ends_is_forgotten_without_noise(mesh: LabelledCluster) -> None:
    pods = [mesh.run(f"short-{number}") for number in range(5)]
    for pod in pods:
        pod.tell()
    mesh.wait_in(*pods)
    logged = len(mesh.agents[0].log())
    for pod in pods:
        pod.end()
    wait_until(lambda: not set(mesh.rows()) & {pod.key for pod in pods}, "they are forgotten")
    levels = {json.loads(line)["level"].upper() for line in mesh.agents[0].log()[logged:].splitlines() if '"level"' in line}
    assert levels == {"INFO"}
    assert all(pod.pod.identity not in str(mesh.agents[0].get("/status")["certificates"]) for pod in pods)


def test_pods_that_come_and_go_leave_nothing(mesh: LabelledCluster) -> None:
    assert mesh.agents[0].process is not None
    pid = mesh.agents[0].process.pid
    pods = [mesh.run(f"churn-{number}") for number in range(10)]

    def held() -> tuple[int, int]:
        return len(os.listdir(f"/proc/{pid}/fd")), len(
            list(Path(f"/sys/fs/bpf/nodeproxy/{mesh.agents[0].instance}/links").iterdir())
        )

    def cycle() -> None:
        for pod in pods:
            pod.tell()
        mesh.wait_in(*pods)
        for pod in pods:
            pod.tell(Membership.OPTED_OUT)
        mesh.wait_out(*pods)

    cycle()
    before = wait_until(held, "counted")
    for _ in range(5):
        cycle()
    wait_until(lambda: held() <= before, f"what is held is what was held: {before}, {held()}")


def test_an_agent_takes_over_whom_labels_have_put_in(mesh: LabelledCluster) -> None:
    """No connection is refused meanwhile, and none is plain."""
    pod, server = mesh.run("handed-over"), mesh.pods["server"]
    pod.tell()
    mesh.wait_in(pod)
    port = next(_ports)
    done, refused = threading.Event(), []
    count = itertools.count()

    def connect() -> None:
        while not done.is_set():
            try:
                with pod.pod.connect(server.ip, port) as ours:
                    ours.sendall(b"x")
                    ours.recv(1)
            except OSError as error:
                refused.append(error)
            next(count)

    with server.listen(port) as listener:
        answering = threading.Thread(target=_answer, args=(listener, done))
        connecting = threading.Thread(target=connect)
        for thread in (answering, connecting):
            thread.start()
        try:
            _, before = roll(mesh.agents[0])
            assert ended(before) == 0
        finally:
            done.set()
            connecting.join()
            answering.join()
    mesh.wait_in(pod)
    assert not refused
    assert next(count) > 10
    target = f"{server.ip}:{port}"
    seen = [row for row in mesh.agents[1].access_log() if row["dst.addr"] == target]
    assert {row.get("src.identity") for row in seen} == {pod.pod.identity}
    other = mesh.run("after-it")
    other.tell()
    mesh.wait_in(other)


def _answer(listener: socket.socket, done: threading.Event) -> None:
    listener.settimeout(0.1)
    while not done.is_set():
        try:
            theirs, _ = listener.accept()
        except TimeoutError:
            continue
        with theirs:
            theirs.settimeout(5)
            theirs.sendall(exactly(theirs, 1))
