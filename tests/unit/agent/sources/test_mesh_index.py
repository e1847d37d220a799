"""When an index is believed."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodeproxy.agent.sources import mesh_index
from nodeproxy.agent.sources.mesh_index import digest, read_index, write_index

INDEX = {"workloads": {digest(b"a"): "a", digest(b"b"): "é"}, "services": {}, "policies": {digest(b"p"): "ns/p"}}


def test_it_is_read_back(tmp_path: Path) -> None:
    mark = write_index(tmp_path, INDEX)
    assert read_index(tmp_path, mark) == INDEX
    second = write_index(tmp_path, {**INDEX, "policies": {}})
    assert second != mark
    assert read_index(tmp_path, second) == {**INDEX, "policies": {}}
    assert read_index(tmp_path, mark) is None  # it is that of another state


def test_without_the_stores_word_it_is_not_believed(tmp_path: Path) -> None:
    mark = write_index(tmp_path, INDEX)
    assert read_index(tmp_path, None) is None
    file = next(tmp_path.iterdir())
    file.write_bytes(file.read_bytes()[:-1])
    assert read_index(tmp_path, mark) is None
    file.unlink()
    assert read_index(tmp_path, mark) is None


def test_other_code_may_read_another_meaning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = write_index(tmp_path, INDEX)
    monkeypatch.setattr(mesh_index, "_CODE", mesh_index._CODE[1:])
    assert read_index(tmp_path, mark) is None


def test_one_that_cannot_be_kept(tmp_path: Path) -> None:
    assert write_index(tmp_path / "nowhere", INDEX) is None
