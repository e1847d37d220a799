"""Plays a later version of nodeproxy, whose eBPF sources are others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeproxy.kernel import generation, programs


@contextlib.contextmanager
def other_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, header: str = "") -> Iterator[None]:
    """A later version of nodeproxy: other eBPF sources, with other maps if `header` is given."""
    with monkeypatch.context() as patch:
        for source in programs.source_directory().iterdir():
            (tmp_path / source.name).write_bytes(source.read_bytes())
        changed = tmp_path / ("nodeproxy.h" if header else "sk_lookup.c")
        changed.write_text(changed.read_text() + (header or "\n/* a later version */\n"))
        patch.setattr(programs, "source_directory", lambda: tmp_path)
        run = generation.subprocess.run

        def with_sources(command: list[str], **options: object) -> object:
            code = (
                "import pathlib, sys; from nodeproxy.kernel import loader, programs;"
                f"programs.source_directory = lambda: pathlib.Path({str(tmp_path)!r}); sys.exit(loader.main(sys.argv[1:]))"
            )
            return run([command[0], "-c", code, command[-1]], **options)

        patch.setattr(generation.subprocess, "run", with_sources)
        yield
