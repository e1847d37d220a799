"""An agent takes over from one that runs, under load: nothing is refused, whoever dies; and what becomes of what stands."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeproxy.kernel.pins import Pins
from tests.mesh.cluster import Cluster, exactly, wait_until
from tests.mesh.roll import PORT, TAKE_S, Load, ended, greeters, later_version, roll, successor, took_over

# Whoever executes this as a successor dies when it has everything and serves nothing yet.
DIES_BEFORE_DONE = (
    "import os",
    "from nodeproxy.agent.node import Node",
    "Node.take_over = lambda self, said: os.kill(os.getpid(), 9)",
)
# An agent that executes this dies when it has yielded.
DIES_YIELDED = (
    "import os",
    "from nodeproxy.app.serving import Serving",
    "Serving.said = lambda self: os.kill(os.getpid(), 9)",
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    try:
        for node in (0, 1):
            for name in ("a", "b"):
                made.pod(node, f"{name}{node}")
        # So that on one node two pods talk through the proxy, and on the other without it.
        made.agents[0].arguments = ["--same-node", "hbone"]
        with greeters(list(made.pods.values())):
            made.start()
            yield made
    finally:
        made.close()


@pytest.fixture
def mesh(cluster: Cluster) -> Cluster:
    """Both agents run, as they were started."""
    for number, agent in enumerate(cluster.agents):
        agent.arguments = ["--same-node", "hbone"] if number == 0 else []
        if agent.process is None:
            agent.start()
    return cluster


@contextlib.contextmanager
def load(mesh: Cluster, rate: float) -> Iterator[None]:
    """So many connections a second, between the nodes both ways and within each; none of them fails."""
    pods = mesh.pods
    loads = [
        Load(pods["a0"], [pods["a1"].ip, pods["b0"].ip], rate / 2),
        Load(pods["a1"], [pods["a0"].ip, pods["b1"].ip], rate / 2),
    ]
    told, began = [], time.monotonic()
    try:
        yield
        wait_until(lambda: time.monotonic() - began > 2, "it was there long enough to tell", 5)
    finally:
        told = [each.end() for each in loads]
    print(*(f"{each['tried']} connections, {each['rate']:.0f}/s, slowest {each['slowest_s']:.2f} s" for each in told), sep="\n")
    assert [failure for each in told for failure in each["failures"]] == []
    assert all(each["tried"] > 20 for each in told)


def standing(mesh: Cluster, source: str, target: str, port: int) -> tuple[socket.socket, socket.socket]:
    """A connection, both ends."""
    with mesh.pods[target].listen(port) as listener:
        ours = mesh.pods[source].connect(mesh.pods[target].ip, port)
        theirs, _ = listener.accept()
        theirs.settimeout(10)
        return ours, theirs


def talks(pair: tuple[socket.socket, socket.socket]) -> bool:
    ours, theirs = pair
    ours.sendall(b"ping")
    theirs.sendall(b"pong")
    return exactly(theirs, 4) == b"ping" and exactly(ours, 4) == b"pong"


def close(*pairs: tuple[socket.socket, socket.socket]) -> None:
    for ours, theirs in pairs:
        ours.close()
        theirs.close()


def greeted(mesh: Cluster, source: str = "a0", target: str = "a1") -> bool:
    try:
        with mesh.pods[source].connect(mesh.pods[target].ip, PORT) as sock:
            return bool(sock.recv(64))
    except OSError:
        return False


def test_both_nodes_are_rolled_under_load(mesh: Cluster, tmp_path: Path) -> None:
    """First by the same version, then by one whose programs are others."""
    across, direct = standing(mesh, "a0", "a1", 9101), standing(mesh, "a1", "b1", 9102)
    before: list[object] = []
    with load(mesh, 100):
        for statements in ((), later_version(tmp_path / "bpf", other_maps=False)):
            for number in (0, 1):
                new, old = roll(mesh.agents[number], *statements)
                assert talks(across), "its workers drain"
                assert talks(direct)
                before.append(old)
                assert new.get("/status")["kernel"]["adopted"] is not bool(statements)
    close(across, direct)
    for old in before:
        assert ended(old) == 0  # type: ignore[arg-type]
    for agent in mesh.agents:
        assert len(Pins(agent.instance).generations()) == 1, "the old version's programs are gone"
        stores = [path.name for path in agent.run_dir.iterdir() if path.name.startswith("state")]
        assert stores == ["state-3"], "the stores of those before are gone"
        assert "Traceback" not in agent.log()


def test_maps_of_another_layout(mesh: Cluster, tmp_path: Path) -> None:
    """Connections that are being made in the milliseconds of the switch may be refused; those that stand are not touched."""
    pairs = [standing(mesh, "a0", "a1", 9111), standing(mesh, "a1", "b1", 9112)]
    _, old = roll(mesh.agents[1], *later_version(tmp_path / "bpf", other_maps=True))
    assert all(talks(pair) for pair in pairs)
    assert greeted(mesh)
    assert greeted(mesh, "a1", "a0")
    assert greeted(mesh, "a1", "b1")
    close(*pairs)
    assert ended(old) == 0


@pytest.mark.parametrize("number", [0, 1])
def test_a_successor_that_is_killed_leaves_the_other_one_serving(mesh: Cluster, number: int) -> None:
    agent = mesh.agents[number]
    pairs = [standing(mesh, "a0", "a1", 9121), standing(mesh, "a1", "b1", 9122)]
    with load(mesh, 50):
        for _ in range(2):
            assert ended(successor(agent, *DIES_BEFORE_DONE)) == -signal.SIGKILL
        wait_until(lambda: agent.log().count("this one serves on") == 2, "it goes on")
        agent.wait_ready()  # its socket has been put back a moment ago
        _, old = roll(agent)
    assert all(talks(pair) for pair in pairs)
    close(*pairs)
    assert ended(old) == 0


def test_an_agent_that_is_killed_as_it_hands_over_is_adopted(mesh: Cluster) -> None:
    """Twice in a row: its connections are lost, as always when an agent is killed; the successor serves at once."""
    for _ in range(2):
        _, old = roll(mesh.agents[0], *DIES_YIELDED)
        assert ended(old) == 0
        doomed = mesh.agents[0]
        new = successor(doomed)
        wait_until(lambda new=new: took_over(new), "it has taken over", TAKE_S)
        assert ended(doomed) == -signal.SIGKILL
        mesh.agents[0] = new
        new.wait_ready()
        assert greeted(mesh)
        assert greeted(mesh, "a1", "a0")


def test_the_old_agent_is_bound_by_what_changes_meanwhile(mesh: Cluster) -> None:
    """A policy ends its connections, and a pod that leaves keeps what they need until they have ended."""
    denied, kept = standing(mesh, "a0", "a1", 9131), standing(mesh, "b0", "b1", 9132)
    new, old = roll(mesh.agents[1])
    mesh.policies.append(
        {
            "name": "no-a1",
            "namespace": "shop",
            "scope": "Namespace",
            "action": "Deny",
            "rules": [[[{"principals": [{"exact": mesh.pods["a0"].identity.removeprefix("spiffe://")}]}]]],
        }
    )
    mesh.apply()
    denied[0].settimeout(10)
    with pytest.raises(ConnectionResetError):
        denied[0].recv(1)
    mesh.policies.clear()
    mesh.apply()
    b1 = mesh.pods["b1"]
    assert new.request("DELETE", f"/pods/{b1.uid}")[0] == 200
    assert talks(kept)
    assert "0x53a" in b1.host.run(["ip", "rule"]).stdout
    assert old.process is not None
    assert old.process.poll() is None
    close(kept)
    wait_until(lambda: "0x53a" not in b1.host.run(["ip", "rule"]).stdout, "nothing of ours is left in it")
    assert ended(old) == 0
    assert new.request("POST", "/pods", {"uid": b1.uid, "netns": b1.host.netns_path})[0] == 200
    close(denied)


def test_what_stands_longer_than_the_grace_period_ends_with_it(mesh: Cluster) -> None:
    agent = mesh.agents[1]
    agent.kill(signal.SIGTERM)
    agent.arguments = ["--grace-s", "9"]
    agent.start()
    pair = standing(mesh, "a0", "a1", 9141)
    _, old = roll(agent)
    assert talks(pair)
    pair[0].settimeout(20)
    with pytest.raises(ConnectionResetError):
        pair[0].recv(1)
    assert ended(old) == 0
    assert any("drained" in row.get("error", "") for row in old.access_log())
    assert greeted(mesh)
    close(pair)


def test_sigterm_while_a_successor_prepares_waits_for_it(mesh: Cluster, tmp_path: Path) -> None:
    agent, stall = mesh.agents[0], tmp_path / "stall"
    stall.touch()
    statements = (
        "import os, asyncio",
        "from nodeproxy.app.serving import Serving",
        "prepared = Serving._prepared",
        "async def slow(self):",
        f"    while os.path.exists({str(stall)!r}): await asyncio.sleep(0.01)",
        "    await prepared(self)",
        "Serving._prepared = slow",
    )
    with load(mesh, 50):
        new = successor(agent, *statements)
        wait_until(lambda: "prepares to take over" in agent.log(), "it has been asked", TAKE_S)
        assert agent.process is not None
        agent.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "it is waited for" in agent.log(), "it waits")
        stall.unlink()
        wait_until(lambda: took_over(new), "it has taken over", TAKE_S)
        mesh.agents[0] = new
        new.wait_ready()
    assert ended(agent) == 0


def test_an_agent_that_waits_serves_again_when_nobody_does(mesh: Cluster) -> None:
    agent = mesh.agents[1]
    agent.kill(signal.SIGTERM)
    agent.arguments = ["--wait-after-handover"]
    agent.start()
    new, old = roll(agent)
    wait_until(lambda: "drained; waits for SIGTERM" in old.log(), "it waits")
    assert old.process is not None
    new.kill(signal.SIGKILL)
    wait_until(lambda: old.log().count("ready: ") >= 2 and greeted(mesh), "it serves again", TAKE_S)
    mesh.agents[1] = old
    assert old.get("/status")["kernel"]["adopted"] is True
    new, old = roll(old)
    wait_until(lambda: old.log().count("drained; waits for SIGTERM") == 2, "it waits again")
    assert greeted(mesh)
    os.kill(old.process.pid, signal.SIGTERM)
    assert ended(old) == 0
    assert greeted(mesh)
