"""What the demo tells: for people as it goes, with colour on a terminal only; for programs as one JSON document at the end.

Invariant: a step counts as passed only if its block ended without an exception.  Knows nothing of what is shown.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nodeproxy.errors import NodeproxyError
from nodeproxy.lab import demo_signals

_BOLD, _DIM, _GREEN, _RED, _RESET = "\x1b[1m", "\x1b[2m", "\x1b[32m", "\x1b[31m", "\x1b[0m"


class Failed(NodeproxyError):
    """Something that the demo was to show did not hold."""


class Report:
    """The steps so far.  What is told belongs to the step that is going on.  identifier: the demo's, part of all its names."""

    def __init__(self, *, as_json: bool, colour: bool) -> None:
        self._as_json, self._colour = as_json, colour
        self._begun = time.monotonic()
        self.identifier = ""
        self._steps: list[dict[str, Any]] = []

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """One step, from its title to its end or failure."""
        demo_signals.check()
        begun = time.monotonic()
        entry: dict[str, Any] = {"title": title, "ok": False, "commands": [], "evidence": [], "failure": "", "seconds": 0.0}
        self._steps.append(entry)
        self._print(f"\n{self._paint(_BOLD, f'{len(self._steps)}. {title}')}")
        try:
            yield
            entry["ok"] = True
        except Exception as exc:
            entry["failure"] = str(exc)
            self._print(f"  {self._paint(_RED, '✗')} {exc}")
            raise
        finally:
            entry["seconds"] = round(time.monotonic() - begun, 3)

    def say(self, text: str) -> None:
        """Something to know that is no evidence."""
        self._print(text)

    def command(self, where: str, command: str, output: str = "") -> None:
        """What was run, and what it printed."""
        self._steps[-1]["commands"].append({"where": where, "command": command, "output": output})
        self._print(f"  {self._paint(_DIM, f'{where} $')} {command}")
        for line in output.splitlines():
            self._print(f"  {self._paint(_DIM, '│')} {line}")

    def show(self, evidence: str) -> None:
        """Something that was measured and is as it should be."""
        demo_signals.check()
        self._steps[-1]["evidence"].append(evidence)
        self._print(f"  {self._paint(_GREEN, '✓')} {evidence}")

    def end(self, failure: str) -> int:
        """Tell the result; the exit status.  failure: why it ended early, "" if it did not."""
        passed = not failure and all(step["ok"] for step in self._steps)
        seconds = round(time.monotonic() - self._begun, 3)
        if self._as_json:
            document = {"ok": passed, "identifier": self.identifier, "seconds": seconds, "failure": failure, "steps": self._steps}
            print(json.dumps(document, indent=2, ensure_ascii=False))
        elif passed:
            self._print(f"\n{self._paint(_GREEN, 'All of it held.')}  {len(self._steps)} steps in {seconds:.1f} s.")
        else:
            self._print(f"\n{self._paint(_RED, 'It did not hold:')} {failure}")
        return 0 if passed else 1

    def _print(self, text: str) -> None:
        if not self._as_json:
            print(text, flush=True)

    def _paint(self, colour: str, text: str) -> str:
        return f"{colour}{text}{_RESET}" if self._colour else text


def expect(condition: bool, otherwise: str) -> None:
    """Fail the step unless the condition holds."""
    if not condition:
        raise Failed(otherwise)
