from __future__ import annotations

from pathlib import Path

import pytest

from nodeproxy.errors import KernelError
from nodeproxy.linux import cgroup


def test_the_hierarchy_is_found() -> None:
    mount = cgroup.cgroup2_mount()
    assert (mount / "cgroup.procs").exists()
    assert (mount / "cgroup.controllers").exists()  # version 1 has none


def test_the_instances_own() -> None:
    assert cgroup.instance_cgroup(Path("/c"), "default") == Path("/c/nodeproxy-default")


def test_a_directory_that_is_no_cgroup(tmp_path: Path) -> None:
    assert cgroup.cgroup_id(tmp_path) == tmp_path.stat().st_ino
    with pytest.raises(KernelError):
        cgroup.cgroup_id(tmp_path / "absent")


def test_leaving_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").touch()
    cgroup.leave_and_remove(tmp_path / "nodeproxy-default")
