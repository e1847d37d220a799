"""Readers: snapshots, the cheap epoch check, fork."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nodeproxy.errors import StateError
from nodeproxy.model.delta import Delta
from nodeproxy.state.reader import StateReader
from nodeproxy.state.store import StateWriter
from tests.unit.state.builders import pod


def in_child(work: object) -> bytes:
    """What `work` returns in a forked child; it must not raise."""
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = work()  # type: ignore[operator]
        except BaseException as exc:
            answer = repr(exc).encode()
        os.write(into, answer)
        os._exit(0)
    os.close(into)
    with os.fdopen(out, "rb") as file:
        answer = file.read()
    os.waitpid(pid, 0)
    return answer


def test_the_view_is_the_same_object_until_something_changes(tmp_path: Path) -> None:
    writer = StateWriter(tmp_path)
    writer.apply(Delta(workloads=(pod("a", "10.0.0.1"),)))
    reader = writer.reader()
    first = reader.view()
    assert first.epoch == writer.epoch
    found = first.workload("a")
    assert reader.view() is first
    reader.release()
    assert reader.view() is first
    assert reader.view().workload("a") is found
    writer.apply(Delta(workloads=(pod("a", "10.0.0.2"),)))
    second = reader.view()
    assert second is not first
    assert second.epoch == writer.epoch
    assert second.workload("a") == pod("a", "10.0.0.2")
    reader.close()
    writer.close()


def test_a_view_keeps_its_snapshot_while_the_writer_goes_on(tmp_path: Path) -> None:
    writer = StateWriter(tmp_path)
    writer.apply(Delta(workloads=(pod("a", "10.0.0.1"),)))
    reader = writer.reader()
    view = reader.view()
    writer.apply(Delta(removed_workloads=("a",)))
    assert view.workload("a") == pod("a", "10.0.0.1")
    assert reader.view().workload("a") is None
    writer.close()


def test_a_released_reader_does_not_make_the_store_grow(tmp_path: Path) -> None:
    writer = StateWriter(tmp_path)
    workloads = [tuple(pod(f"w{n}", f"10.0.0.{n}", node=f"node-{turn}") for n in range(50)) for turn in range(2)]
    reader = writer.reader()
    sizes = []
    for turn in range(60):
        writer.apply(Delta(workloads=workloads[turn % 2]))
        reader.view()
        reader.release()
        sizes.append((tmp_path / "data.mdb").stat().st_size)
    assert sizes[-1] == sizes[20]
    writer.close()


def test_a_forked_worker_reads_while_its_parent_writes(tmp_path: Path) -> None:
    writer = StateWriter(tmp_path)
    writer.apply(Delta(workloads=(pod("a", "10.0.0.1"),)))
    reader = writer.reader()
    view = reader.view()

    def work() -> bytes:
        child = StateReader(tmp_path)
        return b"%d" % child.view().counts()["workloads"]

    assert in_child(work) == b"1"
    # The child let go of what it inherited without touching the parent's snapshot.
    writer.apply(Delta(removed_workloads=("a",)))
    writer.apply(Delta(workloads=(pod("b", "10.0.0.2"),)))
    assert view.workload("a") == pod("a", "10.0.0.1")
    assert view.counts() == {"workloads": 1, "services": 0, "policies": 0}
    assert in_child(work) == b"1"
    reader.close()
    writer.close()


def test_a_child_sees_what_its_parent_writes_later(tmp_path: Path) -> None:
    writer = StateWriter(tmp_path)
    go, into = os.pipe()

    def work() -> bytes:
        child = StateReader(tmp_path)
        before = child.view().is_incomplete
        child.release()
        os.read(go, 1)
        return b"%d%d" % (before, child.view().is_incomplete)

    out, answer_into = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(answer_into, b".")
        os.write(answer_into, work())
        os._exit(0)
    os.read(out, 1)
    writer.apply(Delta())  # nothing
    # The child may or may not have looked yet; what it sees after `go` is what counts.
    writer.apply(Delta(workloads=(pod("a", "10.0.0.1"),)))
    os.write(into, b".")
    answer = os.read(out, 2)
    os.waitpid(pid, 0)
    for fd in (go, into, out, answer_into):
        os.close(fd)
    writer.close()
    assert answer[1:] == b"0"


def test_no_state_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="no readable state"):
        StateReader(tmp_path)


def test_meta(tmp_path: Path) -> None:
    writer = StateWriter(tmp_path)
    writer.put_meta({"key": b"value"})
    reader = writer.reader()
    assert reader.get_meta("key") == b"value"
    assert reader.get_meta("other") is None
    writer.close()
