"""One connection to istio-cni: packets with their descriptors, over a Unix socket that keeps packets apart.

Invariant: a descriptor that came is its receiver's, or is closed, whatever else is wrong with its packet.  It must not know what
is in a packet.
"""

from __future__ import annotations

import array
import asyncio
import os
import select
import socket
import struct
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple

from nodeproxy.agent.pods.zds_protocol import MAX_PACKET_BYTES
from nodeproxy.errors import EnrolmentError

# One is right; of more that come at once the kernel closes those that there is no room for.
_MAX_DESCRIPTORS: Final = 4
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid


class Packet(NamedTuple):
    """What came.  fds: the receiver's to close.  whole: nothing of it was cut off."""

    data: bytes
    fds: tuple[int, ...]
    whole: bool


class ZdsConnection:
    """Use it in a `with` block, which closes it."""

    def __init__(self, path: Path) -> None:
        """Raises EnrolmentError if istio-cni is not there."""
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            self._sock.connect(str(path))
            _, uid, _ = _CREDENTIALS.unpack(self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        except OSError as error:
            self._sock.close()
            raise EnrolmentError(f"istio-cni is not there: {path}: {error.strerror or error}") from error
        if uid != os.geteuid():
            self._sock.close()
            raise EnrolmentError(f"{path} is served by uid {uid}, which has no say about the pods of this node")

    def __enter__(self) -> ZdsConnection:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._sock.close()

    @property
    def has_more(self) -> bool:
        """Whether something has come that was not received yet."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return bool(poll.poll(0))

    def send(self, packet: bytes) -> None:
        """Send one.  Raises EnrolmentError: the other end is gone, or does not read."""
        try:
            self._sock.send(packet)
        except OSError as error:
            raise EnrolmentError(f"istio-cni takes no answers: {error.strerror or error}") from error

    async def receive(self) -> Packet | None:
        """The next one; None: the other end has closed.  Raises EnrolmentError."""
        while True:
            try:
                data, ancillary, flags, _ = self._sock.recvmsg(
                    MAX_PACKET_BYTES, socket.CMSG_SPACE(_MAX_DESCRIPTORS * 4), socket.MSG_CMSG_CLOEXEC
                )
                break
            except BlockingIOError:
                await self._readable()
            except OSError as error:
                raise EnrolmentError(f"istio-cni's connection broke: {error.strerror or error}") from error
        fds = array.array("i")
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
        if not data and not fds:
            return None
        return Packet(data, tuple(fds), not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC))

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()

        def tell() -> None:
            if not ready.done():
                ready.set_result(None)

        loop.add_reader(self._sock, tell)
        try:
            await ready
        finally:
            loop.remove_reader(self._sock)
