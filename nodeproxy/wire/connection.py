"""One HTTP/2 connection that carries HBONE tunnels, without I/O: bytes in by `receive`, callbacks and bytes to send out.

Invariant: bytes are parsed where they lie.  Between two calls only an incomplete control frame or header block is kept; the
bytes of a DATA frame go to the handler as they come, each as one slice.  This is the proxy's hot path: it makes nothing else
for a chunk. It knows neither TLS nor time nor what a tunnel is for.

The classes lie on top of each other: `SendingSide` (commands), `BlockSide` (header blocks), `ControlSide` (frames other than
DATA), `HboneConnection` (framing and DATA).
"""

from __future__ import annotations

from nodeproxy.errors import ProtocolError
from nodeproxy.wire import frames
from nodeproxy.wire.control import ControlSide
from nodeproxy.wire.frames import END_STREAM, FRAME_HEADER_BYTES, PADDED, PREFACE, ErrorCode, FrameType
from nodeproxy.wire.limits import MAX_CLIENT_HEADER_LIST_BYTES, MAX_SERVER_HEADER_LIST_BYTES, violation
from nodeproxy.wire.settings import OwnSettings
from nodeproxy.wire.stream import Handler, MisuseError, Role, Stream

__all__ = ["Handler", "HboneConnection", "MisuseError", "Role", "Stream"]

# protocols.md's peers: "stream window 4 MiB, connection window 16 MiB, max frame 1 MiB; at most 200 server streams".
STREAM_WINDOW_BYTES = 4 * 1024 * 1024
CONNECTION_WINDOW_BYTES = 16 * 1024 * 1024
MAX_FRAME_BYTES = 1024 * 1024
MAX_STREAMS = 200

_STREAM_ID_MASK = 0x7FFF_FFFF
_unpack_header = frames.FRAME_HEADER.unpack_from


class HboneConnection(ControlSide):
    """See the module.  Commands may be called at any time, from callbacks too."""

    __slots__ = (
        "_data_ends_stream",
        "_data_left",
        "_data_stream",
        "_failure",
        "_pending",
        "_preface_left",
        "_skip_left",
        "closed",
    )

    def __init__(
        self,
        role: Role,
        handler: Handler,
        *,
        stream_window_bytes: int = STREAM_WINDOW_BYTES,
        connection_window_bytes: int = CONNECTION_WINDOW_BYTES,
        max_frame_bytes: int = MAX_FRAME_BYTES,
        max_streams: int = MAX_STREAMS,
    ) -> None:
        list_bytes = MAX_CLIENT_HEADER_LIST_BYTES if role is Role.CLIENT else MAX_SERVER_HEADER_LIST_BYTES
        super().__init__(
            role, handler, OwnSettings(stream_window_bytes, connection_window_bytes, max_frame_bytes, max_streams, list_bytes)
        )
        self.closed = False
        self._failure: ProtocolError | None = None
        self._preface_left = PREFACE if role is Role.SERVER else b""
        self._pending = bytearray()  # a control frame's header and what there is of its payload
        self._data_left = 0  # bytes of the current DATA frame, without padding
        self._data_stream: Stream | None = None  # None: they are discarded
        self._data_ends_stream = 0  # its END_STREAM flag
        self._skip_left = 0  # bytes of the current frame that nobody wants

    def receive(self, data: memoryview) -> None:
        """Take what the peer sent.

        Raises ProtocolError, with a GOAWAY in `out`, when the connection can't go on; and again if called again.
        """
        if self._failure is not None:
            raise self._failure
        self._patience.idle_frames >>= 1
        self._known_stream = self._last_peer_stream
        try:
            position = 0
            if self._preface_left:
                position = self._take_preface(data)
            if self._pending:
                position = self._resume(data, position)
            self._parse(data, position, len(data))
        except ProtocolError as error:
            self._failure = error
            self.out += frames.goaway(self._last_peer_stream, error.code)
            raise

    def close(self) -> None:
        """The transport is gone: every stream is dropped, and what `receive` still holds is not parsed any more."""
        self.closed = True
        for stream in list(self.streams.values()):
            self._drop(stream)

    def _parse(self, data: memoryview, position: int, end: int) -> None:
        while position < end and not self.closed:
            if self._data_left:
                position = self._take_data(data, position, end)
            elif self._skip_left:
                skipped = min(self._skip_left, end - position)
                self._skip_left -= skipped
                position += skipped
            else:
                after = self._take_frame(data, position, end)
                if after < 0:
                    self._pending += data[position:end]
                    return
                position = after

    def _take_preface(self, data: memoryview) -> int:
        # Section 3.4: "Clients and servers MUST treat an invalid connection preface as a connection error of type
        # PROTOCOL_ERROR."
        expected = self._preface_left
        count = min(len(expected), len(data))
        if data[:count] != expected[:count]:
            raise violation("it does not begin with the connection preface")
        self._preface_left = expected[count:]
        return count

    def _take_frame(self, data: memoryview, position: int, end: int) -> int:
        """Act on the frame at `position`; returns where it, or the payload of DATA, goes on; -1: there is not enough of it."""
        if end - position < FRAME_HEADER_BYTES:
            return -1
        head: int
        flags: int
        stream_id: int
        head, flags, stream_id = _unpack_header(data, position)
        length, kind, stream_id = head >> 8, head & 0xFF, stream_id & _STREAM_ID_MASK
        position += FRAME_HEADER_BYTES
        if kind == 0:
            after = position + length
            if not flags and 0 < length <= self._receive_window and after <= end:
                stream = self.streams.get(stream_id)
                if (
                    stream is not None
                    and stream.answered
                    and stream.remote_open
                    and length <= stream.receive_window
                    and length <= self._max_frame_bytes
                    and not self._block_stream
                ):
                    # By far the most frequent: a whole frame of an open stream.  What is not so is told apart below.
                    self._receive_window -= length
                    stream.receive_window -= length
                    self._patience.idle_frames = 0
                    self.handler.on_data(stream, data[position:after])
                    return after
            if flags & PADDED and length:
                if position == end:
                    return -1
                return self._begin_padded_data(flags, stream_id, length, data[position]) + position
            self._begin_data(flags, stream_id, length, length)
            return self._take_data(data, position, end) if self._data_left and position < end else position
        needed = self._admit(kind, stream_id, length)
        after = position + needed
        if after > end:
            return -1
        self._skip_left = length - needed
        self._dispatch(kind, flags, stream_id, data[position:after])
        return after

    def _resume(self, data: memoryview, position: int) -> int:
        """Complete the frame that was cut by the end of the last read."""
        pending = self._pending
        end = len(data)
        while True:
            missing = self._whole_bytes(pending) - len(pending)
            if missing <= 0:
                break
            taken = min(missing, end - position)
            pending += data[position : position + taken]
            position += taken
            if taken < missing:
                return position
        self._pending = bytearray()
        whole = memoryview(pending)
        self._parse(whole, 0, len(whole))
        return position

    def _whole_bytes(self, pending: bytearray) -> int:
        """How long `pending` must be before it can be acted on."""
        if len(pending) < FRAME_HEADER_BYTES:
            return FRAME_HEADER_BYTES
        head, flags, stream_id = _unpack_header(pending, 0)
        if head & 0xFF == FrameType.DATA:
            return FRAME_HEADER_BYTES + bool(flags & PADDED and head >> 8)
        return FRAME_HEADER_BYTES + self._admit(head & 0xFF, stream_id & _STREAM_ID_MASK, head >> 8)

    # ── DATA ──

    def _begin_padded_data(self, flags: int, stream_id: int, length: int, padding: int) -> int:
        # Section 6.1: "If the length of the padding is the length of the frame payload or greater, the recipient MUST treat
        # this as a connection error of type PROTOCOL_ERROR."
        if padding >= length:
            raise violation("the padding of DATA is longer than the frame")
        self._skip_left = padding
        self._begin_data(flags, stream_id, length, length - 1 - padding)
        return 1

    def _begin_data(self, flags: int, stream_id: int, length: int, content: int) -> None:
        """Take a DATA frame of `length` bytes, `content` of them not padding, from the windows."""
        if length > self._max_frame_bytes:
            raise violation(f"a frame of {length} bytes", ErrorCode.FRAME_SIZE_ERROR)
        if self._block_stream:
            raise violation("HEADERS without its CONTINUATION")
        # Section 6.9: "A receiver MAY respond with a stream error or connection error of type FLOW_CONTROL_ERROR if it is unable
        # to accept a frame."  What counts for the connection counts for streams that are closed, too.
        window = self._receive_window = self._receive_window - length
        if window < 0:
            raise violation("DATA beyond the connection's window", ErrorCode.FLOW_CONTROL_ERROR)
        stream = self.streams.get(stream_id)
        if stream is None:
            self._on_unknown_stream(stream_id, "DATA")
        elif stream.remote_open and stream.answered:
            window = stream.receive_window = stream.receive_window - length
            if window < 0:
                raise violation(f"DATA beyond the window of stream {stream_id}", ErrorCode.FLOW_CONTROL_ERROR)
        else:
            stream = self._charge_early(stream, length)
        self._data_stream = stream
        self._data_ends_stream = flags & END_STREAM
        self._data_left = content
        if content:
            self._patience.idle_frames = 0
        else:
            self._patience.idle_frame()
            self._finish_data()
        if length != content:
            self.credit(stream, length - content)

    def _charge_early(self, stream: Stream, length: int) -> Stream | None:
        """Take `length` bytes from the window of a stream that is not answered or has ended; None if it may not get any."""
        if not stream.remote_open:
            # Section 6.1: "If a DATA frame is received whose stream is not in the "open" or "half-closed (local)" state, the
            # recipient MUST respond with a stream error of type STREAM_CLOSED."
            self._stream_error(stream, ErrorCode.STREAM_CLOSED)
            return None
        if self.role is Role.CLIENT:
            # Section 8.1: a response is "one HEADERS frame [...] followed by zero or more DATA frames".
            self._stream_error(stream, ErrorCode.PROTOCOL_ERROR)
            return None
        stream.receive_window -= length
        if stream.receive_window < 0:
            raise violation(f"DATA beyond the window of stream {stream.id}", ErrorCode.FLOW_CONTROL_ERROR)
        return stream

    def _take_data(self, data: memoryview, position: int, end: int) -> int:
        """Pass on what there is of the current DATA frame."""
        left = self._data_left
        stop = position + left
        if stop > end:
            stop = end
        self._data_left = left = left - (stop - position)
        stream = self._data_stream
        if stream is None or stream.closed:
            self.credit(None, stop - position)
        else:
            self.handler.on_data(stream, data[position:stop])
        if not left:
            self._finish_data()
        return stop

    def _finish_data(self) -> None:
        stream, self._data_stream = self._data_stream, None
        if self._data_ends_stream and stream is not None and not stream.closed:
            self._remote_end(stream)
