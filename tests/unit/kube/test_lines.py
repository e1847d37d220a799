from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeproxy.kube.lines import Lines, LineTooLongError


@given(st.lists(st.binary(max_size=8), max_size=8), st.integers(1, 7))
def test_lines_are_the_same_however_they_are_cut(parts: list[bytes], size: int) -> None:
    content = b"\n".join(parts)
    lines = Lines(1000)
    found = [line for at in range(0, len(content), size) for line in lines.feed(content[at : at + size])]
    *whole, rest = content.split(b"\n")
    assert found == [line for line in whole if line]
    assert lines.unfinished_bytes == len(rest)


@pytest.mark.parametrize("chunks", [[b"12345\n"], [b"123", b"45"], [b"ok\n12345"]])
def test_a_line_beyond_the_limit_is_refused_as_soon_as_it_is_known(chunks: list[bytes]) -> None:
    lines = Lines(4)
    with pytest.raises(LineTooLongError):
        _ = [list(lines.feed(chunk)) for chunk in chunks]


def test_many_small_chunks_make_one_line() -> None:
    lines = Lines(1 << 20)
    for _ in range(100_000):
        assert not list(lines.feed(b"x"))
    assert [len(line) for line in lines.feed(b"\n")] == [100_000]
