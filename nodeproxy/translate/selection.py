"""Who selects whom by labels, found without asking everybody.

Invariant: a look-up costs what it finds, not what there is.  An empty selector selects nothing, as Kubernetes and Istio mean it
for services.  Knows labels alone, not what has them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Generic, TypeVar

from nodeproxy.translate.objects import LabelSelector

T = TypeVar("T")
Labels = Mapping[str, str]
_Pair = tuple[str, str]


def selects(selector: Labels, labels: Labels) -> bool:
    """Whether all of a selector's pairs are among the labels; an empty one selects nothing."""
    return bool(selector) and all(labels.get(key) == value for key, value in selector.items())


def matches(selector: LabelSelector | None, labels: Labels) -> bool:
    """Kubernetes' label selector: none selects nothing, an empty one all.  An unknown operator selects nothing."""
    if selector is None:
        return False
    if any(labels.get(key) != value for key, value in selector.match_labels.items()):
        return False
    for item in selector.match_expressions:
        there = item.key in labels
        holds = {
            "In": there and labels.get(item.key) in item.values,
            "NotIn": not there or labels.get(item.key) not in item.values,
            "Exists": there,
            "DoesNotExist": not there,
        }.get(item.operator, False)
        if not holds:
            return False
    return True


class Labelled(Generic[T]):
    """Things by their labels, for a selector that looks for them."""

    def __init__(self) -> None:
        self._by_pair: dict[_Pair, set[T]] = {}

    def add(self, labels: Labels, thing: T) -> None:
        """`thing` has these labels."""
        for pair in labels.items():
            self._by_pair.setdefault(pair, set()).add(thing)

    def discard(self, labels: Labels, thing: T) -> None:
        """`thing`, which was added with these labels, is gone."""
        for pair in labels.items():
            _discard(self._by_pair, pair, thing)

    def selected(self, selector: Labels) -> Iterable[T]:
        """The things that a selector selects."""
        found = [self._by_pair.get(pair) for pair in selector.items()]
        if not found or None in found:
            return ()
        sets = sorted((item for item in found if item), key=len)
        return sets[0].intersection(*sets[1:])


class Selectors(Generic[T]):
    """Things by their selectors, for labels that look for them."""

    def __init__(self) -> None:
        self._by_first: dict[_Pair, dict[T, Labels]] = {}

    def add(self, selector: Labels, thing: T) -> None:
        """`thing` selects by this selector."""
        if selector:
            self._by_first.setdefault(min(selector.items()), {})[thing] = selector

    def discard(self, selector: Labels, thing: T) -> None:
        """`thing`, which was added with this selector, is gone."""
        if selector:
            first = min(selector.items())
            things = self._by_first.get(first)
            if things is not None:
                things.pop(thing, None)
                if not things:
                    del self._by_first[first]

    def selecting(self, labels: Labels) -> Iterator[T]:
        """The things that select these labels."""
        for pair in labels.items():
            for thing, selector in self._by_first.get(pair, {}).items():
                if selects(selector, labels):
                    yield thing


def _discard(sets: dict[_Pair, set[T]], pair: _Pair, thing: T) -> None:
    things = sets.get(pair)
    if things is not None:
        things.discard(thing)
        if not things:
            del sets[pair]
