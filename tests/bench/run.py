"""The schedule: each round measures each row with each contestant in turn, and every other round begins with another one.

So contestants that are compared run within seconds of each other, and what the machine does meanwhile meets them all.
"""

from __future__ import annotations

import functools
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nodeproxy.errors import NodeproxyError
from tests.bench import pods
from tests.bench.agent_rows import AgentRow
from tests.bench.contestant import Contestant
from tests.bench.metrics import kind_of, written
from tests.bench.record import Record
from tests.bench.rows import Row, Values
from tests.bench.tools import ToolError
from tests.bench.world import World, say

# What a failed measurement may be: recorded and told, and the run goes on.
_FAILURES = (ToolError, OSError, AssertionError, ValueError, subprocess.TimeoutExpired, NodeproxyError)
# In whose column the rows of one agent alone stand.
AGENT_OF = "nodeproxy"


@dataclass(frozen=True)
class Plan:
    """rounds: how often; seconds: how long a measurement of traffic takes."""

    rounds: int
    seconds: int


class Clock:
    """Time since the start, for lines of progress."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def say(self, text: str) -> None:
        say(f"[{time.monotonic() - self._began:4.0f} s] {text}")


def start(world: World, contestants: Sequence[Contestant], clock: Clock, warm: bool = True) -> None:
    """Bring every contestant up, with its applications and warm pools."""
    for contestant in contestants:
        clock.say(f"starting {contestant.title}")
        contestant.start()
        pods.start_applications(contestant, world.directory)
        if warm:
            pods.warm_up(contestant)


def measure(contestants: Sequence[Contestant], rows: Sequence[Row], plan: Plan, record: Record, clock: Clock) -> None:
    """Run the rows, all rounds; the record has the samples."""
    for number in range(plan.rounds):
        for row in rows:
            if row.max_rounds is not None and number >= row.max_rounds:
                continue
            turn = number % len(contestants)
            for contestant in (*contestants[turn:], *contestants[:turn]):
                if row.fits(contestant):
                    measured = functools.partial(row.measure, contestant, plan.seconds)
                    _one(row, contestant.name, number, plan, record, clock, measured)


def measure_agent(world: World, rows: Sequence[AgentRow], plan: Plan, record: Record, clock: Clock) -> None:
    """Run the rows of one agent alone; they stand as nodeproxy's."""
    for row in rows:
        for number in range(min(plan.rounds, row.max_rounds or plan.rounds)):
            _one(row, AGENT_OF, number, plan, record, clock, functools.partial(row.measure, world))


def _one(
    row: Row | AgentRow, name: str, number: int, plan: Plan, record: Record, clock: Clock, measured: Callable[[], Values]
) -> None:
    where = f"round {number + 1}/{min(plan.rounds, row.max_rounds or plan.rounds)}  {row.name:16} {name:20}"
    try:
        values = measured()
    except _FAILURES as error:
        record.failures.append(f"{row.name}, {name}, round {number + 1}: {error}")
        clock.say(f"{where} FAILED: {error}")
        return
    record.add(name, row.name, number, values)
    clock.say(f"{where} {_shown(row, values)}")


def _shown(row: Row | AgentRow, values: Values) -> str:
    parts = []
    for name, value in values.items():
        metric = f"{row.name}.{name}"
        kind = kind_of(metric)
        parts.append(f"{kind.title} {written(metric, value)} {kind.unit}")
    return ", ".join(parts)
