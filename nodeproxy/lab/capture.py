"""Counts and keeps what passes a network: shows that no byte of an application is readable between nodes."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from types import TracebackType
from typing import Final, Self

from nodeproxy.linux.netns import inside

_ETH_P_ALL: Final = 0x0003  # <linux/if_ether.h>
_SNAP_BYTES: Final = 65_536 + 64  # the largest segment that offloading makes, and its headers
_RECEIVE_BUFFER_BYTES: Final = 32 << 20
DEFAULT_KEPT_BYTES: Final = 64 << 20


class Capture:
    """All packets that enter any interface of a namespace; on a bridge's, each passes once.

    packets, bytes: all that were seen.  What is kept to be searched is bounded; `complete` says whether that was enough.
    """

    def __init__(self, netns_fd: int, kept_bytes: int = DEFAULT_KEPT_BYTES) -> None:
        self._netns_fd = netns_fd
        self._room = kept_bytes
        self._kept: list[bytes] = []
        self._thread: threading.Thread | None = None
        self._wake, self._waker = socket.socketpair()
        self.packets = 0
        self.bytes = 0
        self.complete = True

    def start(self) -> Self:
        """Begin; packets from now on are seen."""
        with inside(self._netns_fd):
            sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        # Beyond net.core.rmem_max, which root may.
        with contextlib.suppress(PermissionError):
            sniffer.setsockopt(socket.SOL_SOCKET, 33, _RECEIVE_BUFFER_BYTES)  # SO_RCVBUFFORCE
        self._thread = threading.Thread(target=self._read, args=(sniffer,), name="capture", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """End; what was sent before is counted."""
        if self._thread is not None:
            self._waker.send(b".")
            self._thread.join()
            self._thread = None
            self._wake.close()
            self._waker.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()

    def kept(self) -> tuple[bytes, ...]:
        """The frames that were kept so far."""
        return tuple(self._kept)

    def contains(self, needle: bytes) -> bool:
        """Whether a kept packet holds these bytes."""
        return any(needle in packet for packet in self.kept())

    def _read(self, sniffer: socket.socket) -> None:
        with sniffer:
            sniffer.setblocking(False)
            poller = select.poll()
            poller.register(sniffer, select.POLLIN)
            poller.register(self._wake, select.POLLIN)
            ending = False
            while not ending:
                # Drained once more after the call to stop, so that nothing that came before it is missing.
                ending = any(descriptor == self._wake.fileno() for descriptor, _ in poller.poll())
                self._drain(sniffer)

    def _drain(self, sniffer: socket.socket) -> None:
        while True:
            try:
                packet, (_, _, kind, _, _) = sniffer.recvfrom(_SNAP_BYTES)
            except BlockingIOError:
                return
            if kind == socket.PACKET_OUTGOING:  # seen as it came in
                continue
            self.packets += 1
            self.bytes += len(packet)
            if len(packet) <= self._room:
                self._room -= len(packet)
                self._kept.append(packet)
            else:
                self.complete = False
