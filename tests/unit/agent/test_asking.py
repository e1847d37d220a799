"""Whose question is next: in turn, at a pace, and bounded."""

from __future__ import annotations

from collections import Counter

import pytest

from nodeproxy.agent import asking
from nodeproxy.agent.asking import BURST, BURST_OF_ASKER, MAX_WAITING, PACE, PACE_OF_ASKER, Asking


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(clock: Clock) -> Asking:
    return Asking(clock)


def test_one_is_asked_for_at_once(queue: Asking) -> None:
    assert queue.put("pod", "/192.0.2.1")
    assert queue.take() == [("pod", "/192.0.2.1")]
    assert queue.take() == []
    assert queue.delay_s() is None


def test_askers_take_turns(queue: Asking) -> None:
    for number in range(3):
        queue.put("a", f"a{number}")
    for asker in ("b", "c"):
        queue.put(asker, f"{asker}0")
    assert [name for _, name in queue.take()] == ["a0", "b0", "c0", "a1", "a2"]


def test_a_scanner_has_its_pace_and_others_none_of_it(queue: Asking, clock: Clock) -> None:
    taken: Counter[str] = Counter()
    refused = 0
    for _ in range(100):  # a second, with 5,000 questions
        for number in range(50):
            refused += not queue.put("scanner", f"/10.0.0.{number}")
        assert queue.put("honest", "/192.0.2.1")
        taken.update(asker for asker, _ in queue.take())
        clock.now += 0.01
    assert taken["honest"] == 100
    assert taken["scanner"] == pytest.approx(BURST_OF_ASKER + PACE_OF_ASKER, abs=2)
    assert queue.count in (MAX_WAITING - 1, MAX_WAITING)
    assert refused == 5000 - taken["scanner"] - queue.count


def test_all_together_have_a_pace(queue: Asking, clock: Clock) -> None:
    taken = 0
    for _ in range(100):
        for asker in range(50):
            queue.put(f"pod{asker}", "name")
            queue.put(f"pod{asker}", "name")
        taken += len(queue.take())
        clock.now += 0.01
    assert taken == pytest.approx(BURST + PACE, abs=10)


def test_it_says_when_to_come_back(queue: Asking, clock: Clock) -> None:
    for number in range(int(BURST_OF_ASKER) + 1):
        queue.put("pod", str(number))
        queue.take()
    delay_s = queue.delay_s()
    assert delay_s == pytest.approx(1 / PACE_OF_ASKER)
    clock.now += delay_s + 1e-6
    assert queue.take() == [("pod", str(int(BURST_OF_ASKER)))]


def test_who_has_been_quiet_is_forgotten(queue: Asking, clock: Clock) -> None:
    queue.put("pod", "name")
    queue.take()
    queue.forget_idle()
    assert queue._buckets
    clock.now += 1.0
    queue.forget_idle()
    assert not queue._buckets


def test_many_askers_at_once(queue: Asking, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "BURST", 10.0)
    queue = Asking(clock)
    for number in range(20):
        queue.put(f"pod{number}", "name")
    assert len(queue.take()) == 10
    assert queue.delay_s() == pytest.approx(asking._COARSE_S)
    clock.now += 1.0
    assert len(queue.take()) == 10
