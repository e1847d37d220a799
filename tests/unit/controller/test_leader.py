from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from nodeproxy.controller.leader import LEASE_S, RENEW_DEADLINE_S, Leader
from tests.unit.controller.stored import Stored

PATH = "/apis/coordination.k8s.io/v1/namespaces/home/leases/nodeproxy-controller"


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Candidates:
    """Several, over one store; each has the same clock, and a time of day of its own."""

    def __init__(self) -> None:
        self.api = Stored()
        self.clock = Clock()

    def candidate(self, identity: str, year: int = 2026) -> Leader:
        day = datetime(year, 1, 2, 3, 4, 5, 6, UTC)
        return Leader(self.api, "home", identity, clock=self.clock, now=lambda: day, randomly=lambda: 0.0)

    @property
    def spec(self) -> dict[str, Any]:
        return self.api.objects[PATH]["spec"]


@pytest.fixture
def world() -> Candidates:
    return Candidates()


def try_once(*candidates: Leader) -> None:
    async def run() -> None:
        for each in candidates:
            await each.try_once()

    asyncio.run(run())


def test_the_first_one_makes_the_lease_and_leads(world: Candidates) -> None:
    a, b = world.candidate("a"), world.candidate("b")
    try_once(a, b)
    assert (a.leads(), b.leads()) == (True, False)
    assert world.spec == {
        "holderIdentity": "a",
        "leaseDurationSeconds": 15,
        "acquireTime": "2026-01-02T03:04:05.000006Z",
        "renewTime": "2026-01-02T03:04:05.000006Z",
        "leaseTransitions": 0,
    }


def test_a_leader_that_renews_stays_one(world: Candidates) -> None:
    a, b = world.candidate("a"), world.candidate("b")
    for _ in range(20):
        try_once(a, b)
        assert (a.leads(), b.leads()) == (True, False)
        world.clock.now_s += 2
    assert a.terms == 1
    assert world.spec["leaseTransitions"] == 0


def test_a_silent_one_leads_no_more_before_another_begins(world: Candidates) -> None:
    a, b = world.candidate("a"), world.candidate("b")
    try_once(a, b)
    for second in range(1, 30):
        world.clock.now_s += 1
        try_once(b)
        assert not (a.leads() and b.leads())
        assert a.leads() == (second < RENEW_DEADLINE_S)
        assert b.leads() == (second >= LEASE_S)
    assert world.spec["holderIdentity"] == "b"
    assert world.spec["leaseTransitions"] == 1
    try_once(a)
    assert not a.leads()


@pytest.mark.parametrize("year", [1970, 2100])
def test_a_clock_that_is_wrong_takes_no_lease_from_others(world: Candidates, year: int) -> None:
    a, b = world.candidate("a", year), world.candidate("b")
    for _ in range(20):
        try_once(a, b)
        assert (a.leads(), b.leads()) == (True, False)
        world.clock.now_s += 2


def test_a_lease_that_was_let_go_is_taken_at_once(world: Candidates) -> None:
    a, b = world.candidate("a"), world.candidate("b")
    try_once(a, b)
    asyncio.run(a.release())
    assert not a.leads()
    assert world.spec["holderIdentity"] == ""
    try_once(b)
    assert b.leads()
    asyncio.run(a.release())  # it is not its own any more
    assert world.spec["holderIdentity"] == "b"


def test_of_two_that_see_it_free_one_gets_it(world: Candidates) -> None:
    a, b, c = (world.candidate(name) for name in "abc")
    try_once(a)
    asyncio.run(a.release())
    in_between = True

    def interfere(method: str, path: str) -> None:
        nonlocal in_between
        if method == "PATCH" and in_between:
            in_between = False
            world.api.put(PATH, {"metadata": {}, "spec": {"holderIdentity": "c", "leaseDurationSeconds": 15}})

    world.api.before = interfere
    try_once(b)
    assert not b.leads()
    try_once(c)
    assert c.leads()


def test_without_the_api_server_nobody_leads_for_long(world: Candidates, caplog: pytest.LogCaptureFixture) -> None:
    a = world.candidate("a")
    try_once(a)
    world.api.failing = {"GET": 0, "PATCH": 0}
    for _ in range(12):
        world.clock.now_s += 1
        try_once(a)
    assert not a.leads()
    assert "a test says so" in caplog.text
    world.api.failing = {}
    try_once(a)
    assert a.leads()
    assert a.terms == 2
    assert world.spec["leaseTransitions"] == 0  # nobody else had it


def test_what_others_wrote_into_the_lease_stays(world: Candidates) -> None:
    a = world.candidate("a")
    world.api.put(PATH, {"metadata": {"labels": {"x": "y"}}, "spec": {"strategy": "OldestEmulationVersion"}})
    try_once(a)
    assert a.leads()
    assert world.spec["strategy"] == "OldestEmulationVersion"
    assert world.api.objects[PATH]["metadata"]["labels"] == {"x": "y"}


def test_garbage_in_the_lease_is_told_and_taken_for_no_lead(world: Candidates, caplog: pytest.LogCaptureFixture) -> None:
    a = world.candidate("a")
    world.api.put(PATH, {"spec": {"holderIdentity": 7}})
    try_once(a)
    assert not a.leads()
    assert "can't be found out" in caplog.text
