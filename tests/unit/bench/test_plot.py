from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.bench.plot import PANELS, draw
from tests.bench.record import Record
from tests.bench.rows import MEMORY, TRAFFIC


def test_both_pictures(tmp_path: Path, make: Callable[..., Record]) -> None:
    draw(make(), tmp_path)
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "bench.svg").read_text()


def test_nothing_measured_no_picture(tmp_path: Path) -> None:
    draw(Record({}), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_panels_are_of_rows_that_exist() -> None:
    assert {metric.partition(".")[0] for metric, _ in PANELS} <= {row.name for row in (*TRAFFIC, *MEMORY)}
