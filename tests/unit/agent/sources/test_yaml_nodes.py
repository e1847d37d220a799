"""YAML with places."""

from __future__ import annotations

import pytest

from nodeproxy.errors import ConfigError
from tests.mesh_files import read_yaml


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", "f:1:1: the file is empty; write {} if nothing is meant"),
        (b"# only a comment\n", "f:1:1: the file is empty"),
        (b"a: [1, 2", "f:2:1: not YAML: did not find expected"),
        (b"a: 1\n b: 2", "f:2:3: not YAML: mapping values are not allowed in this context"),
        (b"a:\n\t- 1", "f:2:1: not YAML: found character that cannot start any token"),
        (b"a: *nobody", "f:1:4: not YAML: found undefined alias"),
        (b"a: 1\n---\nb: 2", "f:2:1: not YAML: but found another document"),
        (b"\xff\xff", "f:1:1: not YAML:"),
        (b"a\x00b", "f:1:1: not YAML:"),
        (b"[" * 50_000, "f:1:1001: not YAML: exceeded maximum nesting depth"),
    ],
)
def test_what_is_not_yaml_has_a_place(content: bytes, error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_yaml("f", content)
    assert str(caught.value).startswith(error)


def test_scalars() -> None:
    long = "9" * 5000  # more digits than int() takes
    text = f"{{t: abc, q: '12', n: 12, b: true, six: 1:20:30, tagged: !Exact 5, list: [x, 1], long: {long}}}"
    fields = read_yaml("f", text.encode()).fields(("t", "q", "n", "b", "six", "tagged", "list", "long"))
    assert fields.text("t") == "abc"
    assert fields.text("q") == "12"
    assert fields.need("q").integer(0, 20) == fields.need("n").integer(0, 20) == 12
    assert fields.boolean("b")
    assert not fields.boolean("absent")
    assert fields.need("six").raw() == "1:20:30"  # a number in base 60 to YAML
    assert (fields.need("tagged").local_tag, fields.need("tagged").text()) == ("Exact", "5")
    assert [item.raw() for item in fields.items("list", of="an item")] == ["x", "1"]
    for wrong, error in (
        (lambda: fields.text("n"), "n must be text; put it in quotes, not a number (12)"),
        (lambda: fields.text("b"), "b must be text; put it in quotes, not a boolean (true)"),
        (lambda: fields.text("list"), "list must be text, not a list"),
        (lambda: fields.need("t").boolean(), "t must be true or false, not text (abc)"),
        (lambda: fields.need("n").integer(0, 11), "n must be a number from 0 to 11, not '12'"),
        (lambda: fields.need("long").integer(0, 11), f"long must be a number from 0 to 11, not '{long}'"),
        (lambda: fields.need("t").integer(0, 11), "t must be a number from 0 to 11, not 'abc'"),
        (lambda: fields.need("t").choice({"Abd": 1}), "t must be one of Abd, not 'abc'"),
        (lambda: fields.need("t").entries(), "t must be a map, not text (abc)"),
        (lambda: fields.items("t", of="x"), "t must be a list, not text (abc)"),
        (lambda: fields.need("list").raw(), "list must be a single value, not a list"),
        (lambda: fields.need("nothing"), "the file needs the key 'nothing'; add it"),
    ):
        with pytest.raises(ConfigError) as caught:
            wrong()
        assert str(caught.value).partition(": ")[2] == error


@pytest.mark.parametrize("word", ["WorkloadSelector", "WORKLOAD_SELECTOR", "workloadselector"])
def test_words_have_no_case(word: str) -> None:
    assert read_yaml("f", word.encode()).choice({"WorkloadSelector": 1}) == 1


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"one: 1\ntow: 2", "f:2:1: the file has no key 'tow'; did you mean two?"),
        (b"one: 1\nxyz: 2", "f:2:1: the file has no key 'xyz'; it may have one, two"),
        (b"one: 1\ntwo: 2\none: 3", "f:3:1: the file has the key 'one' twice, first in line 1; remove one"),
        (b"one:\ntwo: 2", "f:1:5: one says nothing; give it a value or remove it"),
        (b"<<: {one: 1}", "f:1:1: the file uses a merge key (<<), which is not supported; write the keys out"),
        (b"1: 2", "f:1:1: a key of the file must be text"),
        (b"? [a]\n: 2", "f:1:3: a key of the file must be a single value, not a list"),
    ],
)
def test_keys(content: bytes, error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_yaml("f", content).fields(("one", "two"))
    assert str(caught.value).startswith(error)
