"""Real worker processes: made, asked, killed, replaced, and ended.  They need no privilege until they are told of a pod."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from nodeproxy.agent.workers import Workers
from nodeproxy.model.messages import CertificateDropped, PodRemoved, StateChanged, WorkerSettings
from nodeproxy.observe.counters import Totals
from nodeproxy.state.store import StateWriter

COUNT = 2
DEADLINE_S = 10.0


def alive(pid: int) -> bool:
    """Whether it runs; one that has ended and that nobody has asked about does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Bench:
    """Workers with a loop of their own, which runs only while a test waits."""

    def __init__(self, directory: Path) -> None:
        self.ready: list[int] = []
        self.released: list[tuple[int, int]] = []
        self._state = StateWriter(directory)
        self._map = os.open("/dev/null", os.O_RDONLY)  # stands for the map of original destinations, which no connection asks for
        self._runner = asyncio.Runner()
        settings = WorkerSettings(slot=0, store=str(directory))
        self.workers = Workers(
            COUNT, settings, self._map, Totals(), self.ready.append, lambda slot, cookie: self.released.append((slot, cookie))
        )
        self.run(self.workers.start())

    def run(self, awaitable: Awaitable[object]) -> object:
        async def bounded() -> object:
            return await asyncio.wait_for(awaitable, DEADLINE_S)

        return self._runner.run(bounded())

    def until(self, condition: Callable[[], object]) -> None:
        async def poll() -> None:
            while not condition():
                await asyncio.sleep(0.002)

        self.run(poll())

    def within(self, call: Callable[[], object]) -> None:
        """`call` with the loop running, as in the agent."""

        async def called() -> None:
            call()

        self.run(called())

    def tell(self, slot: int, message: msgspec.Struct, fds: tuple[int, ...] = ()) -> bool:
        told: list[bool] = []
        self.within(lambda: told.append(self.workers.send(slot, message, fds)))
        return told[0]

    def pids(self) -> list[int]:
        return [pid for pid, _ in self.workers.pids.values()]

    def close(self) -> None:
        self.run(self.workers.drain(1.0))
        self._runner.close()
        self._state.close()
        os.close(self._map)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = Bench(tmp_path_factory.mktemp("state") / "state")
    yield made
    pids = made.pids()
    made.close()
    assert not any(map(alive, pids))


def test_each_slot_has_a_worker_that_serves(bench: Bench) -> None:
    assert sorted(bench.ready) == list(range(COUNT))
    assert bench.workers.all_ready
    assert len(set(bench.pids())) == COUNT
    assert all(map(alive, bench.pids()))


def test_all_are_asked_and_all_answer(bench: Bench) -> None:
    before = time.monotonic()
    bench.run(bench.workers.refresh_counters())
    assert bench.run(bench.workers.connections()) == []
    assert time.monotonic() - before < 1, "none was waited for in vain"


def test_a_pod_that_a_worker_does_not_have_is_released_at_once(bench: Bench) -> None:
    bench.released.clear()
    assert bench.tell(1, PodRemoved("nobody", 77, abort=False))
    bench.until(lambda: bench.released == [(1, 77)])


def test_a_worker_that_is_killed_is_replaced_and_told_everything(bench: Bench) -> None:
    before, other = bench.pids()
    bench.ready.clear()
    os.kill(before, signal.SIGKILL)
    bench.until(lambda: not bench.workers.all_ready)
    bench.until(lambda: bench.workers.all_ready)
    bench.until(lambda: 0 not in bench.pids())
    assert bench.ready == [0]
    assert bench.pids()[0] != before
    assert bench.pids()[1] == other
    assert bench.workers.restarts == [1, 0]


def test_a_worker_that_does_not_read_keeps_nobody_and_gets_all_in_the_end(bench: Bench) -> None:
    """Messages wait for it, as many as there may be; the other one goes on."""
    stopped = bench.pids()[0]
    os.kill(stopped, signal.SIGSTOP)
    try:
        bench.released.clear()
        dropped = [CertificateDropped(f"spiffe://cluster.local/ns/a/sa/{number}") for number in range(1000)]
        bench.within(lambda: [bench.workers.send(0, message) for message in dropped])
        assert bench.tell(0, PodRemoved("nobody", 78, abort=False))
        assert bench.tell(1, PodRemoved("nobody", 79, abort=False))
        bench.until(lambda: (1, 79) in bench.released)
        assert (0, 78) not in bench.released
    finally:
        os.kill(stopped, signal.SIGCONT)
    bench.until(lambda: (0, 78) in bench.released)
    assert bench.pids()[0] == stopped


def test_a_worker_that_never_reads_is_replaced(bench: Bench) -> None:
    stopped = bench.pids()[1]
    os.kill(stopped, signal.SIGSTOP)
    taken: list[bool] = []
    bench.within(lambda: taken.extend(bench.workers.send(1, StateChanged()) for _ in range(10_000)))
    assert not taken[-1], "what waits for it must not grow without end"
    bench.until(lambda: bench.workers.all_ready and bench.pids()[1] not in (stopped, 0))


def test_descriptors_that_wait_are_copies_and_are_closed(bench: Bench) -> None:
    before = len(os.listdir("/proc/self/fd"))
    stopped = bench.pids()[0]
    os.kill(stopped, signal.SIGSTOP)
    bench.released.clear()
    bench.within(lambda: [bench.workers.send(0, StateChanged()) for _ in range(1000)])
    assert bench.workers._workers[0].outbox
    fd = os.open("/dev/null", os.O_RDONLY)
    # It is no pod, but a message with a descriptor in it.
    bench.tell(0, StateChanged(), (fd,))
    os.close(fd)
    bench.tell(0, PodRemoved("nobody", 80, abort=False))
    assert len(os.listdir("/proc/self/fd")) == before + 1
    os.kill(stopped, signal.SIGCONT)
    bench.until(lambda: (0, 80) in bench.released)
    assert len(os.listdir("/proc/self/fd")) == before


def test_without_their_zygote_all_are_made_anew(bench: Bench) -> None:
    before = bench.pids()
    zygote = bench.workers._zygote
    assert zygote is not None
    os.kill(zygote.pid, signal.SIGKILL)
    bench.until(lambda: not bench.workers.all_ready)
    bench.until(lambda: bench.workers.all_ready and 0 not in bench.pids())
    assert not set(before) & set(bench.pids())
    assert not any(map(alive, before))
    assert bench.run(bench.workers.connections()) == []
