"""Directories whose files change, by inotify(7): what changed is not told, only that something did.

It must not know what is in them.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import threading
from collections.abc import Iterable
from pathlib import Path

from nodeproxy.errors import KernelError

# <sys/inotify.h>: a file was written and closed, came, went; or the directory itself did.
_CLOSE_WRITE, _MOVED_FROM, _MOVED_TO, _DELETE, _DELETE_SELF, _MOVE_SELF = 0x8, 0x40, 0x80, 0x200, 0x400, 0x800
_EVENTS = _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _DELETE | _DELETE_SELF | _MOVE_SELF
_ONLYDIR = 0x01000000


class Watch:
    """Open it once, `look_at` before the directories are read, so that no change is missed."""

    def __init__(self) -> None:
        """Raises KernelError, e.g. when there are too many (fs.inotify.max_user_instances)."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            number = ctypes.get_errno()
            raise KernelError(f"inotify_init1: {os.strerror(number)}", number)

    def look_at(self, directories: Iterable[Path]) -> None:
        """Changes of these count from now on, also where another directory has come in the place of one.

        Those that are not there are left out.
        """
        with contextlib.suppress(BlockingIOError):
            while True:
                os.read(self._descriptor, 65536)
        for directory in directories:
            self._libc.inotify_add_watch(self._descriptor, os.fsencode(directory), ctypes.c_uint32(_EVENTS | _ONLYDIR))

    def close(self) -> None:
        """In a thread: the kernel waits for its reaper of marks, 10 s while it takes many network namespaces down [tried]."""
        threading.Thread(target=os.close, args=(self._descriptor,), daemon=True).start()

    async def wait_change(self, timeout_s: float) -> None:
        """Until something has changed since `look_at`, or for that long."""
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()
        loop.add_reader(self._descriptor, changed.set)
        try:
            async with asyncio.timeout(timeout_s):
                await changed.wait()
        except TimeoutError:
            pass
        finally:
            loop.remove_reader(self._descriptor)
