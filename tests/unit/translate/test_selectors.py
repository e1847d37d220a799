from __future__ import annotations

from typing import Any

import pytest

from nodeproxy.translate.notes import Notes
from nodeproxy.translate.selectors import Selector, SelectorIndex, read_selector


@pytest.mark.parametrize(
    ("written", "selector", "fields"),
    [
        (None, None, []),
        ({}, Selector(), []),
        ({"matchLabels": None}, Selector(), []),
        ({"matchLabels": {}}, Selector(), []),
        ({"matchLabels": {"b": "2", "a": "1"}}, Selector((("a", "1"), ("b", "2"))), []),
        ("app", Selector(sure=False), ["spec.selector"]),
        ({"matchLabels": ["a"]}, Selector(sure=False), ["spec.selector.matchLabels"]),
        ({"matchLabels": {"a": 1, "b": "2"}}, Selector((("b", "2"),), sure=False), ["spec.selector.matchLabels.a"]),
        ({"matchLabels": {"a": "*"}}, Selector(sure=False), ["spec.selector.matchLabels.a"]),
        ({"matchLabels": {"": "a"}}, Selector(sure=False), ["spec.selector.matchLabels['']"]),
        ({"matchExpressions": [], "matchLabels": {"a": "1"}}, Selector((("a", "1"),), False), ["spec.selector.matchExpressions"]),
    ],
)
def test_reading(written: Any, selector: Selector | None, fields: list[str]) -> None:
    notes = Notes("AuthorizationPolicy", "ns/a")
    assert read_selector(written, notes) == selector
    assert [note.field for note in notes.all()] == fields


def test_an_index_finds_what_selects() -> None:
    index = SelectorIndex()
    index.set("all", Selector())
    index.set("web", Selector((("app", "web"),)))
    index.set("web-1", Selector((("app", "web"), ("version", "1"))))
    assert sorted(index.matching({})) == ["all"]
    assert sorted(index.matching({"app": "web", "version": "2"})) == ["all", "web"]
    assert sorted(index.matching({"version": "1", "app": "web", "x": "y"})) == ["all", "web", "web-1"]
    index.set("web", Selector((("app", "db"),)))
    index.set("all", None)
    index.set("unheard-of", None)
    assert sorted(index.matching({"version": "1", "app": "web"})) == ["web-1"]
    assert index
    index.set("web", None)
    index.set("web-1", None)
    assert not index
