"""A mesh file that is edited."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Callable, Coroutine
from pathlib import Path

import pytest

from nodeproxy.agent.sources import mesh_watch
from nodeproxy.agent.sources.change import Change
from nodeproxy.agent.sources.mesh_file import Mesh
from nodeproxy.agent.sources.mesh_watch import MeshFile
from nodeproxy.errors import ConfigError, SourceError

GOOD = "workloads: [{{uid: {}, namespace: ns, workloadIps: []}}]"
Said = str | list[str]
Changes = AsyncGenerator[Change | ConfigError | SourceError, None]


async def said(changes: Changes) -> Said:
    """What the file says next: uids, or an error's text."""
    change = await anext(changes)
    if isinstance(change, ConfigError):
        return str(change)
    assert isinstance(change, Mesh)
    return [workload.uid for workload in change.everything.workloads]


def follow(file: MeshFile, steps: Callable[[Changes], Coroutine[None, None, None]]) -> None:
    """Watch a file while `steps` edits it."""

    async def run() -> None:
        async with asyncio.timeout(10), contextlib.aclosing(file.changes(interval_s=0.002)) as changes:
            await steps(changes)

    asyncio.run(run())


def replace(path: Path, text: str) -> None:
    beside = path.with_suffix(".new")
    beside.write_text(text)
    beside.rename(path)


def test_edits_take_effect_and_broken_ones_are_told_once(tmp_path: Path) -> None:
    path = tmp_path / "mesh.yaml"
    path.write_text(GOOD.format("a"))

    async def steps(changes: Changes) -> None:
        assert await said(changes) == ["a"]
        replace(path, GOOD.format("b"))
        assert await said(changes) == ["b"]
        path.write_text("workloads: [")
        assert str(await said(changes)).startswith(f"{path}:2:1: not YAML")
        os.utime(path, ns=(1, 1))  # touched, not changed: nothing new to say
        following = asyncio.create_task(said(changes))
        await asyncio.sleep(0.02)
        assert not following.done()
        replace(path, GOOD.format("c"))
        assert await following == ["c"]
        path.unlink()
        assert "No such file" in str(await said(changes))
        path.write_text(GOOD.format("c"))
        assert await said(changes) == ["c"]

    follow(MeshFile(path, tmp_path), steps)


def test_a_symlink_that_is_turned_is_an_edit(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(GOOD.format(name))
    path = tmp_path / "mesh.yaml"
    path.symlink_to("one")

    async def steps(changes: Changes) -> None:
        assert await said(changes) == ["one"]
        (tmp_path / "link").symlink_to("two")
        (tmp_path / "link").rename(path)
        assert await said(changes) == ["two"]

    follow(MeshFile(path, tmp_path), steps)


def test_a_file_that_comes_later(tmp_path: Path) -> None:
    path = tmp_path / "mesh.yaml"

    async def steps(changes: Changes) -> None:
        assert "No such file" in str(await said(changes))
        path.write_text(GOOD.format("a"))
        assert await said(changes) == ["a"]

    follow(MeshFile(path, tmp_path), steps)


def test_what_could_not_be_used_is_handed_on_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh_watch, "_AGAIN_S", 0.01)
    path = tmp_path / "mesh.yaml"
    path.write_text(GOOD.format("a"))
    file = MeshFile(path, tmp_path)

    async def steps(changes: Changes) -> None:
        assert await said(changes) == ["a"]
        file.read_again()
        assert await said(changes) == ["a"]

    follow(file, steps)
