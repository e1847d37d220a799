"""The two kinds of ends that a relay joins, and what each must be able to do.

A relay has two halves that know each other as `peer`.  Bytes are moved by the half that *takes* them: `fill_from(socket)` reads
what a socket has and passes it on, so that a tunnel can have it read straight behind its frame header.  A half that can take no
more says BLOCKED and later calls `peer.resume()`: back-pressure end to end, with nothing in between that grows.
"""

from __future__ import annotations

import socket
from typing import Protocol

# What `fill_from` answers when it could not take a byte: distinct from 0, which is the end of the stream.
BLOCKED = -1


class Half(Protocol):
    """One end of a relay."""

    peer: Half

    @property
    def done(self) -> bool:
        """Ended in both directions, with nothing that is still to be sent."""

    def fill_from(self, source: socket.SocketType) -> int:
        """Read what `source` has and send it here.

        Returns the bytes moved, 0 at the end of the stream, BLOCKED when nothing can be taken now (`peer.resume` is called when
        it can). Raises BlockingIOError when `source` has nothing, OSError when it is broken, `SinkError` when this half is.
        """

    def deliver(self, chunk: memoryview) -> int:
        """Send `chunk` here; what is not sent at once is copied and sent later (`peer.delivered` tells).

        Returns the bytes sent now.
        """

    def delivered(self, count: int) -> None:
        """`count` bytes that the peer had copied have left."""

    def finish(self) -> None:
        """No more will come: pass the end of the stream on, behind what is still to be sent."""

    def resume(self) -> None:
        """The peer can take bytes again."""

    def hang_up(self) -> None:
        """The peer takes no more bytes, ever: what is still to be sent here is sent, and that is the end."""

    def abort(self) -> None:
        """Reset, at once, and forget what was to be sent."""

    def close(self) -> None:
        """Both directions have ended as they should: let go."""


class SinkError(Exception):
    """The half that should have taken the bytes is broken, not the one that they came from."""


class _Gone:
    """What stands for the peer of a half whose connection has ended: nothing that is said to it matters."""

    peer: Half
    done = False

    def fill_from(self, source: socket.SocketType) -> int:
        return BLOCKED

    def deliver(self, chunk: memoryview) -> int:
        return len(chunk)

    def delivered(self, count: int) -> None:
        return

    def finish(self) -> None:
        return

    def resume(self) -> None:
        return

    def hang_up(self) -> None:
        return

    def abort(self) -> None:
        return

    def close(self) -> None:
        return


GONE: Half = _Gone()
