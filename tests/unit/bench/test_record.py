from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.bench.record import Record


def test_it_is_read_as_it_was_written(tmp_path: Path, make: Callable[..., Record]) -> None:
    path = tmp_path / "bench.json"
    make().write(path)
    read = Record.read(path)
    assert read is not None
    assert read.metrics() == ["bulk_1_up.gbps", "memory_rest.mb"]
    assert read.of("nodeproxy", "bulk_1_up.gbps") == [4.0, 4.04, 4.08, 4.12, 4.16]
    assert read.about == make().about


def test_no_file_and_another_version_are_nothing_to_compare_with(tmp_path: Path, make: Callable[..., Record]) -> None:
    path = tmp_path / "bench.json"
    assert Record.read(path) is None
    make().write(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 0}))
    assert Record.read(path) is None


def test_samples_stay_in_their_round(make: Callable[..., Record]) -> None:
    record = make()
    record.add("envoy", "memory_rest", 2, {"mb": 90.0})  # the rounds before failed
    assert record.of("envoy", "memory_rest.mb") == [None, None, 90.0]
    assert record.of("envoy", "bulk_4_up.gbps") == []
