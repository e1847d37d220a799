from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.bench.metrics import KINDS
from tests.bench.record import Record
from tests.bench.report import BEGIN, END, HEADLINES, document, headline_table, ratio_table, table, write_readme
from tests.bench.rows import MEMORY, TRAFFIC


def test_each_metric_has_a_row_with_median_and_quartiles(make: Callable[..., Record]) -> None:
    lines = table(make()).splitlines()
    assert lines[0] == "| | Direct | Envoy | Nodeproxy |"
    assert lines[2].endswith("| 4.08 [4.04–4.12] | 4.08 [4.04–4.12] |")
    assert lines[3] == "| memory at rest: memory (PSS), MB |  |  | 81.6 [80.8–82.4] |"


def test_ratios_to_direct_and_to_envoy(make: Callable[..., Record]) -> None:
    lines = ratio_table(make(1.5)).splitlines()
    assert lines[0] == "| | envoy / direct | nodeproxy / direct | nodeproxy / envoy |"
    assert lines[2].endswith("| 0.33 [0.33–0.33] | 0.50 [0.50–0.50] | 1.50 [1.50–1.50] |")
    assert len(lines) == 3, "memory at rest has nobody to compare with"


def test_the_readme_gets_what_is_between_its_markers(tmp_path: Path, make: Callable[..., Record]) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for _ in range(2):
        assert write_readme(readme, make())
    text = readme.read_text()
    assert text.startswith(f"before\n{BEGIN}\n|")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    assert "4.08 (1.00 × Envoy)" in text


def test_a_readme_without_markers_is_left_alone(tmp_path: Path, make: Callable[..., Record]) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("mine\n")
    assert not write_readme(readme, make())
    assert readme.read_text() == "mine\n"


def test_failures_are_told(make: Callable[..., Record]) -> None:
    record = make()
    assert "## Failed" not in document(record)
    record.failures.append("rtt_64, envoy, round 1: no answer\nat length")
    assert "## Failed\n\n- rtt_64, envoy, round 1: no answer\n" in document(record)


def test_headlines_are_of_rows_that_exist() -> None:
    rows = {row.name for row in (*TRAFFIC, *MEMORY)}
    for metric, _ in HEADLINES:
        row, _, kind = metric.partition(".")
        assert row in rows
        assert kind in KINDS
    assert headline_table(Record({})).count("\n") == 2
