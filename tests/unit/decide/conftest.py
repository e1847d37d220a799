"""A state to decide in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nodeproxy.model.delta import Everything
from nodeproxy.state.store import StateWriter
from nodeproxy.state.view import View

Build = Callable[..., View]


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Build]:
    """Makes what it is given the whole state, and shows it."""
    writer = StateWriter(tmp_path)
    reader = writer.reader()

    def view(*workloads: object, services: tuple[object, ...] = (), policies: tuple[object, ...] = ()) -> View:
        writer.replace(Everything(workloads, services, policies))  # type: ignore[arg-type]
        return reader.view()

    yield view
    reader.close()
    writer.close()
