"""The connection between two agents of one instance, within the event loop.

Invariant: what is posted is sent in order, and never waited for; `receive` gives what came, then None for ever.
It must not know what is said.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import deque
from typing import Generic, TypeVar

import msgspec

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
        self._outbox: deque[tuple[msgspec.Struct, tuple[int, ...]]] = deque()
        self._inbox: deque[tuple[T, list[int]]] = deque()
        self._changed = asyncio.Event()
        self.ended = asyncio.Event()  # the other end is gone, or this one was closed
        self._loop.add_reader(sock.fileno(), self._readable)

    def post(self, message: msgspec.Struct, fds: tuple[int, ...] = ()) -> bool:
        """Send it, with copies of these descriptors; False: the other end is gone."""
        if self.ended.is_set():
            return False
        if not self._outbox:
            try:
                self._channel.send(message, fds)
            except BlockingIOError:
                self._loop.add_writer(self._sock.fileno(), self._writable)
            except OSError:
                self.close()
                return False
            else:
                return True
        self._outbox.append((message, tuple(os.dup(fd) for fd in fds)))
        return True

    async def receive(self) -> tuple[T, list[int]] | None:
        """The next message and its descriptors, the caller's; None: there will be no more."""
        while not self._inbox:
            if self.ended.is_set():
                return None
            self._changed.clear()
            await self._changed.wait()
        return self._inbox.popleft()

    def close(self) -> None:
        """Nothing is said any more; what came and was not asked for yet can be."""
        if self.ended.is_set():
            return
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        for _, fds in self._outbox:
            _close_all(fds)
        self._outbox.clear()
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
                self.close()
                return
            self._inbox.append(received)
            self._changed.set()

    def _writable(self) -> None:
        while self._outbox:
            message, fds = self._outbox[0]
            try:
                self._channel.send(message, fds)
            except BlockingIOError:
                return
            except OSError:
                self.close()
                return
            self._outbox.popleft()
            _close_all(fds)
        self._loop.remove_writer(self._sock.fileno())


def _close_all(fds: tuple[int, ...]) -> None:
    for fd in fds:
        os.close(fd)
