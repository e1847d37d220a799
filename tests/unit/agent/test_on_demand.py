"""Asking on demand, with a real store and a source whose answers the test gives."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nodeproxy.agent import asked, on_demand
from nodeproxy.agent.on_demand import IDLE_S, RECHECK_S, UNANSWERED_S, WAIT_S, OnDemand
from nodeproxy.errors import StateError
from nodeproxy.model.delta import Delta
from nodeproxy.model.messages import NamesAnswered
from nodeproxy.model.workload import Service, Workload
from nodeproxy.state.store import StateWriter
from tests.unit.state.builders import pod, service

SERVER = pod("server", "10.0.0.2", services={"ns/web.svc": {}})
OTHER = pod("other", "10.0.0.3", services={"ns/web.svc": {}, "ns/two.svc": {}})
WEB, TWO = service("web", "10.96.0.1"), service("two", "10.96.0.2")


class Source:
    """What the source was told, and what it says."""

    def __init__(self) -> None:
        self.told: list[tuple[str, set[str]]] = []

    def subscribe(self, names: Iterable[str]) -> None:
        self._tell("subscribe", names)

    def unsubscribe(self, names: Iterable[str]) -> None:
        self._tell("unsubscribe", names)

    def ask_again(self, names: Iterable[str]) -> None:
        self._tell("ask again", names)

    def _tell(self, what: str, names: Iterable[str]) -> None:
        told = set(names)
        if told:
            self.told.append((what, told))

    def take(self) -> list[tuple[str, set[str]]]:
        told, self.told = self.told, []
        return told


class Bench:
    """The state, the source, the clock, and what workers were told."""

    def __init__(self, path: Path) -> None:
        self.now = 1000.0
        self.runner = asyncio.Runner()
        self.path = path
        self.told: list[tuple[int, NamesAnswered]] = []
        self.in_use: set[str] = set()
        self._open()

    def _open(self) -> None:
        self.state = StateWriter(self.path)
        self.reader = self.state.reader()
        self.source = Source()
        self.demand = self._make()

    def _make(self) -> OnDemand:
        async def made() -> OnDemand:
            return OnDemand(self.reader.view, self._write, self._tell, lambda: self.in_use, lambda: self.now)

        return self.run(made())

    def start(self) -> None:
        self.run(self.demand.start(self.source))
        self.demand.connected(True)

    def restart(self) -> None:
        """Another agent with the same store."""
        self.reader.close()
        self.state.close()
        self._open()

    async def _write(self, delta: Delta) -> None:
        self.state.apply(delta)

    def _tell(self, slot: int, message: NamesAnswered) -> None:
        self.told.append((slot, message))

    def run(self, awaitable: Awaitable[Any]) -> Any:
        async def bounded() -> Any:
            return await asyncio.wait_for(awaitable, 5.0)

        return self.runner.run(bounded())

    def wanted(self, *names: str, slot: int = 0, owner: str = "pod") -> None:
        async def call() -> None:
            self.demand.wanted(slot, owner, names)

        self.run(call())

    def say(self, *resources: Workload | Service, gone: tuple[str, ...] = ()) -> None:
        workloads = tuple(each for each in resources if isinstance(each, Workload))
        services = tuple(each for each in resources if isinstance(each, Service))
        self.state.apply(Delta(workloads, services, removed_workloads=gone, removed_services=gone))
        keys = [each.uid if isinstance(each, Workload) else each.key for each in resources]
        self.run(self.demand.arrived(keys, gone))

    def sweep(self, seconds: float) -> None:
        self.now += seconds
        self.run(self.demand.sweep())

    def take_told(self) -> list[tuple[int, tuple[str, ...], str]]:
        told, self.told = self.told, []
        return [(slot, message.names, message.refusal) for slot, message in told]

    def knows(self) -> tuple[set[str], set[str]]:
        """What is in the state, and which names have nobody."""
        view = self.reader.view()
        there = {each.uid for each in view.workloads()} | {each.key for each in view.services()}
        return there, {name for name in view.asked() if view.is_absent(name)}

    def close(self) -> None:
        self.runner.close()
        self.reader.close()
        self.state.close()


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


@pytest.fixture
def bench(fresh: Bench) -> Bench:
    fresh.start()
    return fresh


def test_one_question_for_all_who_ask(bench: Bench) -> None:
    bench.wanted("/10.96.0.1", slot=0)
    bench.wanted("/10.96.0.1", slot=1)
    bench.wanted("/10.96.0.1", slot=1, owner="another")
    assert bench.source.take() == [("subscribe", {"/10.96.0.1"})]
    bench.say(WEB, SERVER)
    assert sorted(bench.take_told()) == [(0, ("/10.96.0.1",), ""), (1, ("/10.96.0.1",), "")]
    bench.wanted("/10.96.0.1", slot=0)
    assert bench.take_told() == [(0, ("/10.96.0.1",), "")], "it is known by now"
    assert bench.source.take() == []


def test_nobody_is_an_answer(bench: Bench) -> None:
    bench.wanted("/192.0.2.1", "ns/no.svc")
    bench.say(gone=("/192.0.2.1", "ns/no.svc", "/192.0.2.9"))
    assert bench.take_told() == [(0, ("/192.0.2.1", "ns/no.svc"), "")]
    assert bench.knows() == (set(), {"/192.0.2.1", "ns/no.svc"})


def test_an_answer_by_another_name_is_one(bench: Bench) -> None:
    bench.wanted("/10.0.0.2", "ns/web.svc", "server")
    bench.say(WEB, SERVER)
    assert set(bench.take_told()[0][1]) == {"/10.0.0.2", "ns/web.svc", "server"}


def test_an_address_of_the_host_has_nobody_of_the_mesh(bench: Bench) -> None:
    bench.wanted("/10.1.0.1")
    bench.say(pod("agent", "10.1.0.1", host_network=True))
    assert bench.take_told() == [(0, ("/10.1.0.1",), "")]
    assert bench.knows()[1] == {"/10.1.0.1"}


def test_what_could_not_be_stored_is_no_answer(bench: Bench) -> None:
    """The source named it, and nothing of it is in the store: that is not "nobody"."""
    bench.wanted("/10.0.0.2")
    bench.run(bench.demand.arrived(["server"], ()))
    assert bench.take_told() == []
    assert bench.knows() == (set(), set())


def test_who_is_there_is_not_nobody_whatever_the_source_says(bench: Bench) -> None:
    bench.wanted("/10.0.0.2")
    bench.say(SERVER)
    bench.take_told()
    bench.run(bench.demand.arrived((), ["/10.0.0.2", "server"]))
    assert bench.knows() == ({"server"}, set())


def test_who_has_gone_is_asked_for_anew(bench: Bench) -> None:
    bench.wanted("/10.0.0.2")
    bench.say(SERVER)
    bench.say(gone=("server",))
    bench.source.take()
    bench.wanted("/10.0.0.2")
    bench.wanted("/10.0.0.2", slot=1)
    assert bench.source.take() == [("ask again", {"/10.0.0.2"})]
    bench.take_told()
    bench.say(gone=("/10.0.0.2",))
    assert sorted(bench.take_told()) == [(0, ("/10.0.0.2",), ""), (1, ("/10.0.0.2",), "")]


# ── who asks too much ──


def test_a_scanner_is_refused_and_another_pod_is_not(bench: Bench) -> None:
    bench.wanted(*(f"/10.{number >> 8}.{number & 255}.1" for number in range(1000)), owner="scanner")
    refused = [names for _, names, refusal in bench.take_told() if refusal]
    assert sum(map(len, refused)) == 1000 - 256
    assert sum(len(names) for _, names in bench.source.take()) == 200
    bench.wanted("/10.96.0.1", owner="honest")
    assert bench.source.take() == [("subscribe", {"/10.96.0.1"})]
    assert bench.demand.statistics().refused["pace"] == 744


def test_what_waits_for_its_turn_is_asked_for_later(bench: Bench) -> None:
    bench.wanted(*(f"/10.0.{number}.1" for number in range(201)))
    bench.source.take()

    async def until_asked() -> None:
        bench.now += 1.0
        while not bench.source.told:
            await asyncio.sleep(0.001)

    bench.run(until_asked())
    assert bench.source.take() == [("subscribe", {"/10.0.200.1"})]


def test_what_is_answered_while_it_waits_for_its_turn(bench: Bench) -> None:
    bench.wanted(*(f"/192.0.2.{number}" for number in range(200)), "/10.0.0.2")
    bench.say(SERVER)
    assert bench.take_told() == [(0, ("/10.0.0.2",), "")]


def test_a_name_that_no_store_can_keep(bench: Bench) -> None:
    bench.wanted("ns/" + "x" * 480)
    [(slot, _, refusal)] = bench.take_told()
    assert (slot, "too long" in refusal) == (0, True)
    assert bench.source.take() == []


def test_who_has_the_most_makes_room(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked, "MAX_NAMES", 4)
    monkeypatch.setattr(asked, "ROOM", 2)
    bench.wanted("/10.0.0.2", owner="honest")
    bench.say(SERVER)
    for number in range(3):
        bench.wanted(f"/192.0.2.{number}", owner="scanner")
        bench.say(gone=(f"/192.0.2.{number}",))
    bench.source.take()

    async def until_let_go() -> None:
        task = asyncio.get_running_loop().create_task(bench.demand.run())
        while not bench.source.told:
            await asyncio.sleep(0.001)
        task.cancel()

    bench.run(until_let_go())
    assert bench.source.take() == [("unsubscribe", {"/192.0.2.0", "/192.0.2.1"})]
    assert bench.knows() == ({"server"}, {"/192.0.2.2"})
    assert bench.demand.statistics().let_go == {"idle": 0, "room": 2, "unanswered": 0}


# ── time ──


def test_nobody_is_forgotten_unless_it_is_used_and_asked_again_if_it_is(bench: Bench) -> None:
    bench.wanted("/192.0.2.1", "/192.0.2.2")
    bench.say(gone=("/192.0.2.1", "/192.0.2.2"))
    bench.source.take()
    bench.now += 20
    bench.demand.used(["/192.0.2.2"])
    bench.sweep(RECHECK_S)
    assert sorted(bench.source.take()) == [("ask again", {"/192.0.2.2"}), ("unsubscribe", {"/192.0.2.1"})]
    assert bench.knows()[1] == {"/192.0.2.2"}, "it holds until there is a new answer"
    bench.sweep(10)
    assert bench.source.take() == [], "once"
    bench.say(pod("new", "192.0.2.2"))
    assert bench.knows() == ({"new"}, set())


def test_nobody_is_forgotten_before_the_source_is_told(bench: Bench) -> None:
    bench.wanted("/192.0.2.1")
    bench.say(gone=("/192.0.2.1",))
    known: list[set[str]] = []
    bench.source.unsubscribe = lambda names: known.append(bench.knows()[1])  # type: ignore[method-assign]
    bench.sweep(RECHECK_S + 1)
    assert known == [set()]


def test_a_service_in_use_is_asked_for_again_and_a_workload_is_not(bench: Bench) -> None:
    bench.wanted("/10.96.0.1", "/10.0.0.3")
    bench.say(WEB, SERVER)
    bench.say(OTHER)
    bench.source.take()
    for _ in range(2):
        bench.now += 20
        bench.demand.used(["/10.96.0.1", "/10.0.0.3"])
    bench.sweep(RECHECK_S)
    assert bench.source.take() == [("ask again", {"/10.96.0.1"})]


def test_what_is_not_used_goes_with_all_that_came_by_it_alone(bench: Bench) -> None:
    bench.wanted("/10.96.0.1", "ns/two.svc")
    bench.say(WEB, TWO, SERVER, OTHER)
    bench.source.take()
    bench.now += 500
    bench.demand.used(["/10.96.0.2"])  # the other name of ns/two.svc
    bench.sweep(IDLE_S - 400)
    assert bench.source.take()[0] == ("unsubscribe", {"/10.96.0.1", "ns/web.svc", "server"})
    assert bench.knows() == ({"ns/two.svc", "other"}, set())


def test_a_name_of_its_own_stays_subscribed_while_another_brings_it(bench: Bench) -> None:
    bench.wanted("other", "ns/web.svc")
    bench.say(WEB, SERVER, OTHER)
    bench.source.take()
    bench.now += 500
    bench.demand.used(["ns/web.svc"])
    bench.sweep(200)
    assert [told for told in bench.source.take() if told[0] == "unsubscribe"] == []
    assert "other" in bench.knows()[0]


def test_what_can_not_be_forgotten_stays_asked_for(bench: Bench) -> None:
    """A nobody that the store still tells of, and that the source would not tell of any more, would be open for ever."""
    bench.wanted("/192.0.2.1")
    bench.say(gone=("/192.0.2.1",))
    bench.source.take()

    async def full(delta: Delta) -> None:
        raise StateError("the disk is full")

    bench.demand._write, write = full, bench.demand._write
    with pytest.raises(StateError):
        bench.sweep(RECHECK_S + 1)
    assert bench.source.take() == []
    bench.demand._write = write
    bench.sweep(10)
    assert bench.source.take() == [("unsubscribe", {"/192.0.2.1"})]
    assert bench.knows() == (set(), set())


def test_a_disk_that_is_full_does_not_end_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(on_demand, "SWEEP_S", 0.01)

    async def full(delta: Delta) -> None:
        raise StateError("the disk is full")

    async def until_twice() -> None:
        bench.demand._write = full
        task = asyncio.get_running_loop().create_task(bench.demand.run())
        while caplog.text.count("the disk is full") < 2:
            bench.now += RECHECK_S + 1
            await asyncio.sleep(0.001)
        assert not task.done()
        task.cancel()

    bench.wanted("/192.0.2.1")
    bench.say(gone=("/192.0.2.1",))
    bench.run(until_twice())


def test_what_connections_use_unseen_is_in_use(bench: Bench) -> None:
    bench.wanted("/10.96.0.1")
    bench.say(WEB, SERVER)
    bench.in_use = {"10.96.0.1"}
    for _ in range(3):
        bench.sweep(IDLE_S)
    assert bench.knows()[0] == {"ns/web.svc", "server"}


def test_what_is_never_answered_is_withdrawn(bench: Bench) -> None:
    bench.wanted("/10.0.0.2")
    bench.source.take()
    bench.sweep(UNANSWERED_S + 1)
    assert bench.source.take() == [("unsubscribe", {"/10.0.0.2"})]
    assert len(bench.take_told()) == 1
    bench.wanted("/10.0.0.2")
    assert bench.source.take() == [("subscribe", {"/10.0.0.2"})]


# ── this node's pods ──


def test_a_pod_of_this_node_is_asked_for_and_stays(bench: Bench) -> None:
    bench.demand.keep("server")
    assert bench.source.take() == [("subscribe", {"server"})]
    bench.wanted("server", owner="server")
    bench.say(SERVER)
    assert bench.take_told() == [(0, ("server",), "")]
    bench.sweep(10 * IDLE_S)
    bench.demand.leave("server")
    bench.sweep(10 * IDLE_S)
    assert bench.knows()[0] == {"server"}, "its connections may go on"
    bench.say(gone=("server",))
    bench.sweep(10 * IDLE_S)
    assert ("unsubscribe", {"server"}) in bench.source.take()
    assert len(bench.demand._names) == 0


def test_a_pod_of_this_node_is_not_let_go_with_its_service(bench: Bench) -> None:
    bench.demand.keep("server")
    bench.wanted("/10.96.0.1")
    bench.say(WEB, SERVER, OTHER)
    bench.sweep(IDLE_S + 1)
    assert bench.knows()[0] == {"server"}


# ── the source is away, or the agent was ──


def test_what_is_known_stays_while_the_source_is_away(bench: Bench) -> None:
    bench.wanted("/192.0.2.1", "/10.0.0.2")
    bench.say(SERVER, gone=("/192.0.2.1",))
    bench.demand.connected(False)
    bench.source.take()
    bench.sweep(10 * IDLE_S)
    assert bench.knows() == ({"server"}, {"/192.0.2.1"})
    assert bench.source.take() == []


def test_what_is_unknown_waits_for_a_source_that_has_just_gone_and_for_no_other(bench: Bench) -> None:
    bench.demand.connected(False)
    bench.wanted("/10.0.0.2")
    assert bench.take_told() == []
    assert bench.source.take() == [("subscribe", {"/10.0.0.2"})]
    bench.now += WAIT_S + 1
    bench.wanted("/10.0.0.3")
    [(_, names, refusal)] = bench.take_told()
    assert (names, "has been away for 4 s" in refusal) == (("/10.0.0.3",), True)
    bench.wanted("/10.0.0.2", slot=1)
    assert len(bench.take_told()) == 1, "it is asked for already, and that does not help"
    bench.demand.connected(True)
    bench.sweep(UNANSWERED_S - 1)
    assert bench.source.take() == [], "it has just come back"
    bench.say(SERVER)
    assert bench.take_told() == [(0, ("/10.0.0.2",), "")]


def test_an_agent_asks_for_what_the_one_before_it_did(bench: Bench) -> None:
    bench.wanted("/192.0.2.1", "/10.96.0.1")
    bench.say(WEB, SERVER, pod("stray", "10.0.0.9"), gone=("/192.0.2.1",))
    bench.restart()
    assert bench.knows() == ({"ns/web.svc", "server", "stray"}, {"/192.0.2.1"})
    bench.start()
    assert bench.source.take() == [("subscribe", {"/192.0.2.1", "/10.96.0.1"})]
    assert bench.knows() == ({"ns/web.svc", "server"}, {"/192.0.2.1"}), "nobody would tell of what was not asked for"
    bench.sweep(IDLE_S + 1)
    assert bench.knows() == (set(), set())


# ── commands ──


def test_a_command_waits_for_an_answer(bench: Bench) -> None:
    async def ask() -> str:
        question = asyncio.get_running_loop().create_task(bench.demand.ask(["/10.0.0.2", "/192.0.2.1"]))
        await asyncio.sleep(0)
        bench.state.apply(Delta((SERVER,)))
        await bench.demand.arrived(["server"], ())
        assert not question.done()
        await bench.demand.arrived([], ["/192.0.2.1"])
        return await question

    assert bench.run(ask()) == ""
    assert bench.run(bench.demand.ask(["/10.0.0.2"])) == ""
    assert not bench.demand._questions


def test_a_command_waits_no_longer_than_a_connection(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_demand, "WAIT_S", 0.01)
    assert bench.run(bench.demand.ask(["/10.0.0.2"])) == "the source of state did not answer within 0.01 s"
    bench.demand.connected(False)
    bench.now += 60
    assert "has been away for 60 s" in bench.run(bench.demand.ask(["/10.0.0.3"]))
    assert not bench.demand._questions


def test_its_numbers(bench: Bench) -> None:
    bench.wanted("/10.0.0.2", "/192.0.2.1", "/192.0.2.2")
    bench.say(SERVER, gone=("/192.0.2.1",))
    statistics = bench.demand.statistics()
    assert statistics.names == {"present": 1, "absent": 1, "pending": 1}
    assert (statistics.asked, statistics.answers) == (3, {"present": 1, "absent": 1})
