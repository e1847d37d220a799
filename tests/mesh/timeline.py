"""Which states of the mesh were in force when, and what attempts to connect may have met.

A state is in force from the moment that it may be, when its edit is written, until its successor surely is, when the store has
it.  So several may have been in force during an attempt; what all of them say is what must have come of it.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from nodeproxy.lab.topology import Host

PROGRAM = [sys.executable, str(Path(__file__).with_name("knocking.py"))]
S = TypeVar("S")


@dataclass(frozen=True)
class Attempt:
    """One attempt to reach the target at `place`; nanoseconds of CLOCK_MONOTONIC.  who: greeted it; "": nobody, "?": silence."""

    place: int
    begun: int
    ended: int
    who: str


@dataclass
class Timeline(Generic[S]):
    """States, each with when it may have begun to hold, and when it surely did."""

    states: list[S] = field(default_factory=list)
    may: list[int] = field(default_factory=list)
    must: list[int] = field(default_factory=list)

    def begins(self, state: S) -> None:
        """From now on this may hold."""
        self.states.append(state)
        self.may.append(time.monotonic_ns())

    def holds(self, since: int = 0) -> None:
        """It does, and no other; since: when that began, by default now."""
        self.must.append(since or time.monotonic_ns())

    def wrong(self, attempts: Sequence[Attempt], outcomes: Callable[[S, int], set[str]]) -> tuple[list[str], list[str]]:
        """(what stood and must not have, what was refused and must not have been).

        outcomes(state, place): who may answer at that target in this state, "" nobody.
        """
        opened, refused = [], []
        first = 0
        for attempt in sorted(attempts, key=lambda each: each.begun):
            while first + 1 < len(self.states) and self.must[first + 1] <= attempt.begun:
                first += 1
            last = first
            while last + 1 < len(self.states) and self.may[last + 1] <= attempt.ended:
                last += 1
            states = self.states[first : last + 1]
            if attempt.who.rstrip("?") not in set[str]().union(*(outcomes(state, attempt.place) for state in states)):
                told = f"{attempt}, {(attempt.begun - self.must[first]) // 1000} us after its state held: {states}"
                (opened if attempt.who not in ("", "?") else refused).append(told)
        return opened, refused


class Program:
    """`knocking.py` with these arguments, in a host."""

    def __init__(self, host: Host, *arguments: Any, cgroup: Path | None = None) -> None:
        argv = [*PROGRAM, *map(str, arguments)]
        self._process = host.popen(argv, cgroup=cgroup, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())
        self._process.stdin.flush()

    def hear(self) -> str:
        """Its next line."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode().strip()

    def end(self) -> str:
        """What it has still to say."""
        out, _ = self._process.communicate(timeout=30)
        assert self._process.returncode == 0
        return out.decode()


def attempts_of(program: Program) -> list[Attempt]:
    """End a `connect`; what it tried."""
    attempts = []
    for line in program.end().splitlines():
        place, begun, ended, who = line.split(" ")
        attempts.append(Attempt(int(place), int(begun), int(ended), who))
    return attempts
