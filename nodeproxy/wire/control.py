"""What a peer's frames other than DATA mean (RFC 9113, sections 5 and 6).

Invariant: a frame is judged before a handler is called, and the connection's state is final when one is called: a handler may
call any command.
"""

from __future__ import annotations

from nodeproxy.errors import ProtocolError
from nodeproxy.model.reason import Reason
from nodeproxy.wire import frames
from nodeproxy.wire.blocks import BlockSide
from nodeproxy.wire.frames import DEFAULT_WINDOW_BYTES, LARGEST_WINDOW_BYTES, LONG, TWO_LONGS, ErrorCode, FrameType
from nodeproxy.wire.hpack_static import too_large
from nodeproxy.wire.limits import MAX_CONTINUATION_FRAMES, MAX_SETTINGS_BYTES, violation
from nodeproxy.wire.settings import OwnSettings
from nodeproxy.wire.stream import Handler, Role

_STREAM_ID_MASK = 0x7FFF_FFFF
# Section 6.2: a pad length, 255 bytes of padding and five bytes of priority may surround a fragment.
_HEADERS_EXTRA_BYTES = 1 + 255 + 5
_FIXED_LENGTHS: dict[int, int] = {FrameType.PRIORITY: 5, FrameType.RST_STREAM: 4, FrameType.PING: 8, FrameType.WINDOW_UPDATE: 4}
_GOAWAY_BYTES = 8


class ControlSide(BlockSide):
    """Control frames.  See `HboneConnection`."""

    __slots__ = ("_acknowledged",)

    def __init__(self, role: Role, handler: Handler, own: OwnSettings) -> None:
        super().__init__(role, handler, own)
        self._acknowledged = False

    def _admit(self, kind: int, stream_id: int, length: int) -> int:
        """Judge a frame by its header: how many bytes of its payload are needed to act on it; the rest is skipped."""
        # Section 4.2: "An endpoint MUST send an error code of FRAME_SIZE_ERROR if a frame exceeds the size defined in
        # SETTINGS_MAX_FRAME_SIZE".
        if length > self._max_frame_bytes:
            raise violation(f"a frame of {length} bytes", ErrorCode.FRAME_SIZE_ERROR)
        # Section 6.2: "A receiver MUST treat the receipt of any other type of frame or a frame on a different stream as a
        # connection error".
        continues = kind == FrameType.CONTINUATION
        if continues != bool(self._block_stream) or (continues and stream_id != self._block_stream):
            raise violation("CONTINUATION without HEADERS, or HEADERS without its CONTINUATION")
        # Section 3.4: "The server connection preface consists of a potentially empty SETTINGS frame that MUST be the first
        # frame the server sends"; a client's preface is followed by one.
        if not self._peer.received and kind != FrameType.SETTINGS:
            raise violation("the first frame is not SETTINGS")
        fixed = _FIXED_LENGTHS.get(kind)
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
                # Section 6.6: "An endpoint that has set this setting and has received acknowledgment MUST treat the receipt of a
                # PUSH_PROMISE frame as a connection error of type PROTOCOL_ERROR."  Section 8.4: "A client cannot push."
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

    # ── streams ──

    def _on_rst_stream(self, stream_id: int, code: int) -> None:
        stream = self.streams.get(stream_id)
        if stream is None:
            # Section 6.4: "RST_STREAM frames MUST NOT be sent for a stream in the "idle" state."; stream 0 is a connection
            # error as well.
            if self._is_idle(stream_id):
                raise violation(f"RST_STREAM for stream {stream_id}, which is idle")
            return
        self._drop(stream)
        if self.role is Role.SERVER and (not stream.answered or stream_id > self._known_stream):
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
        self.peer_max_frame_size = self._peer.max_frame_bytes
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
        if not flags & frames.ACK:
            self._provoked(frames.ping(payload, ack=True))
        elif self._pings:  # an answer to nothing tells nothing
            self._pings -= 1
            self._patience.progress()
            self.handler.on_pong(payload)

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
