"""Who holds a run directory, and which store in it is whose."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from nodeproxy.agent.run_dir import LOCK_FILE, RunDir, store_of
from nodeproxy.errors import ConfigError


def test_one_holds_it(tmp_path: Path) -> None:
    first, second = RunDir(tmp_path / "run"), RunDir(tmp_path / "run")
    assert first.hold()
    assert first.hold(), "saying it twice is saying it once"
    assert not second.hold()
    assert not second.is_free()
    assert second.holder == str(os.getpid())
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700
    first.close()
    assert second.is_free()
    assert second.hold()
    second.close()


def test_to_ask_whether_it_is_free_keeps_nobody_from_holding_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Agents that were taken over from ask twice a second, and a start takes no second try."""
    asking, starting = RunDir(tmp_path), RunDir(tmp_path)
    held = []
    close = os.close

    def start_and_close(fd: int) -> None:
        held.append(starting.hold())
        close(fd)

    with monkeypatch.context() as patched:
        patched.setattr(os, "close", start_and_close)
        assert asking.is_free()
    assert held == [True]
    assert not asking.is_free()
    asking.close()
    starting.close()


def test_a_lock_that_is_passed_on_is_never_free(tmp_path: Path) -> None:
    holder, successor, other = RunDir(tmp_path), RunDir(tmp_path), RunDir(tmp_path)
    assert holder.hold()
    assert holder.store == tmp_path / "state"
    copy = holder.next_store()
    copy.mkdir()
    successor.take(os.dup(holder.lock), copy)  # as it comes over a socket
    assert not other.hold()
    holder.let_go()
    assert not holder.held
    assert not other.hold()
    assert successor.held
    assert store_of(tmp_path) == copy == tmp_path / "state-2"
    assert successor.next_store() == tmp_path / "state-3"
    successor.close()
    assert holder.hold()
    assert holder.store == copy, "whoever comes next goes on with it"
    holder.close()
    other.close()


def test_a_lock_that_came_without_a_mark_gets_it(tmp_path: Path) -> None:
    successor, other = RunDir(tmp_path), RunDir(tmp_path)
    lock = os.open(tmp_path / "lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert other.is_free()
    successor.take(lock, tmp_path / "state")
    assert not other.is_free()
    successor.close()
    other.close()


def test_the_one_that_gave_it_holds_it_still_if_nobody_took_it(tmp_path: Path) -> None:
    holder, successor, other = RunDir(tmp_path), RunDir(tmp_path), RunDir(tmp_path)
    assert holder.hold()
    successor.take(os.dup(holder.lock), holder.next_store())
    successor.close()  # it died
    assert not other.hold()
    holder.sign()
    assert store_of(tmp_path) == tmp_path / "state"
    holder.close()
    other.close()


def test_stores_of_agents_that_have_ended_go(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    for name in ("state", "state-2", "state-3", "statement"):
        (tmp_path / name).mkdir()
    assert run_dir.hold(tmp_path / "state-2")
    run_dir.remove_other_stores()
    assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK_FILE, "state-2", "statement"]
    run_dir.close()


def test_it_is_held_over_exec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("_NODEPROXY_LOCK", raising=False)
    before = RunDir(tmp_path)
    assert before.hold()
    before.keep_over_exec()
    after = RunDir(tmp_path)  # in the same process, as after exec
    assert "_NODEPROXY_LOCK" not in os.environ
    assert after.lock == before.lock
    assert after.hold()
    after.close()


@pytest.mark.parametrize("content", ["", "12\n", "12\n../elsewhere\n", "12\nstate-x\n", "\0\xff\n\n\n"])
def test_a_lock_file_that_says_nothing_of_use(tmp_path: Path, content: str) -> None:
    (tmp_path / LOCK_FILE).write_bytes(content.encode("latin-1"))
    assert store_of(tmp_path) == tmp_path / "state"


def test_a_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--run-dir"):
        RunDir(tmp_path / "file" / "run")
