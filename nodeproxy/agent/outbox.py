"""What is said to another process that may not read at this moment: sent in order from the event loop, and never waited for.

Invariant: a descriptor that waits is a copy, and is closed when it was sent, or when nothing is sent any more.
It must not know what is said.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Iterable
from typing import Any

import msgspec

from nodeproxy.model.channel import Channel

# What may wait for a process that does not read; beyond it, it hangs.
MAX_WAITING = 4096


class Outbox:
    """Of one channel, whose socket does not block; made and used within a running loop.  `full`: the other end does not read."""

    def __init__(self, channel: Channel[Any]) -> None:
        self._channel = channel
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[msgspec.Struct, tuple[int, ...]]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether nothing more may wait."""
        return len(self._waiting) >= MAX_WAITING

    def send(self, message: msgspec.Struct, fds: tuple[int, ...] = ()) -> bool:
        """Send it, at once or when the other end reads; False: that is gone.  Raises OSError if descriptors can't be copied."""
        if not self._waiting:
            try:
                self._channel.send(message, fds)
            except BlockingIOError:
                pass
            except OSError:
                return False
            else:
                return True
        copies: list[int] = []
        try:
            for fd in fds:
                copies.append(os.dup(fd))
        except OSError:
            close_all(copies)
            raise
        if not self._waiting:
            self._loop.add_writer(self._channel.sock.fileno(), self._writable)
        self._waiting.append((message, tuple(copies)))
        return True

    def close(self) -> None:
        """Send nothing any more; before the socket is closed, and be it after the loop."""
        if not self._loop.is_closed():
            self._loop.remove_writer(self._channel.sock.fileno())
        while self._waiting:
            close_all(self._waiting.popleft()[1])

    def _writable(self) -> None:
        while self._waiting:
            message, fds = self._waiting[0]
            try:
                self._channel.send(message, fds)
            except BlockingIOError:
                return
            except OSError:
                break  # it is gone, which whoever reads sees
            self._waiting.popleft()
            close_all(fds)
        self.close()


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors."""
    for fd in fds:
        os.close(fd)
