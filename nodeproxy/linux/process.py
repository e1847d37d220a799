"""What prctl(2) offers and Python does not."""

from __future__ import annotations

import ctypes
import os
import signal

from nodeproxy.errors import KernelError

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, however it ends."""
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        errno = ctypes.get_errno()
        raise KernelError(f"prctl(PR_SET_PDEATHSIG) failed: {os.strerror(errno)}", errno)
    if os.getppid() != parent:
        # It ended between the two calls: the signal will never come.
        os.kill(os.getpid(), signal.SIGKILL)
