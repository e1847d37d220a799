"""What a demo leaves on the machine, and removing it, whoever died and when.

Everything of a demo has its identifier in its name: network namespaces, cgroups, pins, run directories.  Its directory is
made first and removed last, and is locked while the demo runs.  So whatever was left by one that was killed can be found and
told from a demo that is still going on.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from nodeproxy.config import RUN_ROOT
from nodeproxy.kernel.pins import ROOT as PINS_ROOT
from nodeproxy.kernel.steering import Steering
from nodeproxy.lab.demo_programs import wait_until
from nodeproxy.lab.topology import remove_netns
from nodeproxy.linux.cgroup import cgroup2_mount

DEMO_ROOT = Path("/run/nodeproxy-demo")
_NETNS_ROOT = Path("/run/netns")
_IDENTIFIER = re.compile(r"[0-9a-f]{4}")
_LOCK_NAME = "lock"
# cgroup.kill is done at once; a process that sits in an uninterruptible call takes longer.
_KILL_TIMEOUT_S = 10.0


def prefix(identifier: str) -> str:
    """How the names of namespaces and instances begin."""
    return f"demo-{identifier}"


def cgroup_of(identifier: str) -> Path:
    """The cgroup that every process of the demo is below."""
    return cgroup2_mount() / f"nodeproxy-demo-{identifier}"


def make_directory(identifier: str) -> tuple[Path, int]:
    """The demo's directory, for root only, and the descriptor of its lock."""
    directory = DEMO_ROOT / identifier
    DEMO_ROOT.mkdir(mode=0o700, exist_ok=True)
    directory.mkdir(mode=0o700)
    lock = os.open(directory / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return directory, lock


def abandoned() -> Iterator[str]:
    """Demos whose process has ended and that left something."""
    if not DEMO_ROOT.is_dir():
        return
    for directory in sorted(DEMO_ROOT.iterdir()):
        if _IDENTIFIER.fullmatch(directory.name) and not _is_locked(directory / _LOCK_NAME):
            yield directory.name


def _is_locked(path: Path) -> bool:
    try:
        lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:  # killed between making the directory and this file
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def kill_processes(identifier: str) -> None:
    """End every process of the demo."""
    cgroup = cgroup_of(identifier)
    if not cgroup.is_dir():
        return
    (cgroup / "cgroup.kill").write_text("1", encoding="ascii")
    wait_until(
        lambda: "populated 0" in (cgroup / "cgroup.events").read_text(encoding="ascii"),
        f"the processes in {cgroup} end",
        _KILL_TIMEOUT_S,
    )


def sweep(identifier: str) -> None:
    """Remove all of a demo.  Does nothing where nothing is."""
    kill_processes(identifier)
    for pins in _named(PINS_ROOT, identifier):
        Steering.uninstall(pins.name)
    for netns in _named(_NETNS_ROOT, identifier):
        remove_netns(netns.name)
    cgroup = cgroup_of(identifier)
    for directory, _, _ in os.walk(cgroup, topdown=False):
        os.rmdir(directory)
    for run_dir in _named(RUN_ROOT, identifier):
        shutil.rmtree(run_dir)
    if (DEMO_ROOT / identifier).exists():
        shutil.rmtree(DEMO_ROOT / identifier)
    if DEMO_ROOT.is_dir() and not any(DEMO_ROOT.iterdir()):
        DEMO_ROOT.rmdir()


def leftovers(identifier: str) -> list[Path]:
    """What of a demo is still there."""
    places = (PINS_ROOT, _NETNS_ROOT, RUN_ROOT)
    found = [path for place in places for path in _named(place, identifier)]
    return found + [path for path in (cgroup_of(identifier), DEMO_ROOT / identifier) if path.exists()]


def _named(place: Path, identifier: str) -> list[Path]:
    return sorted(place.glob(f"{prefix(identifier)}-*"))
