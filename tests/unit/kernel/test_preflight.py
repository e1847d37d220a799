from __future__ import annotations

import os

from nodeproxy.kernel import preflight
from nodeproxy.kernel.programs import PROGRAMS


def test_each_program_has_a_row_and_what_fails_has_a_remedy() -> None:
    rows = preflight.rows()
    assert [row.name for row in rows[2:]] == [f"eBPF program {program.name}" for program in PROGRAMS]
    for row in rows:
        assert row.ok == (row.remedy == "")
    if os.geteuid() == 0:
        assert all(row.ok for row in rows)
