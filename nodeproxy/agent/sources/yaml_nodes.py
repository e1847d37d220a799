"""YAML with a place for every value, so that an error in a file can say FILE:LINE:COLUMN.

A `Node` is asked for what the reader expects of it, and raises ConfigError with its place if it is something else.
Invariants: a key is never read twice, an unknown key is never ignored, text is never guessed from a number or a boolean.
Knows what YAML takes a value for, not what a file means.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple, TypeVar

from nodeproxy.agent.sources.yaml_stream import BOOLEAN, MERGE, NULL, TAG, TEXT, Branch, Tree, tag_of
from nodeproxy.errors import ConfigError

_T = TypeVar("_T")
_KINDS = {"str": "text", "int": "a number", "bool": "a boolean", "null": "nothing", "float": "a decimal number", "map": "a map"}
_MAX_DIGITS = 20  # more than any number here has; int() refuses thousands


class Place(NamedTuple):
    """Where a value begins; lines and columns from 1."""

    file: str
    line: int
    column: int

    def error(self, reason: str) -> ConfigError:
        """What to raise for what stands here."""
        return ConfigError(f"{self.file}:{self.line}:{self.column}: {reason}")


class Node:
    """A value of the document and where it stands."""

    __slots__ = ("_file", "_tree", "name")

    def __init__(self, file: str, tree: Tree, name: str) -> None:
        self._file, self._tree, self.name = file, tree, name

    @property
    def place(self) -> Place:
        """Where it begins."""
        mark = self._tree.start_mark
        return Place(self._file, mark.line + 1, mark.column + 1)

    def error(self, reason: str) -> ConfigError:
        """What to raise for this value."""
        return self.place.error(reason)

    def _wrong(self, wanted: str) -> ConfigError:
        tree, kind = self._tree, tag_of(self._tree).removeprefix(TAG)
        if isinstance(tree, Branch):
            return self.error(f"{self.name} must be {wanted}, not {_KINDS.get(kind, kind) if tree.is_map else 'a list'}")
        shown = f" ({tree.value})" if tree.value else ""
        return self.error(f"{self.name} must be {wanted}, not {_KINDS.get(kind, kind)}{shown}")

    @property
    def is_null(self) -> bool:
        """Whether it says nothing: `key:` or `~`."""
        return tag_of(self._tree) == NULL

    @property
    def is_map(self) -> bool:
        """Whether it is a map."""
        return isinstance(self._tree, Branch) and self._tree.is_map

    @property
    def local_tag(self) -> str:
        """ "Exact" of `!Exact foo`, "" without such a tag."""
        tag = tag_of(self._tree)
        return tag[1:] if tag.startswith("!") else ""

    def fields(self, known: Collection[str]) -> Fields:
        """A map with these keys, each at most once.  known: text to YAML even without quotes."""
        tree = self._tree
        if not isinstance(tree, Branch) or not tree.is_map:
            raise self._wrong("a map")
        found: dict[str, Tree] = {}
        for key, value in _pairs(tree):
            name = "" if isinstance(key, Branch) else key.value
            if name not in known or name in found or key.tag is not None:
                self._check_keys(known)  # raises, unless it is but the tag that every text has
            found[name] = value
        return Fields(self, self._file, found)

    def _check_keys(self, known: Collection[str]) -> None:
        for key, _ in self.entries():
            name = key.text()
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
                advice = f"did you mean {close[0]}?" if close else f"it may have {', '.join(known)}"
                raise key.error(f"{self.name} has no key {name!r}; {advice}")

    def entries(self) -> list[tuple[Node, Node]]:
        """The keys and values of a map with free keys, no key twice."""
        tree = self._tree
        if not isinstance(tree, Branch) or not tree.is_map:
            raise self._wrong("a map")
        seen: dict[str, int] = {}
        pairs = []
        for key_tree, value_tree in _pairs(tree):
            key = Node(self._file, key_tree, f"a key of {self.name}")
            text = key.raw()
            if tag_of(key_tree) == MERGE:
                raise key.error(f"{self.name} uses a merge key (<<), which is not supported; write the keys out")
            if text in seen:
                raise key.error(f"{self.name} has the key {text!r} twice, first in line {seen[text]}; remove one")
            seen[text] = key_tree.start_mark.line + 1
            pairs.append((key, Node(self._file, value_tree, f"{self.name}[{text}]")))
        return pairs

    def items(self, *, of: str) -> list[Node]:
        """The items of a list; of: what one is called in errors."""
        tree = self._tree
        if not isinstance(tree, Branch) or tree.is_map:
            raise self._wrong("a list")
        return [Node(self._file, item, of) for item in tree.children]

    def raw(self) -> str:
        """A scalar as it is written, whatever type YAML takes it for: for addresses, as 1:2:3:4:5:6:7:8 is a number to YAML."""
        tree = self._tree
        if isinstance(tree, Branch):
            raise self._wrong("a single value")
        return str(tree.value)

    def text(self) -> str:
        """Text."""
        tree, tag = self._tree, tag_of(self._tree)
        is_branch = isinstance(tree, Branch)
        if tag != TEXT and (is_branch or not tag.startswith("!")):
            raise self._wrong("text" if is_branch else "text; put it in quotes")
        return self.raw()

    def boolean(self) -> bool:
        """true or false."""
        if tag_of(self._tree) != BOOLEAN:
            raise self._wrong("true or false")
        return self.raw().lower() in ("true", "yes", "on")

    def integer(self, low: int, high: int) -> int:
        """A decimal number within bounds, in quotes or not."""
        text = self.raw()
        if not text.isascii() or not text.isdigit() or len(text) > _MAX_DIGITS or not low <= int(text) <= high:
            raise self.error(f"{self.name} must be a number from {low} to {high}, not {text!r}")
        return int(text)

    def choice(self, values: Mapping[str, _T]) -> _T:
        """One of some words, whatever their case; `WorkloadSelector` and `WORKLOAD_SELECTOR` are the same word."""
        text = self.raw()
        if text in values:
            return values[text]
        by_word = {_word(word): value for word, value in values.items()}
        if _word(text) not in by_word:
            raise self.error(f"{self.name} must be one of {', '.join(values)}, not {text!r}")
        return by_word[_word(text)]


def _pairs(tree: Branch) -> Iterator[tuple[Tree, Tree]]:
    keys_and_values = iter(tree.children)
    return zip(keys_and_values, keys_and_values, strict=True)


def _word(text: str) -> str:
    return text.replace("_", "").lower()


class Fields:
    """A map whose keys are known.

    A key that says nothing is an error: `policies:`, left empty by a half-finished edit, must not lift all policies.
    """

    __slots__ = ("_file", "_found", "_owner")

    def __init__(self, owner: Node, file: str, found: dict[str, Tree]) -> None:
        self._owner, self._file, self._found = owner, file, found
        for name, tree in found.items():
            if tag_of(tree) == NULL:
                raise Node(file, tree, name).error(f"{name} says nothing; give it a value or remove it")

    def get(self, name: str) -> Node | None:
        """The value of a key that may be absent."""
        tree = self._found.get(name)
        return None if tree is None else Node(self._file, tree, name)

    def need(self, name: str) -> Node:
        """The value of a key that must be there."""
        tree = self._found.get(name)
        if tree is None:
            raise self._owner.error(f"{self._owner.name} needs the key {name!r}; add it")
        return Node(self._file, tree, name)

    def text(self, name: str, default: str = "") -> str:
        """Text, or the default."""
        tree = self._found.get(name)
        return default if tree is None else Node(self._file, tree, name).text()

    def boolean(self, name: str) -> bool:
        """true or false, false if absent."""
        tree = self._found.get(name)
        return tree is not None and Node(self._file, tree, name).boolean()

    def items(self, name: str, *, of: str) -> list[Node]:
        """The items of a list, none if absent."""
        tree = self._found.get(name)
        return [] if tree is None else Node(self._file, tree, name).items(of=of)
