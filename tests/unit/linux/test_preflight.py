from __future__ import annotations

import os
import platform

import pytest

from nodeproxy.app.run import _require_privileges
from nodeproxy.errors import PrivilegeError
from nodeproxy.linux import preflight


def test_rows_have_names_and_what_fails_has_a_remedy() -> None:
    rows = preflight.rows()
    assert len({row.name for row in rows}) == len(rows) == 13
    for row in rows:
        assert row.found
        assert row.ok == (row.remedy == "")
    if os.geteuid() == 0:
        assert [row for row in rows if row.name.startswith("CAP_") and not row.ok] == []


def test_a_kernel_that_is_too_old_is_refused_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "release", lambda: "5.10.0-46-amd64")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(
        PrivilegeError, match=r"this is Linux 5\.10\.0-46-amd64, and nodeproxy needs Linux 6\.1 or later: boot a kernel"
    ):
        _require_privileges()


@pytest.mark.parametrize(
    ("release", "ok"), [("6.0.9", False), ("6.1.0-56-amd64", True), ("7.3.4+deb13-amd64", True), ("10.0", True)]
)
def test_kernels(monkeypatch: pytest.MonkeyPatch, release: str, ok: bool) -> None:
    monkeypatch.setattr(platform, "release", lambda: release)
    assert preflight.kernel().ok == ok
