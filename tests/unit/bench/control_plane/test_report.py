from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.control_plane.measure import Plan, titles
from tests.bench.control_plane.report import BEGIN, END, HEADLINES, PANELS, document, headline_table, write_readme
from tests.bench.metrics import KINDS
from tests.bench.record import Record
from tests.unit.bench.conftest import ABOUT

README = Path(__file__).resolve().parents[4] / "README.md"


@pytest.fixture
def record() -> Record:
    about = {**ABOUT, "nodes": 10, "pods": 2000, "services": 30, "clients": 5, "rate": 100, "write_s": 4.0}
    made = Record(
        about, {name: {"title": name.title(), "baseline": "istiod"} for name in ("istiod", "nodeproxy")}, titles(Plan(5))
    )
    made.add("istiod", "change", 0, {"p50_ms": 120.0})
    made.add("nodeproxy", "change", 0, {"p50_ms": 60.0})
    made.add("nodeproxy", "agent", 0, {"mb": 70.0})
    return made


def test_ours_stands_first_with_its_ratio_to_istiod(record: Record) -> None:
    assert headline_table(record).splitlines() == [
        "| | Nodeproxy | Istiod |",
        "|---|---|---|",
        "| a pod's change until each of 5 subscribers has it, p50, ms | 60.0 (0.50 × istiod) | 120.0 |",
        "| a node agent's memory (PSS) then, MB | 70.0 |  |",
    ]


def test_the_document_says_what_was_measured_on_what(record: Record) -> None:
    text = document(record)
    assert "10 nodes, 2,000 pods and 30 services" in text
    assert "| 1 pod's change until each of 5 subscribers has it: p50 | 0.50 |" in text
    record.failures.append("nodeproxy, round 1: no answer\nat length")
    assert "## Failed\n\n- nodeproxy, round 1: no answer\n" in document(record)


def test_the_readme_has_a_place_for_it(record: Record, tmp_path: Path) -> None:
    copy = tmp_path / "README.md"
    copy.write_text(README.read_text())
    assert write_readme(copy, record)
    assert "60.0 (0.50 × istiod)" in copy.read_text().partition(BEGIN)[2].partition(END)[0]


def test_headlines_and_panels_are_of_rows_that_exist() -> None:
    for metric, _ in (*HEADLINES, *PANELS):
        row, _, kind = metric.partition(".")
        assert row in titles(Plan())
        assert kind in KINDS
