"""YAML with a place for every value, so that an error in a file can say FILE:LINE:COLUMN.

A `Node` is asked for what the reader expects of it, and raises ConfigError with its place if it is something else.
Invariants: a key is never read twice, an unknown key is never ignored, text is never guessed from a number or a boolean.
Knows YAML, not what a file means.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import yaml

from nodeproxy.errors import ConfigError

# A file of 100,000 workloads has some 40 MiB.  The file is the operator's; the limit is for a mistake such as naming a disk
# image.
MAX_FILE_BYTES = 256 << 20

_T = TypeVar("_T")
_TAG = "tag:yaml.org,2002:"
_KINDS = {"str": "text", "int": "a number", "bool": "a boolean", "null": "nothing", "float": "a decimal number", "map": "a map"}


class Node:
    """A value of the document and where it stands."""

    __slots__ = ("_file", "_node", "name")

    def __init__(self, file: str, node: yaml.Node, name: str) -> None:
        self._file, self._node, self.name = file, node, name

    def error(self, reason: str) -> ConfigError:
        """What to raise for this value."""
        mark = self._node.start_mark
        return ConfigError(f"{self._file}:{mark.line + 1}:{mark.column + 1}: {reason}")

    def _wrong(self, wanted: str) -> ConfigError:
        kind = self._node.tag.removeprefix(_TAG)
        found = "a list" if isinstance(self._node, yaml.SequenceNode) else _KINDS.get(kind, kind)
        shown = f" ({self._node.value})" if isinstance(self._node, yaml.ScalarNode) and self._node.value else ""
        return self.error(f"{self.name} must be {wanted}, not {found}{shown}")

    @property
    def line(self) -> int:
        """The line that it begins in, from 1."""
        return int(self._node.start_mark.line) + 1

    @property
    def is_null(self) -> bool:
        """Whether it says nothing: `key:` or `~`."""
        return bool(self._node.tag == _TAG + "null")

    @property
    def is_map(self) -> bool:
        """Whether it is a map."""
        return isinstance(self._node, yaml.MappingNode)

    @property
    def local_tag(self) -> str:
        """ "Exact" of `!Exact foo`, "" without such a tag."""
        tag: str = self._node.tag
        return tag[1:] if tag.startswith("!") else ""

    def fields(self, known: Iterable[str]) -> Fields:
        """A map with these keys, each at most once."""
        known = tuple(known)
        found: dict[str, Node] = {}
        for key, value in self.entries():
            name = key.text()
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
                advice = f"did you mean {close[0]}?" if close else f"it may have {', '.join(known)}"
                raise key.error(f"{self.name} has no key {name!r}; {advice}")
            value.name = name
            found[name] = value
        return Fields(self, found)

    def entries(self) -> list[tuple[Node, Node]]:
        """The keys and values of a map with free keys, no key twice."""
        if not isinstance(self._node, yaml.MappingNode):
            raise self._wrong("a map")
        seen: dict[str, int] = {}
        pairs = []
        for key_node, value_node in self._node.value:
            key = Node(self._file, key_node, f"a key of {self.name}")
            text = key.raw()
            if key_node.tag == _TAG + "merge":
                raise key.error(f"{self.name} uses a merge key (<<), which is not supported; write the keys out")
            if text in seen:
                raise key.error(f"{self.name} has the key {text!r} twice, first in line {seen[text]}; remove one")
            seen[text] = key_node.start_mark.line + 1
            pairs.append((key, Node(self._file, value_node, f"{self.name}[{text}]")))
        return pairs

    def items(self, *, of: str) -> list[Node]:
        """The items of a list; of: what one is called in errors."""
        if not isinstance(self._node, yaml.SequenceNode):
            raise self._wrong("a list")
        return [Node(self._file, item, of) for item in self._node.value]

    def raw(self) -> str:
        """A scalar as it is written, whatever type YAML takes it for: for addresses, as 1:2:3:4:5:6:7:8 is a number to YAML."""
        if not isinstance(self._node, yaml.ScalarNode):
            raise self._wrong("a single value")
        return str(self._node.value)

    def text(self) -> str:
        """Text."""
        if self.local_tag and isinstance(self._node, yaml.ScalarNode):
            return self.raw()
        if self._node.tag != _TAG + "str":
            raise self._wrong("text; put it in quotes" if isinstance(self._node, yaml.ScalarNode) else "text")
        return self.raw()

    def boolean(self) -> bool:
        """true or false."""
        if self._node.tag != _TAG + "bool":
            raise self._wrong("true or false")
        return self.raw().lower() in ("true", "yes", "on")

    def integer(self, low: int, high: int) -> int:
        """A decimal number within bounds, in quotes or not."""
        text = self.raw()
        if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
            raise self.error(f"{self.name} must be a number from {low} to {high}, not {text!r}")
        return int(text)

    def choice(self, values: Mapping[str, _T]) -> _T:
        """One of some words, whatever their case; `WorkloadSelector` and `WORKLOAD_SELECTOR` are the same word."""
        by_word = {_word(word): value for word, value in values.items()}
        text = self.raw()
        if _word(text) not in by_word:
            raise self.error(f"{self.name} must be one of {', '.join(values)}, not {text!r}")
        return by_word[_word(text)]


def _word(text: str) -> str:
    return text.replace("_", "").lower()


class Fields:
    """A map whose keys are known.

    A key that says nothing is an error: `policies:`, left empty by a half-finished edit, must not lift all policies.
    """

    def __init__(self, owner: Node, found: dict[str, Node]) -> None:
        self._owner = owner
        self._found = found
        for name, node in found.items():
            if node.is_null:
                raise node.error(f"{name} says nothing; give it a value or remove it")

    def get(self, name: str) -> Node | None:
        """The value of a key that may be absent."""
        return self._found.get(name)

    def need(self, name: str) -> Node:
        """The value of a key that must be there."""
        node = self._found.get(name)
        if node is None:
            raise self._owner.error(f"{self._owner.name} needs the key {name!r}; add it")
        return node

    def text(self, name: str, default: str = "") -> str:
        """Text, or the default."""
        node = self._found.get(name)
        return default if node is None else node.text()

    def boolean(self, name: str) -> bool:
        """true or false, false if absent."""
        node = self._found.get(name)
        return node is not None and node.boolean()

    def items(self, name: str, *, of: str) -> list[Node]:
        """The items of a list, none if absent."""
        node = self._found.get(name)
        return [] if node is None else node.items(of=of)


def read_yaml(path: Path | str, content: bytes) -> Node:
    """The root of the only document in `content`.  Raises ConfigError."""
    file = str(path)
    try:
        loader = yaml.CSafeLoader(content)
        try:
            root = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        where = f":{mark.line + 1}:{mark.column + 1}" if mark is not None else ""
        context = f" {exc.context}" if exc.context else ""
        raise ConfigError(f"{file}{where}: not YAML: {exc.problem or 'syntax error'}{context}; mend the syntax") from exc
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{file}:1:1: not YAML: {' '.join(str(exc).split())}; is it a text file in UTF-8?") from exc
    except RecursionError as exc:
        raise ConfigError(f"{file}:1:1: nested too deeply; a mesh file has some 8 levels") from exc
    if root is None:
        raise ConfigError(f"{file}:1:1: the file is empty; write {{}} if nothing is meant")
    return Node(file, root, "the file")
