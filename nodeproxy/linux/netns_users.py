"""Whether anybody runs in a network namespace."""

from __future__ import annotations

import os
from pathlib import Path

_PROC = Path("/proc")


def has_processes(inode: int, proc: Path = _PROC) -> bool:
    """Whether a process is in the network namespace of that number, as far as this one sees processes.

    Reads all of /proc: do it in a thread.
    """
    wanted = f"net:[{inode}]"
    for pid in filter(str.isdecimal, os.listdir(proc)):
        try:
            if os.readlink(proc / pid / "ns" / "net") == wanted:
                return True
        except OSError:  # it has ended meanwhile
            continue
    return False
