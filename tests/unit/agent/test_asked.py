"""The names that the source was asked for: accounted, used, and making room fairly."""

from __future__ import annotations

import pytest

from nodeproxy.agent import asked
from nodeproxy.agent.asked import AskedNames


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> AskedNames:
    monkeypatch.setattr(asked, "MAX_NAMES", 6)
    monkeypatch.setattr(asked, "ROOM", 2)
    return AskedNames()


def test_who_has_the_most_makes_room_by_what_was_not_used_longest(names: AskedNames) -> None:
    names.add("mine", "me", 1.0)
    for number in range(4):
        names.add(f"theirs{number}", "scanner", 2.0 + number)
    assert names.to_make_room() == []
    names.add("theirs4", "scanner", 9.0)
    first = names.get("theirs0")
    assert first is not None
    names.use(first, 10.0)
    assert names.to_make_room() == ["theirs1", "theirs2"]


def test_what_is_pinned_is_not_counted_and_stays(names: AskedNames) -> None:
    for number in range(6):
        names.add(str(number), "pod", 1.0)
    assert names.to_make_room() == ["0", "1"]
    names.pin("0", 2.0)
    pinned = names.pin("own", 2.0)
    names.use(pinned, 3.0)
    assert names.to_make_room() == []
    assert len(names) == 7
    names.unpin(pinned)
    assert names.to_make_room() == ["1", "2"]
    assert names.remove("own") is pinned
    assert names.remove("own") is None
    assert "own" not in names


def test_an_owner_with_nothing_is_forgotten(names: AskedNames) -> None:
    names.add("one", "pod", 1.0)
    names.remove("one")
    assert not names._owners
    assert list(names) == []
