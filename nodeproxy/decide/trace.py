"""The steps of a decision, for `why`: a decision that is asked to tell appends what it looked at and what came of it."""

from __future__ import annotations

import msgspec


class Step(msgspec.Struct, frozen=True):
    """One step.  what: the question; outcome: the answer; resource: "ns/name" or uid of what decided, "" if nothing did."""

    what: str
    outcome: str
    resource: str = ""


Trace = list[Step]


def note(trace: Trace | None, what: str, outcome: str, resource: str = "") -> None:
    """Append a step if somebody listens."""
    if trace is not None:
        trace.append(Step(what, outcome, resource))
