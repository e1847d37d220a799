from __future__ import annotations

from pathlib import Path

import pytest

from nodeproxy.errors import ConfigError
from nodeproxy.kernel import programs


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for path in programs.source_directory().iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(programs, "source_directory", lambda: tmp_path)
    return tmp_path


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def test_every_program_is_a_function_of_the_sources() -> None:
    text = programs.source_text()
    for program in programs.PROGRAMS:
        assert f"int {program.function}(struct" in text
        assert len(program.function) <= 15  # BPF_OBJ_NAME_LEN, with its NUL


def test_the_header_is_in_it_once() -> None:
    text = programs.source_text()
    assert text.count("#ifndef NODEPROXY_H") == 1
    assert '#include "' not in text


def test_a_changed_program_shares_the_maps(sources: Path) -> None:
    maps, all_of_it = programs.map_digest(), programs.digest()
    append(sources / "connect.c", "/* */")
    assert programs.map_digest() == maps
    assert programs.digest() != all_of_it


def test_a_changed_header_does_not(sources: Path) -> None:
    maps, all_of_it = programs.map_digest(), programs.digest()
    append(sources / "nodeproxy.h", "/* */")
    assert programs.map_digest() != maps
    assert programs.digest() != all_of_it


def test_sources_that_are_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(programs, "_PACKAGE", tmp_path / "nodeproxy")
    with pytest.raises(ConfigError, match="install again"):
        programs.source_directory()
