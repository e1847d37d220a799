"""YAML as a stream; PyYAML's own composer says what a document means."""

from __future__ import annotations

import pytest
import yaml

from nodeproxy.agent.sources import yaml_stream
from nodeproxy.agent.sources.yaml_stream import Branch, Stream, Tree, tag_of
from nodeproxy.errors import ConfigError

NASTY = [
    "{a: ! 5, b: !!str 5, c: 'x', d: !Exact f, e: !!null '', f: plain, g: ! plain, h: !local [x], i: !!set {x, y}}",
    "[12, 0x1F, 0o7, 1_000, 1:20:30, 1.5, .inf, -.nan, 1e3, yes, No, on, OFF, y, n, true, False, ~, null, Null, '', <<, =]",
    "[2001-12-14, 2001-12-14t21:59:43.10-05:00, 10.0.0.1, fd00::1, '12', \"12\", +12, -, --, 'it''s', \"\\u00e9\\n\\x41\"]",
    "a:\nb: ~\nc: ''\n'd': null\n? e\n: - f\n  - \n  -  g\n? [h, i]\n: {j: k, <<: {l: m}}",
    'literal: |\n  - x\n   y\n\n  z\nfolded: >-\n  a\n  b\n\n  c\nkept: |+\n  a\n\nplain: a\n  b\n  c\nquoted: "a\n  b\\\n  c"',
    "- &a {x: &b [1, *a], y: *b}\n- *a\n- *b\n- &c text\n- *c",
    "%YAML 1.1\n%TAG !e! tag:example.com,2000:\n---\n!e!thing {x: !e!other y}\n...",
    "---\n...",
    "# nothing but a scalar\ntext",
    "\ufeff{a: é, 𝄞: [ü]}",
    "---\n- - - deep\n    - er\n  - x\n-\n  - y # comment\n",
]
BROKEN = [
    "",
    "# nothing",
    "a: &x 1\nb: &x 2",
    "a: *x",
    "{a: 1}\n---\nb: 2",
    "a: 'x",
    "a: [1, {b: 2]",
    "a: 1\n b: 2",
    "a:\n\t- 1",
    "a: %x",
    "!e!thing x",
    "a: \x01",
    "[" * 1002,
]


def composed(node: yaml.Node) -> object:
    """What a document means, as plain values, by PyYAML."""
    place = (node.tag, node.start_mark.line, node.start_mark.column)
    if isinstance(node, yaml.ScalarNode):
        return place, node.value
    if isinstance(node, yaml.SequenceNode):
        return place, [composed(item) for item in node.value]
    return place, [(composed(key), composed(value)) for key, value in node.value]


def streamed(tree: Tree) -> object:
    """The same of a tree."""
    place = (tag_of(tree), tree.start_mark.line, tree.start_mark.column)
    if not isinstance(tree, Branch):
        return place, tree.value
    children = [streamed(child) for child in tree.children]
    return place, list(zip(children[::2], children[1::2], strict=True)) if tree.is_map else children


def composed_or_error(content: bytes) -> object:
    """What PyYAML's composer says."""
    loader = yaml.CSafeLoader(content)
    try:
        node = loader.get_single_node()
        return None if node is None else composed(node)
    except yaml.YAMLError as exc:
        return str(exc)
    finally:
        loader.dispose()


@pytest.mark.parametrize("text", [text for text in NASTY if "*a" not in text])
def test_a_tree_is_what_pyyaml_composes(text: str) -> None:
    assert streamed(Stream("f", text.encode()).read()) == composed_or_error(text.encode())


@pytest.mark.parametrize("text", BROKEN)
def test_what_pyyaml_refuses_is_refused(text: str) -> None:
    expected = composed_or_error(text.encode())
    with pytest.raises(ConfigError) as caught:
        Stream("f", text.encode()).read()
    if expected is None:
        assert str(caught.value).startswith("f:1:1: the file is empty")
    else:
        assert str(caught.value.__cause__) == expected


def test_an_alias_is_the_tree_of_its_anchor() -> None:
    stream = Stream("f", b"- &a {x: &b [1, *a], y: *b}\n- *a\n- &c text\n- *c\n- [*b]")
    root = stream.read()
    assert isinstance(root, Branch)
    first, second, text, same, listed = root.children
    assert isinstance(first, Branch)
    assert isinstance(listed, Branch)
    assert second is first
    assert same is text
    assert first.children[3] is first.children[1] is listed.children[0]
    assert isinstance(first.children[1], Branch)
    assert first.children[1].children[1] is first  # it holds itself
    assert set(stream.anchors) == {"a", "b", "c"}


def test_items_of_the_roots_lists_come_one_by_one_and_are_let_go() -> None:
    seen: list[tuple[str, object]] = []
    text = b"""
a: [1, {x: [2]}]
b: {c: [3]}
d: &d [4, 5]
e: *d
? [k]
: [6]
"""
    root = Stream("f", text).read(lambda name, tree: seen.append((name, streamed(tree))))
    expected = yaml.CSafeLoader(text).get_single_node()
    lists = [(key, value) for key, value in expected.value if value.tag.endswith("seq")]
    assert seen == [
        (str(key.value) if key.tag.endswith("str") else "", composed(item)) for key, value in lists for item in value.value
    ]
    assert isinstance(root, Branch)
    values = root.children[1::2]
    assert [len(value.children) for value in values if isinstance(value, Branch)] == [0, 2, 2, 2, 0]
    assert [tag_of(tree) for tree in root.children] == [node.tag for pair in expected.value for node in pair]


def test_a_root_that_is_no_map_is_read_whole() -> None:
    root = Stream("f", b"[1, [2]]").read(lambda name, tree: pytest.fail("not an item of a map's list"))
    assert streamed(root) == composed_or_error(b"[1, [2]]")


def test_an_entry_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_stream, "MAX_VALUES", 5)
    items: list[str] = []
    Stream("f", b"a: [[1, 2, 3, 4, 5], {x: 1, y: [2]}, z]").read(lambda name, _: items.append(name))
    assert items == ["a"] * 3
    for text in (b"a:\n- [1, 2, 3, 4, 5, 6]", b"a:\n- {x: 1, y: [2, 3]}", b"a:\n- [&x 1, *x, *x, *x, *x, *x]"):
        with pytest.raises(ConfigError, match="f:2:3: more than 5 values in one entry; divide it"):
            Stream("f", text).read(lambda name, _: None)
