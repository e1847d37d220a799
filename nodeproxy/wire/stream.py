"""One HTTP/2 stream's counters, and what a user of the codec must offer.

Invariant: a stream that is `closed` is in no table of its connection any more and nothing is called for it again.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, Protocol

from nodeproxy.errors import NodeproxyError

Headers = tuple[tuple[bytes, bytes], ...]


class Role(Enum):
    """Which end of the connection we are."""

    CLIENT = "client"
    SERVER = "server"


class MisuseError(NodeproxyError):
    """The codec was asked for what its state forbids: a defect of nodeproxy's, never of the peer's."""


class Stream:
    """A stream that is open in at least one direction.

    owner: the user's, never looked at.  send_window, receive_window: bytes that may still go and come (may be negative, RFC
    9113 section 6.9.2). credit_bytes: delivered, and not yet given back to the peer.  local_open, remote_open: END_STREAM not
    yet sent, received. answered: the final response headers were sent (server) or received (client).
    """

    __slots__ = (
        "answered",
        "closed",
        "credit_bytes",
        "id",
        "local_open",
        "owner",
        "receive_window",
        "remote_open",
        "send_window",
    )

    def __init__(self, stream_id: int, owner: Any, send_window: int, receive_window: int) -> None:
        self.id = stream_id
        self.owner: Any = owner
        self.send_window = send_window
        self.receive_window = receive_window
        self.credit_bytes = 0
        self.local_open = True
        self.remote_open = True
        self.answered = False
        self.closed = False


class Handler(Protocol):
    """Past facts, told while `receive` runs.

    A handler may call any command of the connection, for any stream, from each of them.
    """

    def on_request(self, stream: Stream, headers: Headers, end_stream: bool) -> None:
        """A request came (server).  With `end_stream`, `on_end` follows."""

    def on_response(self, stream: Stream, headers: Headers, end_stream: bool) -> None:
        """The final response headers came (client).  With `end_stream`, `on_end` follows."""

    def on_data(self, stream: Stream, chunk: memoryview) -> None:
        """Bytes came, as many as there are of a frame; `chunk` is valid during the call only.  Each byte is owed to `credit`."""

    def on_end(self, stream: Stream) -> None:
        """The peer sends no more (END_STREAM); once a stream, and not after `on_reset`."""

    def on_reset(self, stream: Stream, code: int) -> None:
        """The stream is gone: reset by the peer, by the codec for a fault of the peer's, or above the last stream of a GOAWAY."""

    def on_window(self, stream: Stream | None) -> None:
        """More may be sent on that stream, or (None) on the connection and so maybe on any."""

    def on_settings(self) -> None:
        """`peer_max_frame_bytes` and `peer_max_streams` are known, or have changed."""

    def on_goaway(self, last_stream_id: int, code: int) -> None:
        """The peer takes no new stream; those above `last_stream_id` have been reset."""

    def on_pong(self, payload: bytes) -> None:
        """A PING of ours came back."""
