"""Both sides of a handover over a real socket, with what is handed over played: who has the locks when, whoever dies."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from nodeproxy.agent.handover import giving
from nodeproxy.agent.handover.giving import Giving
from nodeproxy.agent.handover.link import Link
from nodeproxy.agent.handover.taking import Predecessor, Taken
from nodeproxy.agent.run_dir import HANDOVER_SOCKET, RunDir
from nodeproxy.errors import HandoverError, NodeproxyError, StateError
from nodeproxy.model.channel import Channel
from nodeproxy.model.delta import PodSpec
from nodeproxy.model.handover import PROTOCOL, Asking, Done, FromHolder, FromSuccessor, Leaving, Offer, Refused, Said
from nodeproxy.model.messages import PodRemoved
from tests.in_loop import in_loop

DEADLINE_S = 10.0


class Agent:
    """The one that runs.  `calls`: what it was asked for."""

    own_cgroup_id = 77
    version = "1.2.3"

    def __init__(self, run_dir: RunDir) -> None:
        self.run_dir = run_dir
        self.calls: list[str] = []
        self.left: list[PodRemoved] = []
        self.identities = [f"spiffe://cluster.local/ns/a/sa/{number}" for number in range(600)]
        self.error: NodeproxyError | None = None
        self.defect: Exception | None = None
        self.pins_lock, self._other_end = os.pipe()

    async def copy_state(self, directory: Path) -> list[str]:
        self.calls.append(f"copy to {directory.name}")
        if self.error is not None:
            raise self.error
        return self.identities

    async def pause(self) -> None:
        self.calls.append("pause")
        if self.defect is not None:
            raise self.defect

    async def resume(self) -> None:
        self.calls.append("resume")

    def said(self) -> list[Said]:
        return [Said("in", PodSpec("in", "/run/netns/in")), Said("out", None)]

    def leaving(self) -> list[tuple[Leaving, int]]:
        return [(Leaving(PodSpec("gone", "/run/netns/gone"), 5), self.pins_lock)]

    def locks(self) -> tuple[int, ...]:
        return self.run_dir.lock, self.pins_lock

    def let_go(self) -> None:
        self.calls.append("let go")
        self.run_dir.let_go()

    def removed(self, message: PodRemoved) -> None:
        self.left.append(message)

    def close(self) -> None:
        os.close(self.pins_lock)
        os.close(self._other_end)


class Bench:
    """The holder in a thread with a loop of its own; a successor in the test's."""

    def __init__(self, path: Path) -> None:
        self.run_dir = RunDir(path)
        assert self.run_dir.hold()
        self.agent = Agent(self.run_dir)
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.giving = self.within(self._make())
        self.own = RunDir(path)
        self.runner = asyncio.Runner()

    async def _make(self) -> Giving:
        giving = Giving(self.agent, self.run_dir)
        giving.listen()
        return giving

    def within(self, work):  # noqa: ANN001, ANN201 - whatever the coroutine returns
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(DEADLINE_S)

    def until(self, condition) -> None:  # noqa: ANN001
        async def poll() -> None:
            while not condition():
                await asyncio.sleep(0.002)

        self.within(asyncio.wait_for(poll(), DEADLINE_S))

    def ask(self) -> Predecessor:
        found = Predecessor.ask(self.own, "2.0.0")
        assert found is not None
        return found

    def take(self, predecessor: Predecessor) -> Taken | None:
        async def take() -> Taken | None:
            predecessor.start()
            return await predecessor.take()

        return self.runner.run(take())

    def close(self) -> None:
        self.within(self.giving.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(DEADLINE_S)
        self.loop.close()
        self.runner.close()
        self.agent.close()
        self.run_dir.close()
        self.own.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


def close(taken: Taken) -> None:
    os.close(taken.pins_lock)
    for _, fd in taken.leaving:
        os.close(fd)


def test_all_is_passed_on(bench: Bench) -> None:
    predecessor = bench.ask()
    assert predecessor.offer.store == "state-2"
    assert (predecessor.offer.own_cgroup_id, predecessor.offer.version) == (77, "1.2.3")
    assert predecessor.identities == set(bench.agent.identities), "in pages"
    assert bench.agent.calls == ["copy to state-2"], "and it serves on"
    taken = bench.take(predecessor)
    assert taken is not None
    assert taken.said == tuple(bench.agent.said())
    assert taken.leaving[0][0] == bench.agent.leaving()[0][0]
    bench.own.take(taken.run_dir_lock, bench.own.path / predecessor.offer.store)
    assert not bench.giving.given.is_set()
    bench.runner.run(_call(predecessor.done))
    bench.until(bench.giving.given.is_set)
    assert bench.agent.calls == ["copy to state-2", "pause", "let go"]
    assert not RunDir(bench.own.path).is_free()
    removed = PodRemoved("in", 9, abort=False)
    bench.runner.run(_call(lambda: predecessor.tell(removed)))
    bench.until(lambda: bench.agent.left == [removed])
    released: list[int] = []
    bench.loop.call_soon_threadsafe(bench.giving.released, 9)
    bench.loop.call_soon_threadsafe(lambda: asyncio.ensure_future(bench.giving.close(), loop=bench.loop))
    bench.runner.run(asyncio.wait_for(predecessor.hear(released.append), DEADLINE_S))
    assert released == [9]
    assert not bench.runner.run(_call(lambda: predecessor.tell(removed))), "it has ended"
    close(taken)


def test_a_pod_that_leaves_before_the_successor_serves_makes_nobody_serve_twice(bench: Bench) -> None:
    predecessor = bench.ask()
    taken = bench.take(predecessor)
    assert taken is not None
    removed = PodRemoved("in", 9, abort=True)
    bench.runner.run(_call(lambda: predecessor.tell(removed)))
    bench.runner.run(_call(predecessor.done))
    bench.until(lambda: bench.agent.left == [removed])
    assert bench.agent.calls == ["copy to state-2", "pause", "let go"]
    os.close(taken.run_dir_lock)
    close(taken)


async def _call(what):  # noqa: ANN001, ANN202
    return what()


@pytest.mark.parametrize("taken_before", [False, True])
def test_a_successor_that_dies_changes_nothing(bench: Bench, taken_before: bool) -> None:
    predecessor = bench.ask()
    if taken_before:
        taken = bench.take(predecessor)
        assert taken is not None
        os.close(taken.run_dir_lock)
        close(taken)
    bench.runner.run(_call(predecessor.close))
    bench.until(bench.giving.settled.is_set)
    assert bench.agent.calls == ["copy to state-2", *(["pause", "resume"] if taken_before else [])]
    assert not bench.own.hold()
    again = bench.ask()
    assert again.offer.store == "state-2"
    again.close()
    bench.until(bench.giving.settled.is_set)


def test_a_holder_that_ends_before_it_yields_leaves_the_lock_free(bench: Bench) -> None:
    predecessor = bench.ask()
    bench.within(bench.giving.close())
    bench.run_dir.let_go()
    assert bench.take(predecessor) is None
    assert bench.own.hold()
    bench.runner.run(_call(predecessor.close))


def test_whoever_is_not_the_first_is_refused(bench: Bench) -> None:
    predecessor = bench.ask()
    with pytest.raises(HandoverError, match="another agent is taking over"):
        bench.ask()
    predecessor.close()


def test_a_state_that_cannot_be_copied(bench: Bench) -> None:
    bench.agent.error = StateError("the disk is full")
    with pytest.raises(HandoverError, match=r"does not hand over: the disk is full; stop it"):
        bench.ask()


@pytest.mark.parametrize("defect", [StateError("no"), RuntimeError("a defect")])
def test_an_agent_that_cannot_yield_serves_on(bench: Bench, defect: Exception) -> None:
    bench.agent.defect = defect
    predecessor = bench.ask()
    with pytest.raises(HandoverError, match="does not hand over after all"):
        bench.take(predecessor)
    bench.until(bench.giving.settled.is_set)
    assert bench.agent.calls == ["copy to state-2", "pause", "resume"]
    assert not bench.own.hold()
    bench.runner.run(_call(predecessor.close))


def test_another_protocol_is_refused_by_name(bench: Bench) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(DEADLINE_S)
        sock.connect(str(bench.own.path / HANDOVER_SOCKET))
        channel: Channel[FromHolder] = Channel(sock, FromHolder)
        channel.send(Asking(PROTOCOL + 1, "9.9", 1, 1))
        received = channel.receive()
    assert received is not None
    assert isinstance(received[0], Refused)
    assert f"it speaks handover {PROTOCOL + 1}, this agent (1.2.3) {PROTOCOL}" in received[0].why


@pytest.mark.parametrize("packet", [b"\xc1", msgspec.msgpack.encode({"type": "Nonsense"}), msgspec.msgpack.encode(5)])
def test_garbage_is_no_successor(bench: Bench, packet: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(DEADLINE_S)
        sock.connect(str(bench.own.path / HANDOVER_SOCKET))
        sock.send(packet)
        assert sock.recv(100) == b""
    bench.until(bench.giving.settled.is_set)
    assert bench.agent.calls == []
    bench.ask().close()


def test_nobody_holds_it(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    assert Predecessor.ask(run_dir, "2.0.0") is None
    assert run_dir.held
    run_dir.close()


def test_an_offer_of_no_pods(bench: Bench) -> None:
    bench.agent.identities = []
    predecessor = bench.ask()
    assert predecessor.identities == frozenset()
    assert isinstance(predecessor.offer, Offer)
    predecessor.close()


STOPS = """
import asyncio, os, sys
from pathlib import Path
from nodeproxy.agent.handover.taking import Predecessor
from nodeproxy.agent.run_dir import RunDir
async def take(predecessor):
    predecessor.start()
    await predecessor.take()
    os.kill(os.getpid(), 19)
    print("goes on")
asyncio.run(take(Predecessor.ask(RunDir(Path(sys.argv[1])), "2.0.0")))
"""


@pytest.mark.parametrize("in_sight", [True, False])
def test_a_successor_that_hangs_is_waited_for_so_long_and_no_longer(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, in_sight: bool
) -> None:
    """Where it can be, it is killed before this agent changes anything again."""
    monkeypatch.setattr(giving, "DONE_S", 0.1)
    if not in_sight:
        monkeypatch.setattr(giving, "_process_of", lambda sock: -1)
    argv = [sys.executable, "-c", STOPS, str(bench.own.path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        bench.until(lambda: "resume" in bench.agent.calls)
        if in_sight:
            assert process.wait(DEADLINE_S) == -signal.SIGKILL
        bench.until(bench.giving.settled.is_set)
        assert process.poll() is None or in_sight
        process.kill()
        assert process.communicate()[0] == b""
    assert bench.agent.calls == ["copy to state-2", "pause", "resume"]
    assert not bench.giving.given.is_set()
    assert not bench.own.hold()
    bench.ask().close()  # and the next may take over


@in_loop
async def test_what_has_come_in_time_counts_though_the_holder_stood_still() -> None:
    ours, theirs = Channel.pair()
    link: Link[FromSuccessor] = Link(ours, FromSuccessor)
    with theirs:
        Channel(theirs, FromHolder).send(Done())
        assert await link.receive_within(-1.0) == (Done(), [])
        with pytest.raises(TimeoutError):
            await link.receive_within(-1.0)
        link.close()


TAKES = """
import asyncio, time
from nodeproxy.agent.handover import taking
from nodeproxy.model.handover import Offer
taking.TAKE_S, taking.END_S = 0.1, 0.2
predecessor = taking.Predecessor(None, [Offer("state-2", 1, "1", 77, (), True)])
async def take():
    async with predecessor.in_time():
        {does}
    print("took over", flush=True)
asyncio.run(take())
time.sleep(0.3)
print("lives")
"""


@pytest.mark.parametrize(
    ("does", "status", "says"),
    [
        ("pass", 0, ""),
        ("await asyncio.sleep(9)", 1, "has not taken over from process 77 within"),
        ("time.sleep(9)", 1, "Timeout (0:00:00.200000)!"),
    ],
    ids=["in time", "too slow", "hangs"],
)
def test_a_successor_does_nothing_after_its_time(does: str, status: int, says: str) -> None:
    """What it is not in time with it gives up; if it can't, it is ended."""
    done = subprocess.run(
        [sys.executable, "-c", TAKES.format(does=does)], capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert done.returncode == status, done.stderr
    assert done.stdout == ("" if status else "took over\nlives\n")
    assert says in done.stderr


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@in_loop
async def test_nothing_is_left_open_of_what_came_and_was_not_asked_for() -> None:
    ours, theirs = Channel.pair()
    link: Link[FromSuccessor] = Link(ours, FromSuccessor)
    with theirs:
        before = descriptors()
        Channel(theirs, FromHolder).send(Done(), (0, 1))
        Channel(theirs, FromHolder).send(Done(), (0,))
        while descriptors() < before + 3:
            await asyncio.sleep(0)
        link.close()
        assert descriptors() == before - 1, "its socket is closed, too"


def test_a_link_is_closed_after_its_loop(bench: Bench) -> None:
    """As an agent ends that did not take over."""
    predecessor = bench.ask()
    asyncio.run(_call(predecessor.start))
    predecessor.close()
    bench.until(bench.giving.settled.is_set)


@in_loop
async def test_nothing_is_left_open_of_a_take_that_is_cancelled() -> None:
    ours, theirs = Channel.pair()
    predecessor = Predecessor(ours, [Offer("state-2", 1, "1", 77, (), True)])
    predecessor.start()
    with theirs:
        before = descriptors()
        Channel(theirs, FromHolder).send(Leaving(PodSpec("gone", "/run/netns/gone"), 5), (0,))
        taking = asyncio.ensure_future(predecessor.take())
        while descriptors() == before:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)
        assert descriptors() == before
    predecessor.close()


@in_loop
async def test_nothing_is_left_open_by_a_socket_that_can_not_be_put_in_its_place(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    (tmp_path / HANDOVER_SOCKET).mkdir()
    agent = Agent(run_dir)
    before = descriptors()
    with pytest.raises(OSError, match="directory"):
        Giving(agent, run_dir).listen()
    assert descriptors() == before
    agent.close()
    run_dir.close()
