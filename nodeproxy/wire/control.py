"""What a peer's frames other than DATA mean (RFC 9113, sections 5 and 6).

Invariant: a frame is judged before a handler is called, and the connection's state is final when one is called: a handler may
call any command.
"""

from __future__ import annotations

from nodeproxy.errors import ProtocolError
from nodeproxy.model.reason import Reason
from nodeproxy.wire import frames
from nodeproxy.wire.fields import FieldBlock
from nodeproxy.wire.frames import DEFAULT_WINDOW_BYTES, LARGEST_WINDOW_BYTES, LONG, TWO_LONGS, ErrorCode, FrameType
from nodeproxy.wire.headers import BlockDecoder
from nodeproxy.wire.hpack_static import too_large
from nodeproxy.wire.limits import MAX_CONTINUATION_FRAMES, MAX_SETTINGS_BYTES
from nodeproxy.wire.sending import SendingSide
from nodeproxy.wire.stream import Handler, Role, Stream

_STREAM_ID_MASK = 0x7FFF_FFFF
# Section 6.2: a pad length, 255 bytes of padding and five bytes of priority may surround a fragment.
_HEADERS_EXTRA_BYTES = 1 + 255 + 5
_FIXED_LENGTHS = {FrameType.PRIORITY: 5, FrameType.RST_STREAM: 4, FrameType.PING: 8, FrameType.WINDOW_UPDATE: 4}
_GOAWAY_BYTES = 8


def violation(text: str, code: ErrorCode = ErrorCode.PROTOCOL_ERROR) -> ProtocolError:
    """A connection error."""
    reason = Reason.H2_FLOW_CONTROL if code is ErrorCode.FLOW_CONTROL_ERROR else Reason.H2_PROTOCOL
    return ProtocolError(reason, f"the peer broke HTTP/2: {text}", code)


class ControlSide(SendingSide):
    """Control frames.  See `HboneConnection`."""

    __slots__ = ("_acknowledged", "_block", "_block_ends_stream", "_block_frames", "_block_stream", "_decoder")

    def __init__(
        self, role: Role, handler: Handler, stream_window_bytes: int, connection_window_bytes: int, max_frame_bytes: int, max_streams: int
    ) -> None:
        super().__init__(role, handler, stream_window_bytes, connection_window_bytes, max_frame_bytes, max_streams)
        self._decoder = BlockDecoder(self._max_header_list_bytes)
        self._acknowledged = False
        self._block = bytearray()
        self._block_stream = 0
        self._block_frames = 0
        self._block_ends_stream = False

    def _admit(self, kind: int, stream_id: int, length: int) -> int:
        """Judge a frame by its header: how many bytes of its payload are needed to act on it; the rest is skipped."""
        # Section 4.2: "An endpoint MUST send an error code of FRAME_SIZE_ERROR if a frame exceeds the size defined in
        # SETTINGS_MAX_FRAME_SIZE".
        if length > self._max_frame_bytes:
            raise violation(f"a frame of {length} bytes", ErrorCode.FRAME_SIZE_ERROR)
        # Section 6.2: "A receiver MUST treat the receipt of any other type of frame or a frame on a different stream as a
        # connection error".
        if (self._block_stream or kind == FrameType.CONTINUATION) and (kind != FrameType.CONTINUATION or stream_id != self._block_stream):
            raise violation("CONTINUATION without HEADERS, or HEADERS without its CONTINUATION")
        # Section 3.4: "The SETTINGS frame [...] MUST be the first frame".
        if not self._peer.received and kind != FrameType.SETTINGS:
            raise violation("the first frame is not SETTINGS")
        fixed = _FIXED_LENGTHS.get(kind)  # type: ignore[call-overload]
        if fixed is not None:
            # Sections 6.3, 6.4, 6.7, 6.9: a frame with another length "MUST be treated as a connection error of type
            # FRAME_SIZE_ERROR" (PRIORITY: a stream error, which section 5.4.2 lets us treat as one of the connection).
            if length != fixed:
                raise violation(f"a frame of type {kind} has {length} bytes", ErrorCode.FRAME_SIZE_ERROR)
            return length
        match kind:
            case FrameType.HEADERS:
                if length > self._max_header_list_bytes + _HEADERS_EXTRA_BYTES:
                    raise too_large(self._max_header_list_bytes)
                return length
            case FrameType.CONTINUATION:
                return self._admit_continuation(length)
            case FrameType.SETTINGS:
                return _admit_settings(length)
            case FrameType.GOAWAY:
                if length < _GOAWAY_BYTES:
                    raise violation(f"a GOAWAY of {length} bytes", ErrorCode.FRAME_SIZE_ERROR)
                return _GOAWAY_BYTES
            case FrameType.PUSH_PROMISE:
                # Section 8.4: "A client that has set this setting to 0 [...] MUST treat the receipt of a PUSH_PROMISE frame as
                # a connection error"; "A client cannot push."
                raise violation("a PUSH_PROMISE that nobody may send")
        # Section 5.5: "Implementations MUST discard frames that have unknown or unsupported types."
        return 0

    def _admit_continuation(self, length: int) -> int:
        if self._block_frames >= MAX_CONTINUATION_FRAMES:
            text = f"the peer sent more than {MAX_CONTINUATION_FRAMES} CONTINUATION frames for one header block"
            raise ProtocolError(Reason.H2_CONTINUATION_FLOOD, text, ErrorCode.ENHANCE_YOUR_CALM)
        if len(self._block) + length > self._max_header_list_bytes:
            raise too_large(self._max_header_list_bytes)
        return length

    def _dispatch(self, kind: int, flags: int, stream_id: int, payload: memoryview) -> None:
        """Act on an admitted frame."""
        if kind != FrameType.HEADERS:
            self._patience.idle_frame()
        match kind:
            case FrameType.WINDOW_UPDATE:
                self._on_window_update(stream_id, LONG.unpack(payload)[0] & _STREAM_ID_MASK)
            case FrameType.HEADERS:
                self._on_headers(flags, stream_id, payload)
            case FrameType.CONTINUATION:
                self._on_continuation(flags, payload)
            case FrameType.RST_STREAM:
                self._on_rst_stream(stream_id, LONG.unpack(payload)[0])
            case FrameType.SETTINGS:
                self._on_settings(flags, stream_id, payload)
            case FrameType.PING:
                self._on_ping(flags, stream_id, bytes(payload))
            case FrameType.GOAWAY:
                self._on_goaway(stream_id, payload)
            case FrameType.PRIORITY if not stream_id:
                # Section 6.3: "If a PRIORITY frame is received with a stream identifier of 0x00, the recipient MUST respond
                # with a connection error".
                raise violation("a PRIORITY for stream 0")

    # ── header blocks ──

    def _on_headers(self, flags: int, stream_id: int, payload: memoryview) -> None:
        # Section 6.2: "If a HEADERS frame is received whose Stream Identifier field is 0x00, the recipient MUST respond with a
        # connection error".
        if not stream_id:
            raise violation("HEADERS for stream 0")
        start, end = 0, len(payload)
        if flags & frames.PADDED:
            start = 1
            end -= payload[0] if end else 1
        if flags & frames.PRIORITY:
            start += 5
        # Section 6.2: "Padding that exceeds the size remaining for the field block fragment MUST be treated as a PROTOCOL_ERROR."
        if start > end:
            raise violation("the padding of HEADERS is longer than the frame")
        ends_stream = bool(flags & frames.END_STREAM)
        if flags & frames.END_HEADERS:
            self._on_block(stream_id, bytes(payload[start:end]), ends_stream)
            return
        self._block = bytearray(payload[start:end])
        self._block_stream, self._block_frames, self._block_ends_stream = stream_id, 0, ends_stream

    def _on_continuation(self, flags: int, payload: memoryview) -> None:
        self._block += payload
        self._block_frames += 1
        if flags & frames.END_HEADERS:
            block, self._block = bytes(self._block), bytearray()
            stream_id, self._block_stream = self._block_stream, 0
            self._on_block(stream_id, block, self._block_ends_stream)

    def _on_block(self, stream_id: int, block: bytes, ends_stream: bool) -> None:
        # Section 4.3: "A receiving endpoint [...] MUST process [field blocks] [...] even if the frames are to be discarded":
        # decoding comes first.
        fields = self._decoder.decode(block)
        stream = self.streams.get(stream_id)
        if stream is None:
            if self.role is Role.SERVER and stream_id > self._last_peer_stream:
                self._on_request(stream_id, fields, ends_stream)
            else:
                self._on_unknown_stream(stream_id, "HEADERS")
                self._patience.idle_frame()
        elif not stream.remote_open:
            # Section 5.1, half-closed (remote): "it MUST respond with a stream error of type STREAM_CLOSED".
            self._stream_error(stream, ErrorCode.STREAM_CLOSED)
        elif self.role is Role.CLIENT and not stream.answered:
            self._on_response(stream, fields, ends_stream)
        elif fields.trailer_fault or not ends_stream:
            # Section 8.1: "An endpoint that receives a HEADERS frame without the END_STREAM flag set after receiving the
            # HEADERS frame that opens a request or after receiving a final (non-informational) status code MUST treat the
            # corresponding request or response as malformed".
            self._stream_error(stream, ErrorCode.PROTOCOL_ERROR)
        else:
            self._remote_end(stream)

    def _on_request(self, stream_id: int, fields: FieldBlock, ends_stream: bool) -> None:
        # Section 5.1.1: "Streams initiated by a client MUST use odd-numbered stream identifiers".
        if not stream_id & 1:
            raise violation(f"a client opened stream {stream_id}")
        # Section 6.8: "After sending a GOAWAY frame, the sender can discard frames for streams initiated by the receiver with
        # identifiers higher than the identified last stream."
        if self._goaway_last is not None and stream_id > self._goaway_last:
            self._patience.idle_frame()
            return
        self._last_peer_stream = stream_id
        # Section 5.1.2: "An endpoint that receives a HEADERS frame that causes its advertised concurrent stream limit to be
        # exceeded MUST treat this as a stream error of type PROTOCOL_ERROR or REFUSED_STREAM."
        if len(self.streams) >= self._max_streams:
            self._refuse(stream_id, ErrorCode.REFUSED_STREAM)
            return
        # Section 8.1.1: "Malformed requests or responses that are detected MUST be treated as a stream error of type
        # PROTOCOL_ERROR."
        if fields.request_fault:
            self._refuse(stream_id, ErrorCode.PROTOCOL_ERROR)
            self._patience.wasted_stream()
            return
        self._patience.idle_frames = 0
        stream = Stream(stream_id, None, self._peer.initial_window, self._initial_receive_window)
        self.streams[stream_id] = stream
        self.handler.on_request(stream, fields.headers, ends_stream)
        if ends_stream and not stream.closed:
            self._remote_end(stream)

    def _on_response(self, stream: Stream, fields: FieldBlock, ends_stream: bool) -> None:
        # Section 8.1: "A HEADERS frame with the END_STREAM flag set that carries an informational status code is malformed."
        if fields.response_fault or (fields.status < 200 and ends_stream):
            self._stream_error(stream, ErrorCode.PROTOCOL_ERROR)
            return
        if fields.status < 200:
            self._patience.idle_frame()
            return
        stream.answered = True
        self.handler.on_response(stream, fields.headers, ends_stream)
        if ends_stream and not stream.closed:
            self._remote_end(stream)

    # ── streams ──

    def _remote_end(self, stream: Stream) -> None:
        """END_STREAM came."""
        stream.remote_open = False
        if not stream.local_open:
            self._drop(stream)
        self.handler.on_end(stream)

    def _stream_error(self, stream: Stream, code: ErrorCode) -> None:
        """Section 5.4.2.  A peer that makes us reset stream after stream is no better than one that resets them itself."""
        self._refuse(stream.id, code)
        self._drop(stream)
        self._patience.wasted_stream()
        self.handler.on_reset(stream, code)

    def _is_idle(self, stream_id: int) -> bool:
        """No HEADERS has opened this stream, and none was discarded."""
        if not stream_id & 1:
            return True  # only servers open these, and only for the pushes that are off
        if self.role is Role.CLIENT:
            return stream_id >= self._next_stream
        return stream_id > self._last_peer_stream and (self._goaway_last is None or stream_id <= self._goaway_last)

    def _on_unknown_stream(self, stream_id: int, what: str) -> None:
        """DATA or HEADERS for a stream that is not open: return if it may be ignored."""
        # Section 5.1, idle: "Receiving any frame other than HEADERS or PRIORITY on a stream in this state MUST be treated as a
        # connection error of type PROTOCOL_ERROR."
        if self._is_idle(stream_id):
            raise violation(f"{what} for stream {stream_id}, which is idle")
        if stream_id in self._resets or (self._goaway_last is not None and stream_id > self._goaway_last):
            return
        # Section 5.1, closed: "An endpoint that sends a frame [...] after [...] END_STREAM [...] MUST be treated as a
        # connection error of type STREAM_CLOSED".
        raise violation(f"{what} for stream {stream_id}, which it had ended", ErrorCode.STREAM_CLOSED)

    def _on_rst_stream(self, stream_id: int, code: int) -> None:
        stream = self.streams.get(stream_id)
        if stream is None:
            # Section 6.4: "RST_STREAM frames MUST NOT be sent for a stream in the "idle" state."; stream 0 is a connection
            # error as well.
            if self._is_idle(stream_id):
                raise violation(f"RST_STREAM for stream {stream_id}, which is idle")
            return
        self._drop(stream)
        if self.role is Role.SERVER and not stream.answered:
            self._patience.wasted_stream()
        self.handler.on_reset(stream, code)

    def _on_window_update(self, stream_id: int, increment: int) -> None:
        if not stream_id:
            self._on_connection_window(increment)
            return
        stream = self.streams.get(stream_id)
        if stream is None:
            if self._is_idle(stream_id):
                raise violation(f"WINDOW_UPDATE for stream {stream_id}, which is idle")
        elif not increment:
            # Section 6.9: "A receiver MUST treat the receipt of a WINDOW_UPDATE frame with a flow-control window increment of 0
            # as a stream error of type PROTOCOL_ERROR; errors on the connection flow-control window MUST be treated as a
            # connection error."
            self._stream_error(stream, ErrorCode.PROTOCOL_ERROR)
        elif not self._widen(stream, increment):
            # Section 6.9.1: "A sender MUST NOT allow a flow-control window to exceed 2^31-1 octets."
            self._stream_error(stream, ErrorCode.FLOW_CONTROL_ERROR)
        else:
            self.handler.on_window(stream)

    def _on_connection_window(self, increment: int) -> None:
        if not increment:
            raise violation("a WINDOW_UPDATE of 0 for the connection")
        self._send_window += increment
        if self._send_window > LARGEST_WINDOW_BYTES:
            raise violation("the connection's window is larger than 2^31-1", ErrorCode.FLOW_CONTROL_ERROR)
        self.handler.on_window(None)

    # ── the connection ──

    def _on_settings(self, flags: int, stream_id: int, payload: memoryview) -> None:
        # Section 6.5: "If an endpoint receives a SETTINGS frame whose Stream Identifier field is anything other than 0x00, the
        # endpoint MUST respond with a connection error of type PROTOCOL_ERROR."
        if stream_id:
            raise violation("SETTINGS for a stream")
        if flags & frames.ACK:
            # Section 6.5: "Receipt of a SETTINGS frame with the ACK flag set and a length field value other than 0 MUST be
            # treated as a connection error of type FRAME_SIZE_ERROR."
            if payload:
                raise violation("a SETTINGS acknowledgement with a payload", ErrorCode.FRAME_SIZE_ERROR)
            self._on_acknowledged()
            return
        before = self._peer.initial_window
        self._peer.apply(payload, self.role)
        # Section 6.9.2: "a receiver MUST adjust the size of all stream flow-control windows that it maintains by the difference".
        change = self._peer.initial_window - before
        for stream in self.streams.values():
            if not self._widen(stream, change):
                raise violation("the initial window makes a stream's larger than 2^31-1", ErrorCode.FLOW_CONTROL_ERROR)
        self._provoked(frames.SETTINGS_ACK)
        self.handler.on_settings()
        if change > 0:
            self.handler.on_window(None)

    def _on_acknowledged(self) -> None:
        if self._acknowledged:
            return
        self._acknowledged = True
        self._decoder.settings_acknowledged()
        if self._stream_window < DEFAULT_WINDOW_BYTES:
            for stream in self.streams.values():
                stream.receive_window -= DEFAULT_WINDOW_BYTES - self._stream_window
            self._initial_receive_window = self._stream_window

    def _on_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        # Section 6.7: "If a PING frame is received with a Stream Identifier field value other than 0x00, the recipient MUST
        # respond with a connection error of type PROTOCOL_ERROR."
        if stream_id:
            raise violation("a PING for a stream")
        if flags & frames.ACK:
            self.handler.on_pong(payload)
        else:
            self._provoked(frames.ping(payload, ack=True))

    def _on_goaway(self, stream_id: int, payload: memoryview) -> None:
        # Section 6.8: "An endpoint MUST treat a GOAWAY frame with a stream identifier other than 0x00 as a connection error".
        if stream_id:
            raise violation("a GOAWAY for a stream")
        last, code = TWO_LONGS.unpack(payload)
        last &= _STREAM_ID_MASK
        self._goaway_received = True
        if self.role is Role.CLIENT:
            # Section 6.8: "streams [...] with identifiers higher than the included last stream identifier" were not and will
            # not be processed.
            for stream in [each for each in self.streams.values() if each.id > last]:
                if not stream.closed:
                    self._drop(stream)
                    self.handler.on_reset(stream, ErrorCode.REFUSED_STREAM)
        self.handler.on_goaway(last, code)


def _admit_settings(length: int) -> int:
    # Section 6.5: "A SETTINGS frame with a length other than a multiple of 6 octets MUST be treated as a connection error of type
    # FRAME_SIZE_ERROR."
    if length % 6:
        raise violation(f"SETTINGS of {length} bytes", ErrorCode.FRAME_SIZE_ERROR)
    if length > MAX_SETTINGS_BYTES:
        text = f"the peer sent {length // 6} settings at once"
        raise ProtocolError(Reason.H2_CONTROL_FLOOD, text, ErrorCode.ENHANCE_YOUR_CALM)
    return length
