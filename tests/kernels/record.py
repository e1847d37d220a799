"""What a run has shown: a file of JSON that keeps the last result of each kernel, so that one may be run again alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from tests.kernels.features import features_of

AGAIN = "passed when it was run again; at first: "


class Outcome(NamedTuple):
    """One test: passed, failed or skipped, and why.  One that failed is run again at the end, for an emulated machine that
    shares its processors may be late for any deadline; if it passes then, `why` begins with AGAIN.
    """

    test: str
    outcome: str
    seconds: float
    why: str


class Shown(NamedTuple):
    """What one kernel has shown.

    checks: the rows of `nodeproxy check`.  compile_s: how long the programs took to compile and to load, emulated; None if
    they did not.  refused: what `nodeproxy run` said if it would not start.  unfinished: the test that ran when the machine
    was stopped.
    """

    name: str
    release: str
    version: str
    suite: str
    seconds: float
    boot_s: float
    compile_s: float | None
    checks: list[dict[str, Any]]
    refused: str
    collected: int
    tests: list[Outcome]
    unfinished: str
    stopped: str

    @property
    def failed(self) -> list[Outcome]:
        return [each for each in self.tests if each.outcome == "failed"]

    def of(self, title: str) -> list[Outcome]:
        """The outcomes of one feature's tests."""
        return [each for each in self.tests if any(feature.title == title for feature in features_of(each.test))]


def once_more(before: Shown, now: Shown) -> Shown:
    """What is known of a kernel after some of its tests ran alone: of these the last outcome, and all else as it was.

    A run that was stopped is whole when what it had not reached has run as well.
    """
    ran = {each.test: each for each in now.tests}
    tests = [ran.pop(each.test, each) for each in before.tests] + list(ran.values())
    left = "" if len(tests) >= before.collected else before.unfinished
    return before._replace(tests=tests, unfinished=left, stopped=before.stopped if left else "")


def read_lines(path: Path) -> tuple[int, list[Outcome], str]:
    """How many tests there are, what came of those that ran, and which had begun and not ended; from the guest's results.

    A test that failed and whose clean-up failed as well is one failure, and so is one that passed and could not clean up.
    """
    collected, begun = 0, ""
    found: dict[str, Outcome] = {}
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except ValueError:  # the last one of a machine that was stopped
            continue
        if "collected" in line:
            collected = max(collected, line["collected"])
        elif "begins" in line:
            begun = line["begins"]
        else:
            test, before = Outcome(line["test"], line["outcome"], line["seconds"], line["why"]), found.get(line["test"])
            if before is None or before.outcome != "failed":
                found[test.test] = test
            elif line["again"] and test.outcome == "passed":
                found[test.test] = test._replace(why=AGAIN + before.why)
    return collected, list(found.values()), "" if begun in found else begun


def write(path: Path, shown: list[Shown]) -> None:
    """Keep it."""
    rows = [each._asdict() | {"tests": [test._asdict() for test in each.tests]} for each in shown]
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read(path: Path) -> list[Shown]:
    """What was kept, oldest kernel first as it was written."""
    if not path.exists():
        return []
    rows = json.loads(path.read_text(encoding="utf-8"))
    return [Shown(**row | {"tests": [Outcome(**test) for test in row["tests"]]}) for row in rows]
