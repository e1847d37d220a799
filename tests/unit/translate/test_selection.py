from __future__ import annotations

import pytest

from nodeproxy.translate.objects import LabelSelector, SelectorRequirement
from nodeproxy.translate.selection import Labelled, Selectors, matches, selects

pytestmark = pytest.mark.unit


def test_an_empty_selector_selects_nothing_and_a_full_one_what_has_all():
    assert not selects({}, {"a": "1"})
    assert selects({"a": "1"}, {"a": "1", "b": "2"})
    assert not selects({"a": "1", "b": "1"}, {"a": "1", "b": "2"})


def test_things_are_found_by_selector_until_they_go():
    things: Labelled[str] = Labelled()
    things.add({"a": "1", "b": "2"}, "x")
    things.add({"a": "1"}, "y")
    assert set(things.selected({"a": "1"})) == {"x", "y"}
    assert set(things.selected({"a": "1", "b": "2"})) == {"x"}
    assert not things.selected({"a": "1", "c": "3"})
    assert not things.selected({})
    things.discard({"a": "1", "b": "2"}, "x")
    things.discard({"a": "1"}, "y")
    assert not things.selected({"a": "1"})


def test_selectors_are_found_by_labels_until_they_go():
    selectors: Selectors[str] = Selectors()
    selectors.add({"a": "1", "b": "2"}, "x")
    selectors.add({"b": "2"}, "y")
    selectors.add({}, "z")
    assert set(selectors.selecting({"a": "1", "b": "2", "c": "3"})) == {"x", "y"}
    assert set(selectors.selecting({"a": "1"})) == set()
    selectors.discard({"b": "2"}, "y")
    selectors.discard({}, "z")
    assert set(selectors.selecting({"b": "2"})) == set()


@pytest.mark.parametrize(
    ("operator", "values", "there", "missing"),
    [
        ("In", ("1", "2"), True, False),
        ("In", ("2",), False, False),
        ("NotIn", ("1",), False, True),
        ("NotIn", ("2",), True, True),
        ("Exists", (), True, False),
        ("DoesNotExist", (), False, True),
        ("Unknown", (), False, False),
    ],
)
def test_expressions_ask_as_kubernetes_does(operator, values, there, missing):
    selector = LabelSelector(match_expressions=(SelectorRequirement(key="a", operator=operator, values=values),))
    assert matches(selector, {"a": "1"}) is there
    assert matches(selector, {}) is missing


def test_no_selector_matches_nothing_and_an_empty_one_all():
    assert not matches(None, {})
    assert matches(LabelSelector(), {})
    assert not matches(LabelSelector(match_labels={"a": "1"}), {"a": "2"})
