"""The control group (version 2) that the agent and its workers run in.

Its number is how eBPF knows the proxy's own sockets: a pod can forge a mark, but it cannot create a socket in this cgroup.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from nodeproxy.errors import KernelError, PrivilegeError


def cgroup2_mount() -> Path:
    """Where the version 2 hierarchy is mounted; on hybrid hosts that is not /sys/fs/cgroup itself."""
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        before, _, after = line.partition(" - ")
        if after.split(" ", 1)[0] == "cgroup2":
            fields = before.split(" ")
            if fields[3] == "/":  # not a bind mount of a part of it
                return Path(fields[4].encode().decode("unicode_escape"))
    raise PrivilegeError(
        "no cgroup v2 hierarchy is mounted whole: mount -t cgroup2 none /sys/fs/cgroup/unified (in a container: the host's)"
    )


# What the names of instances' cgroups begin with.
PREFIX = "nodeproxy-"


def instance_cgroup(root: Path, instance: str) -> Path:
    """The directory of an instance's own cgroup."""
    return root / f"{PREFIX}{instance}"


def cgroup_id(path: Path) -> int:
    """The kernel's number of a cgroup: its directory's inode."""
    try:
        return path.stat().st_ino
    except OSError as error:
        raise KernelError(f"cgroup {path}: {error.strerror}", error.errno or 0) from error


def enter(path: Path) -> int:
    """Make the cgroup if it is not there and move this process into it; its number."""
    try:
        path.mkdir(exist_ok=True)
        _move_here(path)
    except PermissionError as error:
        raise PrivilegeError(f"cgroup {path}: {error.strerror}; run as root, with /sys/fs/cgroup writable") from error
    except OSError as error:
        raise KernelError(
            f"cgroup {path}: {error.strerror}; --cgroup-root must be a cgroup v2 directory", error.errno or 0
        ) from error
    return cgroup_id(path)


def leave_and_remove(path: Path) -> None:
    """Move this process to the parent and remove the cgroup, which stays while others are in it."""
    try:
        _move_here(path.parent)
        path.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise KernelError(f"cgroup {path}: {error.strerror}", error.errno or 0) from error


def _move_here(path: Path) -> None:
    (path / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
