"""Both sides of a handover over a real socket, with what is handed over played: who has the locks when, whoever dies."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from nodeproxy.agent.handover.giving import Giving
from nodeproxy.agent.handover.taking import Predecessor, Taken
from nodeproxy.agent.run_dir import HANDOVER_SOCKET, RunDir
from nodeproxy.errors import HandoverError, NodeproxyError, StateError
from nodeproxy.model.channel import Channel
from nodeproxy.model.delta import PodSpec
from nodeproxy.model.handover import PROTOCOL, Asking, FromHolder, Leaving, Offer, Refused, Said
from nodeproxy.model.messages import PodRemoved

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
