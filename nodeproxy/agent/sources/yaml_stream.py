"""A YAML document read as a stream of libyaml's events, so that a file of any length is never in memory as a tree.

A *tree* is what one value becomes: a scalar is libyaml's own event, a list or map a `Branch`.  PyYAML's composer makes the same
of the whole file at once: ten times the file's size in memory, and every scalar's type found out whether it is asked for or not.
Invariants: what `yaml.CSafeLoader.get_single_node` refuses is refused here, in the same words; an alias is the very tree that its
anchor stands for.  Knows YAML's structure, not what a value is taken for (`yaml_nodes`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol, TypeAlias, cast

import yaml

from nodeproxy.errors import ConfigError

# In one item of a list of the root.  A policy that names 10,000 principals has 50,000; a value takes some 300 bytes.
MAX_VALUES = 500_000

TAG = "tag:yaml.org,2002:"
TEXT, NULL, BOOLEAN, MERGE = TAG + "str", TAG + "null", TAG + "bool", TAG + "merge"
_MAP, _LIST = TAG + "map", TAG + "seq"


class Mark(Protocol):
    """Where something begins; line and column from 0."""

    line: int
    column: int


class Scalar(Protocol):
    """libyaml's event of a value that is neither list nor map.  implicit: whether it is without quotes, and with."""

    value: str
    tag: str | None
    implicit: tuple[bool, bool]
    start_mark: Mark


class Branch:
    """A list with its items, or a map with its keys and values in turn."""

    __slots__ = ("children", "is_map", "start_mark", "tag")

    def __init__(self, event: Any, *, is_map: bool) -> None:
        self.is_map = is_map
        self.start_mark: Mark = event.start_mark
        self.tag: str = event.tag if event.tag not in (None, "!") else _MAP if is_map else _LIST
        self.children: list[Tree] = []


Tree: TypeAlias = Scalar | Branch


def tag_of(tree: Tree) -> str:
    """What YAML takes a value for, its tag in full."""
    if isinstance(tree, Branch):
        return tree.tag
    if tree.tag is not None and tree.tag != "!":
        return tree.tag
    return _plain_tag(tree.value) if tree.implicit[0] else TEXT


_RESOLVER: Any = yaml.resolver.Resolver()
_MAYBE_NOT_TEXT = frozenset(_RESOLVER.yaml_implicit_resolvers)  # first characters of what may be a number, a boolean, nothing …


def _plain_tag(value: str) -> str:
    """Of a scalar without quotes and without a tag."""
    return _resolve(value) if value[:1] in _MAYBE_NOT_TEXT else TEXT


@lru_cache(maxsize=4096)
def _resolve(value: str) -> str:
    return str(_RESOLVER.resolve(yaml.ScalarNode, value, (True, False)))


class Stream:
    """One document.  anchors: trees by the name of their anchor; an alias may stand anywhere after it."""

    def __init__(self, file: str, content: bytes) -> None:
        self._file = file
        self._loader = yaml.CSafeLoader(content)
        self._next: Callable[[], Any] = self._loader.get_event  # one of yaml.events
        self.anchors: dict[str, Tree] = {}

    def read(self, on_item: Callable[[str, Tree], None] | None = None) -> Tree:
        """The root of the only document.  Raises ConfigError.

        on_item: gets each item of a list that is a value of the root map, with that value's key, and the list is then empty.
        """
        try:
            return self._read(on_item)
        except yaml.MarkedYAMLError as exc:
            mark = exc.problem_mark or exc.context_mark
            where = f":{mark.line + 1}:{mark.column + 1}" if mark is not None else ""
            context = f" {exc.context}" if exc.context else ""
            raise ConfigError(
                f"{self._file}{where}: not YAML: {exc.problem or 'syntax error'}{context}; mend the syntax"
            ) from exc
        except (yaml.YAMLError, UnicodeDecodeError) as exc:
            raise ConfigError(f"{self._file}:1:1: not YAML: {' '.join(str(exc).split())}; is it a text file in UTF-8?") from exc
        finally:
            self._loader.dispose()

    def _read(self, on_item: Callable[[str, Tree], None] | None) -> Tree:
        self._next()  # the stream's start
        start = self._next()
        if type(start) is yaml.StreamEndEvent:
            raise ConfigError(f"{self._file}:1:1: the file is empty; write {{}} if nothing is meant")
        event = self._next()
        root = self._tree(event) if on_item is None or type(event) is not yaml.MappingStartEvent else self._root(event, on_item)
        self._next()  # the document's end
        event = self._next()
        if type(event) is not yaml.StreamEndEvent:
            raise yaml.composer.ComposerError(
                "expected a single document in the stream", start.start_mark, "but found another document", event.start_mark
            )
        return root

    def _root(self, event: Any, on_item: Callable[[str, Tree], None]) -> Branch:
        root = Branch(event, is_map=True)
        self._keep_anchor(event, root)
        while type(event := self._next()) is not yaml.MappingEndEvent:
            key = self._tree(event)
            name = "" if isinstance(key, Branch) else key.value
            event = self._next()
            if type(event) is yaml.SequenceStartEvent and event.anchor is None:
                value: Tree = Branch(event, is_map=False)
                while type(event := self._next()) is not yaml.SequenceEndEvent:
                    on_item(name, self._tree(event))
            else:
                value = self._tree(event)
                if isinstance(value, Branch) and not value.is_map:  # with an anchor, or of one
                    for item in value.children:
                        on_item(name, item)
            root.children += (key, value)
        return root

    def _tree(self, event: Any) -> Tree:
        """The value that begins with `event`.  No recursion: how deep it is nested is libyaml's to limit."""
        if type(event) is yaml.ScalarEvent:
            scalar = cast("Scalar", event)
            self._keep_anchor(event, scalar)
            return scalar
        if type(event) is yaml.AliasEvent:
            return self._aliased(event)
        get_event, left = self._next, MAX_VALUES
        top = self._branch(event)
        children = top.children
        above: list[list[Tree]] = []
        while True:
            event = get_event()
            kind = type(event)
            if kind is yaml.ScalarEvent:
                if event.anchor is not None:
                    self._keep_anchor(event, event)
                children.append(event)
                left -= 1
            elif kind is yaml.MappingStartEvent or kind is yaml.SequenceStartEvent:
                branch = self._branch(event)
                children.append(branch)
                above.append(children)
                children = branch.children
                left -= 1
            elif kind is yaml.AliasEvent:
                children.append(self._aliased(event))
                left -= 1
            elif above:
                children = above.pop()
            else:
                return top
            if left < 0:
                line, column = top.start_mark.line + 1, top.start_mark.column + 1
                raise ConfigError(f"{self._file}:{line}:{column}: more than {MAX_VALUES} values in one entry; divide it")

    def _branch(self, event: Any) -> Branch:
        branch = Branch(event, is_map=type(event) is yaml.MappingStartEvent)
        self._keep_anchor(event, branch)
        return branch

    def _keep_anchor(self, event: Any, tree: Tree) -> None:
        if event.anchor is None:
            return
        if event.anchor in self.anchors:
            first: Any = self.anchors[event.anchor].start_mark
            raise yaml.composer.ComposerError(
                "found duplicate anchor; first occurrence", first, "second occurrence", event.start_mark
            )
        self.anchors[event.anchor] = tree

    def _aliased(self, event: Any) -> Tree:
        if event.anchor not in self.anchors:
            raise yaml.composer.ComposerError(None, None, "found undefined alias", event.start_mark)
        return self.anchors[event.anchor]
