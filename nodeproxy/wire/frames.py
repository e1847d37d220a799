"""HTTP/2 frames as numbers and bytes (RFC 9113, sections 4, 6 and 7).

Invariant: what is packed here is a whole frame in network byte order.  Nothing here knows streams, windows or a connection's
state.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct

# RFC 9113, section 3.4: "This sequence MUST be followed by a SETTINGS frame".
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_HEADER_BYTES = 9
DEFAULT_WINDOW_BYTES = 65_535  # section 6.9.2
DEFAULT_FRAME_BYTES = 16_384  # section 4.2
LARGEST_FRAME_BYTES = (1 << 24) - 1  # section 4.2
LARGEST_WINDOW_BYTES = (1 << 31) - 1  # section 6.9.1
LARGEST_STREAM_ID = (1 << 31) - 1  # section 5.1.1


class FrameType(IntEnum):
    """Section 6."""

    DATA = 0x0
    HEADERS = 0x1
    PRIORITY = 0x2
    RST_STREAM = 0x3
    SETTINGS = 0x4
    PUSH_PROMISE = 0x5
    PING = 0x6
    GOAWAY = 0x7
    WINDOW_UPDATE = 0x8
    CONTINUATION = 0x9


class ErrorCode(IntEnum):
    """Section 7."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


class Setting(IntEnum):
    """Section 6.5.2."""

    HEADER_TABLE_SIZE = 0x1
    ENABLE_PUSH = 0x2
    MAX_CONCURRENT_STREAMS = 0x3
    INITIAL_WINDOW_SIZE = 0x4
    MAX_FRAME_SIZE = 0x5
    MAX_HEADER_LIST_SIZE = 0x6


# Plain integers, not members of IntFlag: they are tested for every frame.
ACK = 0x1
END_STREAM = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITY = 0x20

# Length (24 bits) and type (8 bits) as one number, flags, stream identifier with its reserved bit.
FRAME_HEADER = Struct(">LBL")
LONG = Struct(">L")
TWO_LONGS = Struct(">LL")
SETTING = Struct(">HL")

_WITH_LONG = Struct(">LBLL")
_WITH_TWO_LONGS = Struct(">LBLLL")
_WITH_OCTETS = Struct(">LBL8s")


def frame_header(kind: int, flags: int, stream_id: int, length: int) -> bytes:
    """The nine bytes before a payload of `length` bytes."""
    return FRAME_HEADER.pack(length << 8 | kind, flags, stream_id)


def window_update(stream_id: int, increment: int) -> bytes:
    """Section 6.9."""
    return _WITH_LONG.pack(4 << 8 | FrameType.WINDOW_UPDATE, 0, stream_id, increment)


def rst_stream(stream_id: int, code: int) -> bytes:
    """Section 6.4."""
    return _WITH_LONG.pack(4 << 8 | FrameType.RST_STREAM, 0, stream_id, code)


def goaway(last_stream_id: int, code: int) -> bytes:
    """Section 6.8, without debug data."""
    return _WITH_TWO_LONGS.pack(8 << 8 | FrameType.GOAWAY, 0, 0, last_stream_id, code)


def ping(payload: bytes, *, ack: bool) -> bytes:
    """Section 6.7; `payload` has eight bytes."""
    return _WITH_OCTETS.pack(8 << 8 | FrameType.PING, ACK if ack else 0, 0, payload)


def settings(values: dict[Setting, int]) -> bytes:
    """Section 6.5."""
    payload = b"".join(SETTING.pack(key, value) for key, value in values.items())
    return frame_header(FrameType.SETTINGS, 0, 0, len(payload)) + payload


SETTINGS_ACK = frame_header(FrameType.SETTINGS, ACK, 0, 0)


def headers(stream_id: int, block: bytes, *, end_stream: bool, max_frame_bytes: int) -> bytes:
    """A HEADERS frame, and the CONTINUATION frames that a block longer than `max_frame_bytes` needs (section 4.3)."""
    flags = END_STREAM if end_stream else 0
    size = len(block)
    if size <= max_frame_bytes:
        return frame_header(FrameType.HEADERS, flags | END_HEADERS, stream_id, size) + block
    parts = [frame_header(FrameType.HEADERS, flags, stream_id, max_frame_bytes), block[:max_frame_bytes]]
    for start in range(max_frame_bytes, size, max_frame_bytes):
        part = block[start : start + max_frame_bytes]
        last = END_HEADERS if start + max_frame_bytes >= size else 0
        parts += (frame_header(FrameType.CONTINUATION, last, stream_id, len(part)), part)
    return b"".join(parts)
