"""The connection between two agents of one instance, within the event loop.

Invariant: what is posted is sent in order, and never waited for; `receive` gives what came, then None for ever.  Descriptors that
came and were not asked for are closed with the link.
It must not know what is said.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from typing import Generic, TypeVar

import msgspec

from nodeproxy.agent.outbox import Outbox, close_all
from nodeproxy.model.channel import Channel

T = TypeVar("T")

log = logging.getLogger(__name__)


class Link(Generic[T]):
    """One end of it; made and used within a running loop."""

    def __init__(self, sock: socket.socket, expected: object) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._channel: Channel[T] = Channel(sock, expected)
        self._loop = asyncio.get_running_loop()
        self._outbox = Outbox(self._channel)
        self._inbox: deque[tuple[T, list[int]]] = deque()
        self._changed = asyncio.Event()
        self.ended = asyncio.Event()  # the other end is gone, or this one was closed
        self._loop.add_reader(sock.fileno(), self._readable)

    def post(self, message: msgspec.Struct, fds: tuple[int, ...] = ()) -> bool:
        """Send it, with copies of these descriptors; False: the other end is gone.  Raises OSError if they can't be copied."""
        if self.ended.is_set():
            return False
        if self._outbox.full:
            log.error("the other agent of this instance has not read for long: it is given up")
        elif self._outbox.send(message, fds):
            return True
        self._end()
        return False

    async def receive(self) -> tuple[T, list[int]] | None:
        """The next message and its descriptors, the caller's; None: there will be no more."""
        while not self._inbox:
            if self.ended.is_set():
                return None
            self._changed.clear()
            await self._changed.wait()
        return self._inbox.popleft()

    async def receive_within(self, limit_s: float) -> tuple[T, list[int]] | None:
        """`receive`; raises TimeoutError if nothing has come by then."""
        try:
            async with asyncio.timeout(limit_s):
                return await self.receive()
        except TimeoutError:
            self._readable()  # this process may have stood still: what came in time counts
            if not self._inbox:
                raise
            return self._inbox.popleft()

    def close(self) -> None:
        """Nothing is said any more, nor heard; also after the loop has ended."""
        self._end()
        while self._inbox:
            close_all(self._inbox.popleft()[1])

    def _end(self) -> None:
        """Nothing is said any more; what came and was not asked for yet can be."""
        if self.ended.is_set():
            return
        if not self._loop.is_closed():
            self._loop.remove_reader(self._sock.fileno())
        self._outbox.close()
        self._sock.close()
        self.ended.set()
        self._changed.set()

    def _readable(self) -> None:
        while not self.ended.is_set():
            try:
                received = self._channel.receive()
            except BlockingIOError:
                return
            except OSError:
                received = None
            except msgspec.MsgspecError as error:
                log.error("the other agent of this instance says what this version does not understand: %s", error)
                received = None
            if received is None:
                self._end()
                return
            self._inbox.append(received)
            self._changed.set()
