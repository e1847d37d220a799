"""The BPF file system, where pinned objects outlive their process."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from nodeproxy.errors import PrivilegeError

BPFFS = Path("/sys/fs/bpf")
_BPF_FS_MAGIC = 0xCAFE4A11  # <linux/magic.h>

_libc = ctypes.CDLL(None, use_errno=True)


def is_bpffs(path: Path = BPFFS) -> bool:
    """Whether a BPF file system is mounted there.  struct statfs begins with its type."""
    data = (ctypes.c_long * 32)()
    return _libc.statfs(os.fsencode(path), data) == 0 and data[0] & 0xFFFFFFFF == _BPF_FS_MAGIC


def ensure_bpffs() -> Path:
    """Mount it where every tool expects it, if nobody has."""
    if is_bpffs():
        return BPFFS
    # nosuid, nodev, noexec (2 | 4 | 8) as systemd mounts it.
    if _libc.mount(b"bpf", os.fsencode(BPFFS), b"bpf", ctypes.c_ulong(2 | 4 | 8), b"mode=0700") != 0:
        number = ctypes.get_errno()
        raise PrivilegeError(
            f"mounting a BPF file system on {BPFFS}: {os.strerror(number)}; run as root (in a container: mount the host's there)"
        )
    return BPFFS
