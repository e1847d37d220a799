"""What processes cost: CPU seconds and memory, from /proc."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found = [pid]
    for parent in found:
        for task in _listed(Path(f"/proc/{parent}/task")):
            try:
                found += map(int, (task / "children").read_text().split())
            except FileNotFoundError:
                continue  # it has ended meanwhile
    return found


def _listed(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except FileNotFoundError:
        return []


def parse_stat_cpu_s(text: str) -> float:
    """User and system time in /proc/PID/stat (proc(5): fields 14 and 15, after a name that may hold anything)."""
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_A_SECOND


def parse_pss_bytes(text: str) -> int:
    """The proportional set size in /proc/PID/smaps_rollup."""
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:"))


def cpu_s(pids: Iterable[int]) -> float:
    """CPU time that processes have used since they began."""
    return sum(parse_stat_cpu_s(Path(f"/proc/{pid}/stat").read_text()) for pid in pids)


def pss_bytes(pids: Iterable[int]) -> int:
    """Memory of processes; what several share counts once."""
    return sum(parse_pss_bytes(Path(f"/proc/{pid}/smaps_rollup").read_text()) for pid in pids)
