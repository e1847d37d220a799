"""What is told of pods is written once, counted when it is told again, and never in anybody's way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from nodeproxy.agent.pods import events as module
from nodeproxy.agent.pods.event_api import Answer, Outcome
from nodeproxy.agent.pods.events import Events

pytestmark = pytest.mark.unit

DONE, GONE = Answer(Outcome.DONE), Answer(Outcome.GONE, "404: not found")
LATER, REFUSED = Answer(Outcome.LATER, "503: no"), Answer(Outcome.REFUSED, "422: invalid")


class Api:
    """An API server that answers as it is told to, and takes everything in the end."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.events: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.closed = 0

    async def create(self, namespace: str, event: dict[str, Any]) -> Answer:
        answer = self._answer(f"create {event['reason']}")
        if answer is DONE:
            self.events[event["metadata"]["name"]] = event
        return answer

    async def change(self, namespace: str, name: str, fields: dict[str, Any]) -> Answer:
        answer = self._answer(f"change {fields['series']['count']}")
        if answer is DONE:
            self.events[name] |= fields
        return answer

    async def close(self) -> None:
        self.closed += 1

    def _answer(self, what: str) -> Answer:
        self.asked.append(what)
        return self.answers.pop(0) if self.answers else DONE

    def counts(self) -> dict[str, int]:
        return {event["reason"]: count(event) for event in self.events.values()}


def count(event: dict[str, Any]) -> int:
    return int(event["series"]["count"]) if "series" in event else 1


class Clock:
    def __init__(self) -> None:
        self.now = 1000.25

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PACE_S", "FIRST_PAUSE_S"):
        monkeypatch.setattr(module, name, 0.0)


def make(api: Api | None = None) -> tuple[Events, Api, Clock]:
    api, clock = api or Api(), Clock()
    return Events("n1", api, clock=clock, wall=lambda: clock.now), api, clock


def tell(events: Events, reason: str = "Enrolled", name: str = "web", message: str = "in", warning: bool = False) -> None:
    events.tell("shop", name, "u1", reason, message, warning)


def during(events: Events, body: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        task = asyncio.create_task(events.run())
        try:
            await body()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(asyncio.wait_for(run(), 5.0))


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0)


def test_an_event_says_what_kubernetes_own_say() -> None:
    events, api, _ = make()

    async def body() -> None:
        tell(events, "EnrolmentFailed", "w" * 250, "it has no address: " + "é" * 2000, warning=True)
        await until(lambda: api.events)

    during(events, body)
    ((name, event),) = api.events.items()
    assert len(name) <= 253
    assert event["regarding"] == {"apiVersion": "v1", "kind": "Pod", "namespace": "shop", "name": "w" * 250, "uid": "u1"}
    assert (event["type"], event["eventTime"], "series" in event) == ("Warning", "1970-01-01T00:16:40.250000Z", False)
    assert (event["reportingController"], event["reportingInstance"]) == ("nodeproxy.io/agent", "n1")
    assert module.MAX_NOTE_BYTES - 3 <= len(event["note"].encode()) <= module.MAX_NOTE_BYTES
    assert api.closed >= 1


def test_what_is_told_again_is_counted_once_a_minute_in_the_event_that_there_is() -> None:
    events, api, clock = make()

    async def body() -> None:
        for _ in range(3):
            tell(events)
        tell(events, message="another")
        await until(lambda: not events.statistics().waiting)
        assert [count(event) for event in api.events.values()] == [3, 1]
        for _ in range(100):
            tell(events)
        clock.now += module.REPEAT_S
        tell(events)
        await until(lambda: not events.statistics().waiting)
        # An Event ends after an hour: then it is a new one, with all that there was.
        clock.now += module.REPEAT_S
        api.answers = [GONE]
        tell(events)
        await until(lambda: not events.statistics().waiting)

    during(events, body)
    assert api.asked == ["create Enrolled", "create Enrolled", "change 104", "change 105", "create Enrolled"]
    assert [count(event) for event in api.events.values()] == [104, 1, 105]
    assert events.statistics().results["written"] == 4


def test_after_ten_minutes_it_is_another_event() -> None:
    events, api, clock = make()

    async def body() -> None:
        tell(events)
        await until(lambda: api.events)
        clock.now += module.FORGET_S
        tell(events)
        await until(lambda: len(api.events) == 2)

    during(events, body)
    assert [count(event) for event in api.events.values()] == [1, 1]


def test_while_the_server_takes_nothing_it_is_asked_less_and_less_and_then_told_all(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 1.0)
    events, api, _ = make()
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def sleeping(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr(module.asyncio, "sleep", sleeping)
    api.answers = [LATER] * 8 + [Answer(Outcome.LATER, "429", 50.0), Answer(Outcome.LATER, "429", 5000.0)]
    caplog.set_level(logging.INFO)

    async def body() -> None:
        tell(events, "A")
        tell(events, "B")
        while events.statistics().waiting:
            await sleep(0)

    during(events, body)
    for pause, longest in zip(pauses, (1, 2, 4, 8, 16, 32, 60, 60), strict=False):
        assert longest / 2 <= pause <= longest
    assert pauses[8] >= 50.0
    assert pauses[9] == 60.0
    assert api.asked[:4] == ["create A", "create B", "create A", "create B"]  # one alone holds up no other
    assert api.counts() == {"A": 1, "B": 1}
    assert events.statistics().results == {
        "written": 2,
        "failed": 10,
        "refused": 0,
        "stale": 0,
        "dropped_full": 0,
        "dropped_pod": 0,
    }
    said = [record.getMessage() for record in caplog.records]
    assert said == ["Events on pods can't be written, and wait: 503: no", "Events on pods can be written again"]


def test_what_is_refused_is_not_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    events, api, _ = make()
    api.answers = [REFUSED]

    async def body() -> None:
        tell(events, "A")
        tell(events, "B")
        await until(lambda: not events.statistics().waiting)

    during(events, body)
    assert api.counts() == {"B": 1}
    assert events.statistics().results["refused"] == 1
    assert "no Event A on pod shop/web: 422: invalid" in caplog.text


def test_a_pod_that_has_much_to_tell_crowds_out_nobody_and_room_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_EVENTS", 50)
    events, api, clock = make()
    for number in range(1000):
        tell(events, message=f"hostile {number}")
    assert events.statistics().waiting == module.MAX_OF_A_POD
    for number in range(60):
        tell(events, name=f"pod-{number}")
    assert events.statistics().waiting == 50
    assert events.statistics().results["dropped_pod"] == 990
    assert events.statistics().results["dropped_full"] == 20

    async def body() -> None:
        await until(lambda: not events.statistics().waiting)
        tell(events, name="late")  # what has been written makes room
        await until(lambda: not events.statistics().waiting)
        # What could not be written for ten minutes is over.
        api.answers = [LATER] * 1000
        tell(events, name="stale")
        await until(lambda: events.statistics().results["failed"])
        clock.now += module.FORGET_S
        await until(lambda: not events.statistics().waiting)

    during(events, body)
    assert len(api.events) == 51
    assert events.statistics().results["stale"] == 1
    assert (len(events._events), len(events._of_pod)) == (0, 0)


def test_an_event_that_is_forgotten_while_it_is_written_does_no_harm() -> None:
    events, api, clock = make()

    class Slow(Api):
        async def create(self, namespace: str, event: dict[str, Any]) -> Answer:
            if not self.asked:
                clock.now += module.FORGET_S
                tell(events)  # which forgets the one that is being written
            return await super().create(namespace, event)

    slow = events._api = Slow()

    async def body() -> None:
        tell(events)
        await until(lambda: len(slow.events) == 2)
        await until(lambda: not events.statistics().waiting)

    during(events, body)
    assert [count(event) for event in slow.events.values()] == [1, 1]


def test_without_anybody_to_tell_nothing_is_kept() -> None:
    events = Events("n1", None)
    tell(events)
    assert not events.on
    assert events.statistics().waiting == 0

    async def body() -> None:
        await asyncio.sleep(0)

    during(events, body)


def test_warnings_go_first_and_find_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a namespace of many pods is labelled, and one of them can't be put in."""
    monkeypatch.setattr(module, "MAX_EVENTS", 50)
    events, api, _ = make()
    for number in range(50):
        tell(events, name=f"pod-{number}")
    tell(events, "EnrolmentFailed", name="broken", warning=True)
    assert events.statistics().waiting == 50
    assert events.statistics().results["dropped_full"] == 1

    async def body() -> None:
        await until(lambda: not events.statistics().waiting)

    during(events, body)
    assert api.asked == ["create EnrolmentFailed", *["create Enrolled"] * 49]
    monkeypatch.setattr(module, "MAX_EVENTS", 2)
    events, _, _ = make()
    for number in range(3):
        tell(events, "EnrolmentFailed", name=f"broken-{number}", warning=True)
    assert events.statistics().waiting == 2  # nobody makes room for those that are no better
