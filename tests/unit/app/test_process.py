from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import logging
from nodeproxy.app.process import set_up_logging
set_up_logging({!r})
logging.getLogger("a").warning('it says "%s"', "no")
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("b").exception("why")
"""


def lines(log_format: str) -> list[str]:
    result = subprocess.run([sys.executable, "-c", PROGRAM.format(log_format)], capture_output=True, text=True, timeout=30)
    assert result.returncode == 0
    return result.stderr.splitlines()


def test_json_is_one_line_an_event_with_its_trace() -> None:
    first, second = [json.loads(line) for line in lines("json")]
    assert (first["level"], first["scope"], first["message"]) == ("WARNING", "a", 'it says "no"')
    assert second["message"].startswith("why\nTraceback")
    assert "ZeroDivisionError" in second["message"]


def test_text_has_tabs() -> None:
    assert lines("text")[0].split("\t")[1:] == ["WARNING", "a", 'it says "no"']
