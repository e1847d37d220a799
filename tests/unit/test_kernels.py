"""What `./dev test --kernels` runs is there, and what it writes is what was shown."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.kernels import report
from tests.kernels.__main__ import arguments, verdict
from tests.kernels.features import FEATURES, LEFT_OUT, features_of, selection
from tests.kernels.record import AGAIN, Outcome, Shown, once_more, read, read_lines, write

ROOT = Path(__file__).parents[2]
FIRST = FEATURES[0]


def names_in(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@pytest.mark.parametrize("test", selection())
def test_what_is_selected_exists(test: str) -> None:
    file, _, name = test.partition("::")
    assert (ROOT / file).is_file()
    assert not name or name in names_in(file)


def test_each_file_of_both_tiers_is_run_or_left_out_for_a_reason() -> None:
    files = {str(path.relative_to(ROOT)) for tier in ("kernel", "mesh") for path in (ROOT / "tests" / tier).glob("test_*.py")}
    run = {test.split("::")[0] for test in selection()}
    assert files == run | set(LEFT_OUT)
    assert not run & set(LEFT_OUT)


def test_a_test_is_known_by_name_whatever_its_parameters() -> None:
    name = FIRST.tests[0]
    assert [feature.title for feature in features_of(f"{name}[IPv4-a[0]]")] == [FIRST.title]


def shown(name: str = "6.1", **changes: object) -> Shown:
    tests = [Outcome(f"{FIRST.tests[0]}::test_a", "passed", 1.5, ""), Outcome(f"{FIRST.tests[0]}::test_b", "passed", 2.5, "")]
    plain = Shown(name, "6.1.0-1-amd64", "6.1.192-2", "bookworm", 60, 9, 41.2, [], "", 2, tests, "", "")
    return plain._replace(**changes)


def test_the_guests_lines_are_read_also_when_they_end_amid(tmp_path: Path) -> None:
    file = tmp_path / "results"
    file.write_text(
        '{"collected": 3}\n{"begins": "a"}\n{"test": "a", "outcome": "passed", "seconds": 1, "why": "", "again": false}\n'
        '{"test": "a", "outcome": "failed", "seconds": 2, "why": "teardown", "again": false}\n'
        '{"begins": "b"}\n{"test": "b", "outc'
    )
    assert read_lines(file) == (3, [Outcome("a", "failed", 2, "teardown")], "b")
    assert read_lines(tmp_path / "none") == (0, [], "")


@pytest.mark.parametrize(("outcome", "why"), [("passed", f"{AGAIN}late"), ("failed", "late")])
def test_what_failed_has_a_second_try_and_that_is_told(tmp_path: Path, outcome: str, why: str) -> None:
    file = tmp_path / "results"
    file.write_text(
        '{"collected": 9}\n{"test": "a", "outcome": "failed", "seconds": 2, "why": "late", "again": false}\n'
        f'{{"collected": 1}}\n{{"test": "a", "outcome": "{outcome}", "seconds": 2, "why": "", "again": true}}\n'
    )
    assert read_lines(file) == (9, [Outcome("a", outcome, 2, why)], "")


def test_the_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    write(tmp_path / "record", [shown(), shown("5.10", refused="too old")])
    assert read(tmp_path / "record") == [shown(), shown("5.10", refused="too old")]


def test_what_ran_once_more_takes_the_place_of_what_was_and_all_else_stays() -> None:
    before = shown(tests=[Outcome("a", "failed", 1, "no"), Outcome("b", "passed", 2, "")])
    now = shown(tests=[Outcome("a", "passed", 3, "")], collected=1, checks=[], compile_s=None)
    assert once_more(before, now) == before._replace(tests=[Outcome("a", "passed", 3, ""), Outcome("b", "passed", 2, "")])


def test_a_run_that_was_stopped_can_go_on() -> None:
    before = shown(tests=[Outcome("a", "passed", 1, "")], collected=3, unfinished="b", stopped="stopped after 5 minutes")
    some = once_more(before, shown(tests=[Outcome("b", "passed", 1, "")], collected=1))
    assert (some.unfinished, some.stopped, len(some.tests)) == ("b", "stopped after 5 minutes", 2)
    whole = once_more(some, shown(tests=[Outcome("c", "passed", 1, "")], collected=1))
    assert (whole.unfinished, whole.stopped, len(whole.tests)) == ("", "", 3)


@pytest.mark.parametrize(
    ("changes", "cell", "bad"),
    [
        ({}, "✓ 2", ""),
        ({"tests": [Outcome(f"{FIRST.tests[0]}::a", "failed", 1, "E  no"), *shown().tests]}, "**✗ 1 of 3**", "1 failed"),
        (
            {"tests": [Outcome(f"{FIRST.tests[0]}::a", "skipped", 1, "Skipped: kernel lacks: MPTCP")]},
            "lacks MPTCP",
            "ended early",
        ),
        ({"tests": [], "stopped": "stopped after 5 minutes"}, "not reached", "stopped after 5 minutes"),
        ({"compile_s": None, "tests": [], "collected": 0}, "–", "do not load"),
    ],
)
def test_a_cell_says_what_became_of_a_feature(changes: dict[str, object], cell: str, bad: str) -> None:
    each = shown(**changes)
    assert report.cell(each.of(FIRST.title), len(each.tests) == each.collected) == cell
    assert bad in verdict(each)
    assert (verdict(each) == "") == (bad == "")


def test_a_refused_kernel_stands_below_the_matrix() -> None:
    refused = shown(
        "5.10",
        release="5.10.0-46-amd64",
        version="5.10.262-1",
        refused="Error: this is Linux 5.10, and nodeproxy needs Linux 6.1\n",
    )
    assert report.matrix([refused, shown()]).splitlines()[0] == "|  | Linux 6.1.192 |"
    assert "Linux 5.10.262 is refused: “this is Linux 5.10, and nodeproxy needs Linux 6.1”." in report.legend([refused])
    assert verdict(refused) == ""
    assert "refused" in report.document([refused, shown()])
    assert "another reason" in verdict(shown("5.10", refused="Error: no such option"))


def test_what_follows_the_dashes_is_pytests() -> None:
    options, pytests = arguments(["6.1", "--virtme", "x", "--", "tests/kernel", "-x"])
    assert (options.kernels, pytests) == (["6.1"], ["tests/kernel", "-x"])
