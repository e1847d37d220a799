from __future__ import annotations

import pytest

from nodeproxy.translate.notes import MAX_NOTES, MAX_QUOTED, Note, Notes, member, quoted


def test_a_note_says_where_what_and_what_of_it() -> None:
    note = Note("AuthorizationPolicy", "ns/a", "spec.action", "is AUDIT", "nothing is done")
    assert str(note) == "AuthorizationPolicy ns/a: spec.action is AUDIT: nothing is done"


def test_notes_of_a_resource_are_bounded() -> None:
    notes = Notes("Kind", "ns/a")
    for index in range(MAX_NOTES):
        notes.add(f"spec.f{index}", "is bad", "is left out")
    assert len(notes.all()) == MAX_NOTES
    notes.add("spec.more", "is bad", "is left out")
    assert len(notes.all()) == MAX_NOTES + 1
    assert notes.all()[-1].message == "has 1 more such fields"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("a'b", '"a\'b"'),
        (None, "None"),
        (True, "True"),
        (80, "80"),
        (1.5, "1.5"),
        ([], "a list"),
        ({}, "a dict"),
        (-(2**64), "a number"),
        ("x" * 1000, repr("x" * MAX_QUOTED + "…")),
    ],
)
def test_quoted(value: object, said: str) -> None:
    assert quoted(value) == said


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("a", "spec.a"),
        ("", "spec['']"),
        (80, "spec[80]"),
        (2**64, "spec[a number]"),
        ("x" * 99, f"spec[{'x' * MAX_QUOTED + '…'!r}]"),
    ],
)
def test_member(name: object, path: str) -> None:
    assert member("spec", name) == path
