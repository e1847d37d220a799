from __future__ import annotations

import sys

import pytest

from nodeproxy.cli import output


def test_a_table_in_a_pipe_is_plain_aligned_columns(capsys: pytest.CaptureFixture[str]):
    output.print_table("Things", ("name", "a number"), [("x", "1"), ("a longer one", "")])
    assert capsys.readouterr().out == "\nThings\nNAME          A NUMBER\nx             1\na longer one  -\n"


def test_a_table_without_rows_keeps_its_header(capsys: pytest.CaptureFixture[str]):
    output.print_table("", ("name", "n"), [])
    assert capsys.readouterr().out == "NAME  N\n"


def test_a_table_on_a_terminal_shows_every_character(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    output.print_table("Things", ("name",), [("[red]/x",)])
    assert "[red]/x" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0123, "12 ms"), (1, "1 s"), (59.9, "59 s"), (60, "1 min"), (7300, "2 h"), (86_400 * 3, "3 d"), (-5, "0 ms")],
)
def test_duration(seconds: float, text: str):
    assert output.duration(seconds) == text


def test_points_in_time():
    assert output.ago(0) == "never"
    assert output.ago(100, 160) == "1 min ago"
    assert output.ahead(0) == "none"
    assert output.ahead(160, 100) == "in 1 min"
    assert output.ahead(100, 160) == "past"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1 << 30, "1.0 GiB"), (1 << 60, "1048576.0 TiB")]
)
def test_size(count: int, text: str):
    assert output.size(count) == text


def test_plural():
    assert [output.plural(*each) for each in ((1, "pod"), (0, "pod"), (2, "policy"))] == ["1 pod", "0 pods", "2 policies"]


def test_what_another_machine_says_does_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table("", ("a",), [("x\x1b]0;owned\x07\x9b2J\ny",)])
    assert capsys.readouterr().out == "A\nx\ufffd]0;owned\ufffd\ufffd2J\ny\n"
    assert output.printable("plain → ✓") == "plain → ✓"
