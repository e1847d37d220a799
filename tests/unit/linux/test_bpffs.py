from __future__ import annotations

from pathlib import Path

from nodeproxy.linux.bpffs import is_bpffs


def test_another_file_system_is_none(tmp_path: Path) -> None:
    assert not is_bpffs(tmp_path)
    assert not is_bpffs(tmp_path / "absent")
