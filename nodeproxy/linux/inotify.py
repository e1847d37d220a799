"""Directories whose files change, by inotify(7): what changed is not told, only that something did.

It must not know what is in them.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from nodeproxy.errors import KernelError

# <sys/inotify.h>: a file was written and closed, came, went; or the directory itself did.
_CLOSE_WRITE, _MOVED_FROM, _MOVED_TO, _DELETE, _DELETE_SELF, _MOVE_SELF = 0x8, 0x40, 0x80, 0x200, 0x400, 0x800
_EVENTS = _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _DELETE | _DELETE_SELF | _MOVE_SELF
_ONLYDIR = 0x01000000


class Watch:
    """Open before the directories are read, so that no change is missed; those that are not there are left out."""

    def __init__(self, directories: Iterable[Path]) -> None:
        """Raises KernelError, e.g. when there are too many watches (fs.inotify.max_user_instances)."""
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            number = ctypes.get_errno()
            raise KernelError(f"inotify_init1: {os.strerror(number)}", number)
        for directory in directories:
            libc.inotify_add_watch(self._descriptor, os.fsencode(directory), ctypes.c_uint32(_EVENTS | _ONLYDIR))

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        os.close(self._descriptor)

    async def wait_change(self, timeout_s: float) -> None:
        """Until something has changed since it was opened, or for that long."""
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
