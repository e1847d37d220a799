"""What a peer's header blocks do to streams: requests, responses, trailers (RFC 9113, sections 4.3, 5.1 and 8.1).

Invariant: every block is decoded, also one that is to be discarded: the peer's encoder counts on it.
"""

from __future__ import annotations

from nodeproxy.wire import frames
from nodeproxy.wire.fields import FieldBlock
from nodeproxy.wire.frames import ErrorCode
from nodeproxy.wire.headers import BlockDecoder
from nodeproxy.wire.limits import violation
from nodeproxy.wire.sending import SendingSide
from nodeproxy.wire.settings import OwnSettings
from nodeproxy.wire.stream import Handler, Role, Stream


class BlockSide(SendingSide):
    """Header blocks and the states of streams.  See `HboneConnection`."""

    __slots__ = ("_block", "_block_ends_stream", "_block_frames", "_block_stream", "_decoder")

    def __init__(self, role: Role, handler: Handler, own: OwnSettings) -> None:
        super().__init__(role, handler, own)
        self._decoder = BlockDecoder(own.header_list_bytes)
        self._block = bytearray()  # of a HEADERS frame whose CONTINUATION has not come
        self._block_stream = 0  # its stream, 0: there is none
        self._block_frames = 0
        self._block_ends_stream = False

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
        # Section 4.3: "An endpoint receiving HEADERS, PUSH_PROMISE, or CONTINUATION frames needs to reassemble field blocks and
        # perform decompression even if the frames are to be discarded."
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
            self._patience.served_stream()
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
        # Section 5.1, closed: "An endpoint MAY treat receipt of any other type of frame on a closed stream as a connection
        # error of type STREAM_CLOSED, except as noted below."  Noted is what was under way when we reset the stream.
        raise violation(f"{what} for stream {stream_id}, which it had ended", ErrorCode.STREAM_CLOSED)
