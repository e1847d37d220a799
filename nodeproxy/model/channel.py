"""Typed messages over a Unix SOCK_SEQPACKET pair, with descriptors: what both ends of `messages` share.

Blocking or not is the socket's own setting; nothing here waits.  A packet that is none of the expected types raises msgspec's
error: both ends are the same version of the same program, so that is a defect.
"""

from __future__ import annotations

import array
import os
import socket
from typing import Generic, TypeVar

import msgspec

from nodeproxy.model.messages import MAX_DESCRIPTORS, MAX_MESSAGE_BYTES

T = TypeVar("T")


class Channel(Generic[T]):
    """One end: sends any message, receives those of the union `expected`."""

    def __init__(self, sock: socket.socket, expected: object) -> None:
        self.sock = sock
        self._decoder = msgspec.msgpack.Decoder(expected)
        self._encoder = msgspec.msgpack.Encoder()

    @staticmethod
    def pair() -> tuple[socket.socket, socket.socket]:
        """Two connected sockets, both close-on-exec."""
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def send(self, message: msgspec.Struct, fds: tuple[int, ...] = ()) -> None:
        """Send one packet.  Raises BlockingIOError when the other end is slow and the socket does not block, OSError when it is
        gone."""
        data = self._encoder.encode(message)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.sock.sendmsg([data], ancillary)

    def receive(self) -> tuple[T, list[int]] | None:
        """One packet and the descriptors in it, now the caller's; None: the other end is gone.  Raises BlockingIOError if none
        is there."""
        try:
            data, ancillary, _, _ = self.sock.recvmsg(
                MAX_MESSAGE_BYTES, socket.CMSG_LEN(MAX_DESCRIPTORS * 4), socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:
            return None  # it went with messages of ours unread
        if not data:
            return None
        fds = array.array("i")
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
        try:
            return self._decoder.decode(data), list(fds)
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
