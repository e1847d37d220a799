from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from nodeproxy.controller.status import MAX_MESSAGE, TYPE, StatusWriter
from nodeproxy.translate.notes import Note
from nodeproxy.translate.objects import AuthorizationPolicy, Metadata
from tests.unit.controller.stored import Stored
from tests.unit.controller.test_leader import Clock

KIND = "AuthorizationPolicy"
FOREIGN = {"type": "ZtunnelAccepted", "status": "True", "reason": "Accepted", "message": "attached"}


class World:
    def __init__(self) -> None:
        self.api, self.clock = Stored(), Clock()
        self.notes: list[Note] = []
        self.day = 1
        self.writer = self.another()

    def another(self) -> StatusWriter:
        return StatusWriter(
            self.api,
            lambda: self.notes,
            lambda kind, key: f"/{kind}/{key}",
            clock=self.clock,
            now=lambda: datetime(2026, 1, self.day, tzinfo=UTC),
        )

    def write(self, key: str = "s/p", generation: int = 1, conditions: list[Any] | None = None) -> None:
        """A resource is written by somebody."""
        status = {} if conditions is None else {"status": {"conditions": conditions}}
        self.api.put(f"/{KIND}/{key}", {"metadata": {"name": key}, **status})
        self.observe(key, generation)

    def observe(self, key: str = "s/p", generation: int = 1) -> None:
        self.writer.observe(KIND, key, AuthorizationPolicy(metadata=Metadata(name=key, generation=generation)))

    def note(self, key: str = "s/p", message: str = "is not understood") -> None:
        self.notes = [Note(KIND, key, "spec.rules[0]", message, "it denies")]

    def step(self) -> dict[str, Any] | None:
        """What the condition says, after what is due was written."""
        self.api.asked.clear()
        asyncio.run(self.writer.write())
        conditions = self.api.objects[f"/{KIND}/s/p"].get("status", {}).get("conditions", [])
        return next((each for each in conditions if each["type"] == TYPE), None)


@pytest.fixture
def world() -> World:
    return World()


def test_a_policy_says_whether_it_is_enforced_as_written(world: World) -> None:
    world.write()
    assert world.step() == {
        "type": "nodeproxy.io/Accepted",
        "status": "True",
        "reason": "Accepted",
        "message": "enforced as it is written",
        "observedGeneration": 1,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    world.note()
    world.day = 2
    found = world.step()
    assert found is not None
    assert (found["status"], found["reason"]) == ("False", "NotAsWritten")
    assert found["message"] == "spec.rules[0] is not understood: it denies"
    assert found["lastTransitionTime"] == "2026-01-02T00:00:00Z"


def test_only_what_differs_is_written(world: World) -> None:
    world.write()
    world.step()
    world.observe()  # our own write, as the watch tells it
    assert world.step()
    assert world.api.asked == []
    world.writer = world.another()  # the next leader
    world.observe()
    world.step()
    assert [method for method, _ in world.api.asked] == ["GET"]
    assert world.writer.writes["unchanged"] == 1


def test_another_generation_is_told_and_the_transition_is_not(world: World) -> None:
    world.write()
    world.step()
    world.day = 9
    world.observe(generation=2)
    found = world.step()
    assert found is not None
    assert (found["observedGeneration"], found["lastTransitionTime"]) == (2, "2026-01-01T00:00:00Z")


def test_what_istio_writes_as_text_is_the_same_number(world: World) -> None:
    world.write()
    found = world.step()
    assert found is not None
    world.write(conditions=[FOREIGN, {**found, "observedGeneration": "1"}])
    world.writer = world.another()
    world.observe()
    world.step()
    assert world.writer.writes == {"unchanged": 1, "written": 0, "failed": 0}


def test_conditions_of_others_stay(world: World) -> None:
    world.write(conditions=[FOREIGN])
    assert world.step()
    assert world.api.objects[f"/{KIND}/s/p"]["status"]["conditions"][0] == FOREIGN


def test_a_resource_that_changed_in_between_is_tried_again_after_a_pause(world: World) -> None:
    world.write()
    world.api.before = lambda method, path: world.write() if method == "PATCH" else None
    assert world.step() is None
    world.api.before = lambda method, path: None
    assert world.step() is None  # not at once
    world.clock.now_s += 6
    assert world.step()
    assert world.writer.writes == {"failed": 1, "written": 1, "unchanged": 0}


def test_failures_are_logged_once_and_tried_ever_more_rarely(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.write()
    world.api.failing = {"PATCH": 403}
    for _ in range(600):
        world.step()
        world.clock.now_s += 1
    assert 6 <= world.writer.writes["failed"] <= 9
    assert caplog.text.count("can't be written") == 1


def test_a_resource_that_is_gone_is_forgotten(world: World) -> None:
    world.write()
    world.writer.observe(KIND, "s/p", None)
    world.step()
    assert world.api.asked == []
    world.observe()
    world.api.objects.clear()
    world.api.objects[f"/{KIND}/s/p"] = {}
    world.api.failing = {"GET": 404}
    world.step()
    assert world.writer.writes["failed"] == 0


def test_messages_are_bounded(world: World) -> None:
    world.write()
    world.note(message="x" * (MAX_MESSAGE + 1))
    found = world.step()
    assert found is not None
    assert len(found["message"]) == MAX_MESSAGE


def test_who_does_not_lead_writes_nothing(world: World) -> None:
    world.write()
    asyncio.run(world.writer.write(lambda: False))
    assert world.api.asked == []


def test_a_rate_holds_for_all(world: World) -> None:
    for number in range(80):
        world.write(f"s/{number}")

    async def run() -> None:
        task = asyncio.create_task(world.writer.write())
        async with asyncio.timeout(5):
            while world.writer.writes["written"] < 50:
                await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())
    assert world.writer.writes["written"] == 50  # the clock stands still
