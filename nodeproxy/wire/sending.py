"""The half of an HTTP/2 connection that speaks: streams, windows, and control bytes that wait to be sent.

Invariant: `out` holds whole frames.  It must be sent before DATA whose header is written later and after DATA whose header was
written before; and it should be taken only when the transport takes bytes, for what a peer provokes without reading is limited
by what waits here.
"""

from __future__ import annotations

from typing import Any

from nodeproxy.wire import frames
from nodeproxy.wire.frames import DEFAULT_WINDOW_BYTES, LARGEST_STREAM_ID, LARGEST_WINDOW_BYTES, ErrorCode, FrameType
from nodeproxy.wire.headers import TABLE_SIZE_ZERO
from nodeproxy.wire.limits import MAX_REMEMBERED_RESETS, Patience
from nodeproxy.wire.settings import OwnSettings, PeerSettings, own_settings
from nodeproxy.wire.stream import Handler, MisuseError, Role, Stream

_pack_header = frames.FRAME_HEADER.pack
_pack_header_into = frames.FRAME_HEADER.pack_into
_HEADERS = int(FrameType.HEADERS)
_END_HEADERS_AND_STREAM = frames.END_HEADERS | frames.END_STREAM


class SendingSide:
    """Commands.  See `HboneConnection`."""

    __deletable__ = ["handler"]  # by its owner, at the end, as they hold each other
    __slots__ = (
        "_block_prefix",
        "_credit_bytes",
        "_credit_step",
        "_goaway_last",
        "_goaway_received",
        "_initial_receive_window",
        "_known_stream",
        "_last_peer_stream",
        "_max_frame_bytes",
        "_max_header_list_bytes",
        "_max_streams",
        "_next_stream",
        "_patience",
        "_peer",
        "_pings",
        "_receive_window",
        "_resets",
        "_send_window",
        "_stream_credit_step",
        "_stream_window",
        "handler",
        "out",
        "peer_max_frame_size",
        "role",
        "streams",
    )

    def __init__(self, role: Role, handler: Handler, own: OwnSettings) -> None:
        self.role = role
        self.handler = handler
        self.streams: dict[int, Stream] = {}
        self._peer = PeerSettings()
        self.peer_max_frame_size = self._peer.max_frame_bytes  # the longest DATA payload that the peer takes
        self._patience = Patience()
        self._max_frame_bytes = own.max_frame_bytes
        self._max_streams = own.max_streams
        self._max_header_list_bytes = own.header_list_bytes
        self._send_window = DEFAULT_WINDOW_BYTES
        # Section 6.9.2: "The connection flow-control window can only be changed using WINDOW_UPDATE frames": it can't be made
        # smaller.
        self._receive_window = max(own.connection_window_bytes, DEFAULT_WINDOW_BYTES)
        self._stream_window = own.stream_window_bytes
        # Until it acknowledges our SETTINGS, the peer may use the window that the RFC gives it.
        self._initial_receive_window = max(own.stream_window_bytes, DEFAULT_WINDOW_BYTES)
        # A WINDOW_UPDATE for each quarter: a fast peer never sees an empty window, and each costs 13 bytes for 1 MiB.
        self._credit_step = max(own.connection_window_bytes // 4, 1)
        self._stream_credit_step = max(own.stream_window_bytes // 4, 1)
        self._credit_bytes = 0
        self._next_stream = 1
        self._last_peer_stream = 0
        self._known_stream = 0  # the last one before what is being received: no answer to later ones has been sent
        self._goaway_received = False
        self._goaway_last: int | None = None
        self._resets: dict[int, None] = {}
        self._pings = 0  # of ours, not answered
        self._block_prefix = TABLE_SIZE_ZERO
        self.out = bytearray(frames.PREFACE if role is Role.CLIENT else b"")
        self.out += frames.settings(own_settings(role, own))
        if self._receive_window > DEFAULT_WINDOW_BYTES:
            self.out += frames.window_update(0, self._receive_window - DEFAULT_WINDOW_BYTES)

    # ── what the peer allows ──

    @property
    def peer_max_streams(self) -> int:
        """How many streams the peer lets us have open at once."""
        return self._peer.max_streams

    @property
    def active_streams(self) -> int:
        """Streams that are open in at least one direction."""
        return len(self.streams)

    @property
    def can_open(self) -> bool:
        """A client may open a stream now: the peer's limit, GOAWAY and the space of identifiers allow it."""
        return (
            len(self.streams) < self._peer.max_streams
            and not self._goaway_received
            and self._goaway_last is None
            and self._next_stream <= LARGEST_STREAM_ID
        )

    def sendable(self, stream: Stream) -> int:
        """How many bytes of DATA may be sent on `stream` now; not positive: none."""
        room = self._send_window
        return stream.send_window if stream.send_window < room else room

    # ── commands ──

    def take_out(self) -> bytearray:
        """The control bytes that wait; they are the caller's to send now."""
        taken, self.out = self.out, bytearray()
        self._patience.unsent_bytes = 0
        return taken

    def open_stream(self, block: bytes, owner: Any) -> Stream:
        """Send a request (client); `block` comes from `encode_block`."""
        if self.role is not Role.CLIENT or not self.can_open:
            raise MisuseError("a stream was opened although can_open is false; ask it first")
        stream = Stream(self._next_stream, owner, self._peer.initial_window, self._initial_receive_window)
        self._next_stream += 2
        self.streams[stream.id] = stream
        self._queue_headers(stream.id, block, end_stream=False)
        return stream

    def respond(self, stream: Stream, block: bytes, end_stream: bool = False) -> None:
        """Send the final response (server)."""
        if self.role is not Role.SERVER or stream.closed or stream.answered:
            raise MisuseError(f"stream {stream.id} can't be answered: it has been, or it is closed")
        stream.answered = True
        self._queue_headers(stream.id, block, end_stream=end_stream)
        if end_stream:
            self._local_end(stream)

    def data_header_into(self, buffer: bytearray | memoryview, offset: int, stream: Stream, length: int) -> None:
        """Write the header of a DATA frame and take its `length` from both windows; the caller puts the payload behind it."""
        if (
            length > stream.send_window
            or length > self._send_window
            or length > self.peer_max_frame_size
            or not stream.local_open
        ):
            allowed = min(stream.send_window, self._send_window, self.peer_max_frame_size)
            raise MisuseError(f"{length} bytes can't be sent on stream {stream.id}: it has ended, or {allowed} is its limit now")
        stream.send_window -= length
        self._send_window -= length
        self._patience.idle_frames = 0
        _pack_header_into(buffer, offset, length << 8, 0, stream.id)

    def end_stream(self, stream: Stream) -> None:
        """Say that no more DATA follows; nothing if that has been said or the stream is closed."""
        if stream.local_open:
            self.out += _pack_header(0, frames.END_STREAM, stream.id)  # DATA without payload
            self._local_end(stream)

    def reset(self, stream: Stream, code: int) -> None:
        """End the stream in both directions; nothing if it is closed."""
        if not stream.closed:
            self._queue_reset(stream.id, code)
            self._drop(stream)

    def credit(self, stream: Stream | None, nbytes: int) -> None:
        """`nbytes` of the stream's DATA were delivered or discarded: the peer may send as many again (None: on other streams)."""
        total = self._credit_bytes = self._credit_bytes + nbytes
        if total >= self._credit_step:
            self.out += frames.window_update(0, total)
            self._receive_window += total
            self._credit_bytes = 0
            self._patience.progress()
        if stream is not None:
            stream.credit_bytes += nbytes
            if stream.credit_bytes >= self._stream_credit_step:
                self.credit_stream(stream, 0)

    def credit_stream(self, stream: Stream, nbytes: int) -> None:
        """As `credit`, for bytes that the connection's window has got back before."""
        stream.credit_bytes += nbytes
        # A stream that the peer has ended, or that is closed, needs no window.
        if stream.credit_bytes >= self._stream_credit_step and stream.remote_open and not stream.closed:
            self.out += frames.window_update(stream.id, stream.credit_bytes)
            stream.receive_window += stream.credit_bytes
            stream.credit_bytes = 0

    def ping(self, payload: bytes) -> None:
        """Ask for a sign of life; `payload` has eight bytes and comes back by `on_pong`."""
        if len(payload) != 8:
            raise MisuseError("a PING carries eight bytes")
        self._pings += 1
        self.out += frames.ping(payload, ack=False)

    def goaway(self, code: int, last_stream_id: int | None = None) -> None:
        """Take no new stream above `last_stream_id` (None: above the last one seen).

        Section 6.8: for a graceful end first `last_stream_id=LARGEST_STREAM_ID`, and a round trip later the true one.
        """
        last = self._last_peer_stream if last_stream_id is None else last_stream_id
        # Section 6.8: "Endpoints MUST NOT increase the value they send in the last stream identifier".
        self._goaway_last = last if self._goaway_last is None else min(last, self._goaway_last)
        self.out += frames.goaway(self._goaway_last, code)

    # ── inside ──

    def _queue_headers(self, stream_id: int, block: bytes, *, end_stream: bool) -> None:
        if self._block_prefix:
            block, self._block_prefix = self._block_prefix + block, b""
        size = len(block)
        if size <= self.peer_max_frame_size:
            flags = _END_HEADERS_AND_STREAM if end_stream else frames.END_HEADERS
            self.out += _pack_header(size << 8 | _HEADERS, flags, stream_id) + block
        else:
            self.out += frames.headers(stream_id, block, end_stream=end_stream, max_frame_bytes=self.peer_max_frame_size)

    def _queue_reset(self, stream_id: int, code: int) -> None:
        self.out += frames.rst_stream(stream_id, code)
        # What the peer sent before it reads this is no fault of its.
        if len(self._resets) >= MAX_REMEMBERED_RESETS:
            del self._resets[next(iter(self._resets))]
        self._resets[stream_id] = None

    def _local_end(self, stream: Stream) -> None:
        stream.local_open = False
        if not stream.remote_open:
            self._patience.served_stream()
            self._drop(stream)

    def _drop(self, stream: Stream) -> None:
        stream.closed = True
        stream.local_open = stream.remote_open = False
        stream.send_window = 0
        self.streams.pop(stream.id, None)

    def _widen(self, stream: Stream, increment: int) -> bool:
        """False: the window would be larger than is legal."""
        stream.send_window += increment
        return stream.send_window <= LARGEST_WINDOW_BYTES

    def _provoked(self, frame: bytes) -> None:
        """Queue an answer that the peer made us give."""
        self.out += frame
        self._patience.answer(len(frame))

    def _refuse(self, stream_id: int, code: ErrorCode) -> None:
        """Reset a stream for what the peer did."""
        self._queue_reset(stream_id, code)
        self._patience.answer(frames.FRAME_HEADER_BYTES + 4)
