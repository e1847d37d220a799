"""A mesh file that is edited."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from pathlib import Path

from nodeproxy.agent.sources.mesh_file import Mesh
from nodeproxy.agent.sources.mesh_watch import MeshFile, watch
from nodeproxy.errors import ConfigError

GOOD = "workloads: [{{uid: {}, namespace: ns, workloadIps: []}}]"
Said = str | list[str]


async def follow(path: Path, steps: Callable[[asyncio.Queue[Said]], Coroutine[None, None, None]]) -> None:
    """Watch `path` while `steps` edits it; what the watcher says comes in the queue: uids, or an error's text."""
    said: asyncio.Queue[Said] = asyncio.Queue()

    def on_mesh(mesh: Mesh) -> None:
        said.put_nowait([workload.uid for workload in mesh.everything.workloads])

    def on_error(error: ConfigError) -> None:
        said.put_nowait(str(error))

    watching = asyncio.create_task(watch(path, on_mesh, on_error, interval_s=0.002))
    async with asyncio.timeout(10):
        await steps(said)
    watching.cancel()
    assert said.empty()


def replace(path: Path, text: str) -> None:
    beside = path.with_suffix(".new")
    beside.write_text(text)
    beside.rename(path)


def test_edits_take_effect_and_broken_ones_are_told_once(tmp_path: Path) -> None:
    path = tmp_path / "mesh.yaml"
    path.write_text(GOOD.format("a"))

    async def steps(said: asyncio.Queue[Said]) -> None:
        assert await said.get() == ["a"]
        replace(path, GOOD.format("b"))
        assert await said.get() == ["b"]
        path.write_text("workloads: [")
        assert str(await said.get()).startswith(f"{path}:2:1: not YAML")
        os.utime(path, ns=(1, 1))  # touched, not changed: nothing new to say
        replace(path, GOOD.format("c"))
        assert await said.get() == ["c"]
        path.unlink()
        assert "No such file" in str(await said.get())
        path.write_text(GOOD.format("c"))
        assert await said.get() == ["c"]

    asyncio.run(follow(path, steps))


def test_a_symlink_that_is_turned_is_an_edit(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(GOOD.format(name))
    path = tmp_path / "mesh.yaml"
    path.symlink_to("one")

    async def steps(said: asyncio.Queue[Said]) -> None:
        assert await said.get() == ["one"]
        (tmp_path / "link").symlink_to("two")
        (tmp_path / "link").rename(path)
        assert await said.get() == ["two"]

    asyncio.run(follow(path, steps))


def test_a_file_that_comes_later(tmp_path: Path) -> None:
    path = tmp_path / "mesh.yaml"

    async def steps(said: asyncio.Queue[Said]) -> None:
        assert "No such file" in str(await said.get())
        path.write_text(GOOD.format("a"))
        assert await said.get() == ["a"]

    asyncio.run(follow(path, steps))


def test_a_content_is_handed_on_once(tmp_path: Path) -> None:
    path = tmp_path / "mesh.yaml"
    path.write_text(GOOD.format("a"))
    file = MeshFile(path)
    assert file.load() is not None
    assert file.load() is None
    path.write_text("workloads: [")
    for expected in (True, False):
        try:
            assert file.load() is None
            raised = False
        except ConfigError:
            raised = True
        assert raised is expected
    path.write_text(GOOD.format("a"))  # back to the good one: it is new again
    assert file.load() is not None
