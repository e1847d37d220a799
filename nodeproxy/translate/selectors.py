"""Which workloads of a namespace a policy is for: by their labels, found without asking every policy.

Invariant: a selector that can't be read selects too many workloads, never too few; who holds it must then deny by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from nodeproxy.translate.notes import Notes, member, quoted
from nodeproxy.translate.selection import Selectors

_UNSURE = "more workloads are selected than may be meant"


class Selector(msgspec.Struct, frozen=True):
    """Labels that a workload must have, sorted; none: every workload is selected.

    sure: this is all that was written; else fewer workloads may be meant.
    """

    labels: tuple[tuple[str, str], ...] = ()
    sure: bool = True


def read_selector(value: Any, notes: Notes) -> Selector | None:
    """`spec.selector` of a policy; None if there is none."""
    if value is None:
        return None
    if not isinstance(value, dict):
        notes.add("spec.selector", f"is {quoted(value)}, not an object", _UNSURE)
        return Selector(sure=False)
    sure = True
    for name in value:
        if name != "matchLabels":
            notes.add(member("spec.selector", name), "is not known", _UNSURE)
            sure = False
    labels = value.get("matchLabels")
    if labels is None:
        labels = {}
    elif not isinstance(labels, dict):
        notes.add("spec.selector.matchLabels", f"is {quoted(labels)}, not an object", _UNSURE)
        labels, sure = {}, False
    known = []
    for name, label in labels.items():
        # The definition of these resources refuses wildcards, which no label has: the policy would select nothing.
        if isinstance(name, str) and isinstance(label, str) and name and "*" not in name + label:
            known.append((name, label))
        else:
            notes.add(member("spec.selector.matchLabels", name), f"is {quoted(label)}, which no label can be", _UNSURE)
            sure = False
    return Selector(tuple(sorted(known)), sure)


class SelectorIndex:
    """Selectors by key: `selection.Selectors`, but that one without labels, which selects nobody there, selects all here."""

    __slots__ = ("_by_key", "_every", "_some")

    def __init__(self) -> None:
        self._by_key: dict[str, Selector] = {}
        self._every: set[str] = set()
        self._some: Selectors[str] = Selectors()

    def __bool__(self) -> bool:
        return bool(self._by_key)

    def set(self, key: str, selector: Selector | None) -> None:
        """Puts `selector` in the place of the one of `key`; None: there is none any more."""
        old = self._by_key.pop(key, None)
        if old is not None:
            self._every.discard(key)
            self._some.discard(dict(old.labels), key)
        if selector is not None:
            self._by_key[key] = selector
            if not selector.labels:
                self._every.add(key)
            self._some.add(dict(selector.labels), key)

    def matching(self, labels: Mapping[str, str]) -> list[str]:
        """The keys of the selectors that select a workload with `labels`, in no order."""
        return [*self._every, *self._some.selecting(labels)]
