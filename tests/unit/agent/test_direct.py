"""When the direct path is closed and opened, and what keeps it closed.

The table and the judge are stood in for; tests/mesh has the real ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
from msgspec.structs import replace

from nodeproxy.agent import direct
from nodeproxy.agent.direct import DirectPath
from nodeproxy.agent.direct_flows import DirectFlows
from nodeproxy.agent.direct_judge import Judge
from nodeproxy.agent.direct_pods import DirectPods
from nodeproxy.agent.enrolment import EnrolledPod
from nodeproxy.kernel.direct import DirectFlow, DirectService, DirectTable, Verdict
from nodeproxy.model.delta import Delta, Everything, PodSpec
from nodeproxy.model.policy import Action, Policy, PolicyScope
from nodeproxy.state.changes import Touched
from nodeproxy.state.store import StateWriter
from tests.unit.state.builders import pod, service

CLIENT, SERVER = pod("client", "10.0.0.1"), pod("server", "10.0.0.2", services={"ns/web.svc": {}})
DENY = Policy(name="p", namespace="ns", scope=PolicyScope.NAMESPACE, action=Action.DENY, rules=((),))


class Table:
    """What `DirectTable` promises, without a kernel."""

    def __init__(self) -> None:
        self.epoch = 0
        self.left_out = 0
        self.verdicts: list[Verdict] = []
        self.services: list[DirectService] = []
        self.during_publish: Callable[[], object] = lambda: None
        self._closings = 0

    def close(self) -> int:
        self.epoch = 0
        self._closings += 1
        return self._closings

    def publish(self, closing: int, verdicts: list[Verdict], services: list[DirectService]) -> bool:
        self.during_publish()
        if closing != self._closings:
            return False
        self.epoch += 1
        self.verdicts, self.services = verdicts, services
        return True

    def renew(self) -> None:
        pass

    def flows(self) -> list[DirectFlow]:
        return []

    def take_ended(self) -> list[DirectFlow]:
        return []

    def counters(self) -> dict[str, int]:
        return {}


class Failing:
    """A judge whose flows can't be destroyed as often as `failures` says."""

    def __init__(self) -> None:
        self.failures: list[str] = []
        self.destroyed: dict[str, int] = {}
        self.times = 0
        self.calls = 0

    async def judge(self, flows: list[DirectFlow]) -> list[str]:
        self.calls += 1
        self.failures = ["client: not permitted"] if self.times else []
        self.times = max(0, self.times - 1)
        return self.failures


class Flows:
    live = ended = unlogged = 0

    def forget_labels(self) -> None:
        pass

    def flush(self) -> None:
        pass


class Bench:
    def __init__(self, directory: Path) -> None:
        self.table, self.judge = Table(), Failing()
        self.writer = StateWriter(directory, before_commit=self._before_commit)
        self.reader = self.writer.reader()
        self.pods = DirectPods()
        self.path = DirectPath(
            cast("DirectTable", self.table),
            self.pods,
            cast("DirectFlows", Flows()),
            cast("Judge", self.judge),
            self.reader.view,
            off="",
        )
        self._null = (directory / "null").open("w")
        self.apply(Everything((CLIENT, SERVER), (service("web", "10.96.0.1"),), ()))

    def _before_commit(self, touched: Touched) -> None:
        self.path.before_change(touched)

    def close(self) -> None:
        self.pods.leave(100, gone=True)
        self.pods.leave(101, gone=True)
        self.pods.forget_left(())
        self._null.close()
        self.reader.close()
        self.writer.close()

    def pod(self, cookie: int) -> EnrolledPod:
        workload = (CLIENT, SERVER)[cookie - 100]
        return EnrolledPod(PodSpec(workload.uid, "/n"), self._null.fileno(), 0, cookie, workload.addresses, 0.0)

    def enter_all(self) -> None:
        for cookie in (100, 101):
            self.path.entering(cookie)
            self.path.entered(self.pod(cookie))

    def apply(self, change: Everything | Delta) -> None:
        try:
            if isinstance(change, Everything):
                self.writer.replace(change)
            else:
                self.writer.apply(change)
        finally:
            if self.path.changing:
                self.path.changed()

    def run(self, steps: Callable[[], Awaitable[None]]) -> None:
        async def main() -> None:
            serving = asyncio.create_task(self.path.run())
            try:
                await asyncio.wait_for(steps(), 5)
            finally:
                serving.cancel()
                await asyncio.gather(serving, return_exceptions=True)

        asyncio.run(main())

    async def opened(self) -> None:
        while not self.table.epoch:
            await asyncio.sleep(0.001)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(direct, "_RETRY_S", 0.02)
    made = Bench(tmp_path)
    yield made
    made.close()


def test_it_opens_when_all_pods_have_been_looked_at(bench: Bench) -> None:
    async def steps() -> None:
        bench.enter_all()
        await asyncio.sleep(0.02)
        assert bench.table.epoch == 0
        bench.path.start()
        await bench.opened()
        assert sorted(bench.table.verdicts) == [Verdict(100, 101, True), Verdict(101, 100, True)]
        assert bench.table.services == [DirectService("10.96.0.1", 80, (("10.0.0.2", 8080),))]
        assert bench.judge.calls == 1  # of what an agent before left
        assert bench.path.status()["pairs"] == 2

    bench.run(steps)


def test_a_change_that_matters_closes_it_before_it_is_committed(bench: Bench) -> None:
    async def steps() -> None:
        bench.enter_all()
        bench.path.start()
        await bench.opened()
        seen: list[tuple[int, int]] = []
        heard = bench.writer.before_commit

        def hear(touched: Touched) -> None:
            heard(touched)
            seen.append((bench.table.epoch, bench.reader.view().epoch))

        bench.writer.before_commit = hear
        before = bench.writer.epoch
        bench.apply(Delta(policies=(DENY,)))
        assert seen == [(0, before)]
        await bench.opened()
        assert bench.table.verdicts == []
        assert bench.judge.calls == 2

    bench.run(steps)


def test_a_change_that_does_not_matter_leaves_it_open(bench: Bench) -> None:
    async def steps() -> None:
        bench.enter_all()
        bench.path.start()
        await bench.opened()
        bench.apply(Delta(workloads=(pod("far", "10.1.0.1"),), policies=(replace(DENY, namespace="far"),)))
        assert bench.table.epoch == 1

    bench.run(steps)


def test_nothing_is_opened_while_a_change_is_on_its_way(bench: Bench) -> None:
    """Another process may commit it: pods that come and go meanwhile do not open what was closed for it."""

    async def steps() -> None:
        bench.enter_all()
        bench.path.start()
        await bench.opened()
        bench.path.close()
        bench.path.leaving(100, gone=False)
        bench.path.entering(100)
        bench.path.entered(bench.pod(100))
        await asyncio.sleep(0.05)
        assert bench.table.epoch == 0
        bench.path.changed()
        await bench.opened()

    bench.run(steps)


def test_what_was_closed_while_it_was_written_is_not_opened(bench: Bench) -> None:
    async def steps() -> None:
        bench.enter_all()
        loop = asyncio.get_running_loop()

        def change() -> None:
            bench.table.during_publish = lambda: None
            done = loop.create_future()
            loop.call_soon_threadsafe(lambda: (bench.apply(Delta(policies=(DENY,))), done.set_result(None)))
            asyncio.run_coroutine_threadsafe(asyncio.wait_for(done, 1), loop).result()

        bench.table.during_publish = change
        bench.path.start()
        await bench.opened()
        assert bench.table.verdicts == []

    bench.run(steps)


def test_a_flow_that_can_not_be_destroyed_keeps_it_closed(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    async def steps() -> None:
        bench.enter_all()
        bench.judge.times = 3
        bench.path.start()
        while bench.judge.calls < 3:
            assert bench.table.epoch == 0
            await asyncio.sleep(0.001)
        assert bench.path.status()["undestroyed"] == ["client: not permitted"]
        assert bench.path.statistics().undestroyed == 1
        await bench.opened()
        assert bench.judge.calls == 4
        assert bench.path.status()["undestroyed"] == []

    bench.run(steps)
    assert "the direct path stays closed until they are: client: not permitted" in caplog.text


def test_a_namespace_that_comes_back_is_not_who_it_was(bench: Bench) -> None:
    async def steps() -> None:
        bench.enter_all()
        bench.path.start()
        await bench.opened()
        bench.path.leaving(101, gone=False)
        bench.path.entering(102)
        assert bench.table.epoch == 1  # another one: nothing is said of it
        bench.path.entering(101)
        assert bench.table.epoch == 0

    bench.run(steps)


def test_off_is_off(bench: Bench) -> None:
    async def steps() -> None:
        bench.path.off = "no way"
        bench.enter_all()
        bench.path.start()
        await asyncio.sleep(0.05)
        assert bench.table.epoch == 0
        assert bench.judge.calls == 1
        assert bench.path.status()["off"] == "no way"

    bench.run(steps)
