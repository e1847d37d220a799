"""What a peer may cost us, in one place: every bound on hostile input, and the two counts that have no natural bound.

Invariant: a peer that does useful work never meets these limits; one that does none meets them after a fixed amount of ours.
There is no clock here: counts fall with progress, not with time.
"""

from __future__ import annotations

from nodeproxy.errors import ProtocolError
from nodeproxy.model.reason import Reason
from nodeproxy.wire.frames import ErrorCode

# Istio's peers take 16 KiB as client and 64 KiB as server.  Both bound a block before and after it is decoded.
MAX_CLIENT_HEADER_LIST_BYTES = 16 * 1024
MAX_SERVER_HEADER_LIST_BYTES = 64 * 1024
# 64 KiB in frames of the smallest maximum (16 KiB) are one HEADERS and four CONTINUATION frames.
MAX_CONTINUATION_FRAMES = 8
# nghttp2 takes 32 entries; greased and extension settings fit twice.
MAX_SETTINGS_BYTES = 64 * 6
# Answers to PING, SETTINGS, and to refused or broken streams that wait because the peer does not read: 3,800 PINGs.
MAX_UNSENT_CONTROL_BYTES = 64 * 1024
# Frames that move nothing, in one read (the count halves from read to read).  A peer that sends a WINDOW_UPDATE for the stream
# and one for the connection for each 16 KiB of a 16 MiB window sends 2,048; a read of 1 MiB can hold 116,000 empty DATA frames.
MAX_IDLE_FRAMES = 10_000
# Envoy's default for streams reset before they were answered (overload.premature_reset_total_stream_count); or reset by what came
# with the request, so that no answer was of use.  The count falls by one with each stream that ends as it should, and by half
# with each quarter of the connection's window that is used and with each PING of ours that is answered: at a PING each 10 s,
# clients that give up on a dead destination may do so 25 times a second; an attack does it thousands of times.
MAX_WASTED_STREAMS = 500
# Streams that we reset and whose last frames may still be under way; the largest number of streams that may be open is 200.
MAX_REMEMBERED_RESETS = 256


def violation(text: str, code: ErrorCode = ErrorCode.PROTOCOL_ERROR) -> ProtocolError:
    """The peer broke a rule of HTTP/2 and the connection can't go on (RFC 9113, section 5.4.1)."""
    reason = Reason.H2_FLOW_CONTROL if code is ErrorCode.FLOW_CONTROL_ERROR else Reason.H2_PROTOCOL
    return ProtocolError(reason, f"the peer broke HTTP/2: {text}", code)


class Patience:
    """Counts what a peer costs without doing anything useful."""

    __slots__ = ("idle_frames", "unsent_bytes", "wasted_streams")

    def __init__(self) -> None:
        self.idle_frames = 0
        self.unsent_bytes = 0
        self.wasted_streams = 0

    def idle_frame(self) -> None:
        """A frame came that moves nothing."""
        self.idle_frames += 1
        if self.idle_frames > MAX_IDLE_FRAMES:
            text = f"the peer sent more than {MAX_IDLE_FRAMES} frames that carry nothing"
            raise ProtocolError(Reason.H2_CONTROL_FLOOD, text, ErrorCode.ENHANCE_YOUR_CALM)

    def answer(self, nbytes: int) -> None:
        """The peer made us queue `nbytes`."""
        self.unsent_bytes += nbytes
        if self.unsent_bytes > MAX_UNSENT_CONTROL_BYTES:
            text = f"the peer asks without reading: more than {MAX_UNSENT_CONTROL_BYTES} bytes of answers wait"
            raise ProtocolError(Reason.H2_CONTROL_FLOOD, text, ErrorCode.ENHANCE_YOUR_CALM)

    def wasted_stream(self) -> None:
        """A stream ended in a reset that is the peer's doing, before it was answered."""
        self.wasted_streams += 1
        if self.wasted_streams > MAX_WASTED_STREAMS:
            text = f"the peer opened and reset more than {MAX_WASTED_STREAMS} streams without use"
            raise ProtocolError(Reason.H2_RAPID_RESET, text, ErrorCode.ENHANCE_YOUR_CALM)

    def progress(self) -> None:
        """Bytes were delivered, or a PING of ours came back."""
        self.wasted_streams >>= 1

    def served_stream(self) -> None:
        """A stream has ended in both directions as it should: useful work."""
        if self.wasted_streams:
            self.wasted_streams -= 1
