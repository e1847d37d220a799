"""A plug-in of pytest's inside the emulated machine: a line of JSON for each test that begins and ends, so that a machine that
stops dead still leaves what it has shown, and which test it was at.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

FILE = "TEST_RESULTS"
AGAIN = "TEST_AGAIN"  # set when the tests are those that failed
_SHOWN_CHARACTERS = 4000


class Results:
    """Writes to the file that the environment names."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")
        self._begun: dict[str, float] = {}

    def _write(self, **line: object) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._write(collected=len(session.items))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._begun[nodeid] = time.monotonic()
        self._write(begins=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # One line a test: its call, or what failed or was skipped before or after it.
        if report.when != "call" and report.outcome == "passed":
            return
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr or "")
        seconds = round(time.monotonic() - self._begun.get(report.nodeid, time.monotonic()), 2)
        again = AGAIN in os.environ
        self._write(test=report.nodeid, outcome=report.outcome, seconds=seconds, why=text[-_SHOWN_CHARACTERS:], again=again)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Results(Path(os.environ[FILE])), "kernels-results")
