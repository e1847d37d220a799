from __future__ import annotations

import os

from nodeproxy.linux import preflight


def test_rows_have_names_and_what_fails_has_a_remedy() -> None:
    rows = preflight.rows()
    assert len({row.name for row in rows}) == len(rows) == 10
    for row in rows:
        assert row.found
        assert row.ok == (row.remedy == "")
    if os.geteuid() == 0:
        assert [row for row in rows if row.name.startswith("CAP_") and not row.ok] == []
