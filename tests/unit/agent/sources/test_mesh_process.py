"""A mesh file that is large enough for a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeproxy.agent.sources import mesh_process, mesh_watch
from nodeproxy.agent.sources.mesh_file import Mesh
from nodeproxy.agent.sources.mesh_process import LargeMesh
from nodeproxy.agent.sources.mesh_watch import MeshFile
from nodeproxy.errors import SourceError, StateError
from nodeproxy.model.delta import PodSpec
from nodeproxy.state.changes import Touched
from nodeproxy.state.store import StateWriter
from tests.bench.processes import tree
from tests.unit.agent.sources.test_mesh_watch import GOOD, Changes, follow

LARGE = "workloads:\n" + "".join(f"- {{uid: w{number}, namespace: ns, workloadIps: []}}\n" for number in range(300))
WITH_POD = LARGE + "pods:\n- {uid: w1, netns: /run/netns/w1}\n"


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Path:
    monkeypatch.setattr(mesh_watch, "SMALL_BYTES", 1000)
    monkeypatch.setattr(mesh_process, "_WORTH_TELLING_S", 0.0)
    caplog.set_level("INFO")
    path = tmp_path / "mesh.yaml"
    path.write_text(WITH_POD)
    return path


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateWriter]:
    with contextlib.closing(StateWriter(tmp_path / "state")) as writer:
        yield writer


def uids(state: StateWriter) -> set[str]:
    reader = state.reader()
    try:
        return {workload.uid for workload in reader.view().workloads()}
    finally:
        reader.close()


async def next_large(changes: Changes) -> LargeMesh:
    change = await anext(changes)
    assert isinstance(change, LargeMesh), change
    return change


def test_it_is_written_when_the_agent_says_so(large: Path, state: StateWriter) -> None:
    async def steps(changes: Changes) -> None:
        mesh = await next_large(changes)
        assert mesh.pods == (PodSpec("w1", "/run/netns/w1"),)
        assert uids(state) == set()
        await mesh.write(state, {"k": b"v"})
        assert (state.epoch, state.get_meta("k"), len(uids(state))) == (1, b"v", 300)

    follow(MeshFile(large, state.path), steps)


def test_it_is_not_committed_before_the_agent_has_heard_what_it_touches(large: Path, state: StateWriter) -> None:
    heard: list[tuple[set[str], int]] = []

    def hear(touched: Touched) -> None:
        heard.append((set(touched.workloads), len(uids(state))))

    async def steps(changes: Changes) -> None:
        await (await next_large(changes)).write(state, {})
        state.before_commit = hear
        large.write_text(WITH_POD.replace("w7,", "w777,"))
        mesh = await next_large(changes)
        await mesh.write(state, {})
        assert heard == [({"w7", "w777"}, 300)]
        assert {"w7", "w777"} & uids(state) == {"w777"}

        def fail(touched: Touched) -> None:
            raise StateError("not now")

        state.before_commit = fail
        large.write_text(WITH_POD)
        mesh = await next_large(changes)
        with pytest.raises(StateError, match="not now"):
            await mesh.write(state, {})
        assert {"w7", "w777"} & uids(state) == {"w777"}

    follow(MeshFile(large, state.path), steps)


def test_an_edit_changes_what_it_changes(large: Path, state: StateWriter, caplog: pytest.LogCaptureFixture) -> None:
    async def steps(changes: Changes) -> None:
        await (await next_large(changes)).write(state, {})
        caplog.clear()
        large.write_text(WITH_POD.replace("w7,", "w777,"))
        await (await next_large(changes)).write(state, {})
        assert f"{large}: 1 entries read" in caplog.text
        assert (state.epoch, len(uids(state)), uids(state) & {"w7", "w777"}) == (2, 300, {"w777"})
        large.write_text(WITH_POD.replace("w7,", "w777,") + "# the end\n")
        await (await next_large(changes)).write(state, {})
        assert state.epoch == 2

    follow(MeshFile(large, state.path), steps)


def test_what_is_known_of_a_large_file_is_void_once_it_was_small(large: Path, state: StateWriter) -> None:
    async def steps(changes: Changes) -> None:
        await (await next_large(changes)).write(state, {})
        large.write_text(GOOD.format("a"))
        small = await anext(changes)
        assert isinstance(small, Mesh)
        await small.write(state, {})
        assert uids(state) == {"a"}
        large.write_text(WITH_POD)
        await (await next_large(changes)).write(state, {})
        assert len(uids(state)) == 300

    follow(MeshFile(large, state.path), steps)


def test_a_broken_large_file_is_told_once_and_changes_nothing(large: Path, state: StateWriter) -> None:
    async def steps(changes: Changes) -> None:
        await (await next_large(changes)).write(state, {})
        for broken, error in (
            ("w7, namespace: 5", "9:24: namespace must be text"),
            ("w8, namespace: ns", "10:3: workloads: 'w8' is"),
        ):
            large.write_text(WITH_POD.replace("w7, namespace: ns", broken))
            assert str(await anext(changes)).startswith(f"{large}:{error}")
        large.unlink()
        assert "No such file" in str(await anext(changes))
        assert (state.epoch, len(uids(state))) == (1, 300)
        large.write_text(WITH_POD)
        await (await next_large(changes)).write(state, {})
        assert state.epoch == 1

    follow(MeshFile(large, state.path), steps)


def test_a_state_that_does_not_fit_is_refused_whole(large: Path, tmp_path: Path) -> None:
    async def steps(changes: Changes) -> None:
        mesh = await next_large(changes)
        with pytest.raises(StateError, match="the state does not fit into 0 MiB; nothing was applied"):
            await mesh.write(state, {"k": b"v"})

    with contextlib.closing(StateWriter(tmp_path / "state", map_size_bytes=64 << 10)) as state:
        follow(MeshFile(large, state.path), steps)
        assert (state.epoch, state.get_meta("k"), uids(state)) == (0, None, set())


def test_a_loader_that_is_killed_changes_nothing_and_is_started_again(
    large: Path, state: StateWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mesh_watch, "_AGAIN_S", 0.01)
    file = MeshFile(large, state.path)

    async def steps(changes: Changes) -> None:
        mesh = await next_large(changes)
        os.kill(mesh._process.pid, signal.SIGKILL)
        with pytest.raises(SourceError, match="ended by signal 9, perhaps for want of memory; it is read again soon"):
            await mesh.write(state, {"k": b"v"})
        assert (state.epoch, state.get_meta("k"), uids(state)) == (0, None, set())
        file.read_again()
        await (await next_large(changes)).write(state, {"k": b"v"})
        assert (state.epoch, state.get_meta("k"), len(uids(state))) == (1, b"v", 300)

    follow(file, steps)


def test_a_loader_that_cannot_start_is_told_and_tried_again(
    large: Path, state: StateWriter, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mesh_watch, "_AGAIN_S", 0.01)
    file = MeshFile(large, state.path)

    async def steps(changes: Changes) -> None:
        monkeypatch.setenv("PYTHONHASHSEED", "none of the kind")
        change = await anext(changes)
        assert isinstance(change, SourceError)
        assert "the process that reads it ended with status 1, see its last words" in str(change)
        file.read_again()
        monkeypatch.delenv("PYTHONHASHSEED")
        await (await next_large(changes)).write(state, {})

    follow(file, steps)
    assert "PYTHONHASHSEED" in capfd.readouterr().err


def test_no_process_is_left(large: Path, state: StateWriter) -> None:
    async def steps(changes: Changes) -> None:
        await next_large(changes)
        assert len(tree(os.getpid())) == 2

    follow(MeshFile(large, state.path), steps)
    assert tree(os.getpid()) == [os.getpid()]
