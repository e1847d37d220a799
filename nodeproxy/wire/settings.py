"""SETTINGS: ours as values to send, the peer's as values to obey (RFC 9113, section 6.5).

Invariant: `PeerSettings` holds only legal values.  It does not know streams; applying a new window to them is the connection's.
"""

from __future__ import annotations

from typing import NamedTuple

from nodeproxy.wire.frames import (
    DEFAULT_FRAME_BYTES,
    DEFAULT_WINDOW_BYTES,
    LARGEST_FRAME_BYTES,
    LARGEST_WINDOW_BYTES,
    SETTING,
    ErrorCode,
    Setting,
)
from nodeproxy.wire.limits import violation
from nodeproxy.wire.stream import Role

# Section 6.5.2: "It is RECOMMENDED that this value be no smaller than 100"; taken until the peer's SETTINGS have come.
ASSUMED_MAX_STREAMS = 100
UNLIMITED_STREAMS = (1 << 32) - 1


class OwnSettings(NamedTuple):
    """What we allow the peer."""

    stream_window_bytes: int
    connection_window_bytes: int
    max_frame_bytes: int
    max_streams: int
    header_list_bytes: int


def own_settings(role: Role, own: OwnSettings) -> dict[Setting, int]:
    """`own` as the SETTINGS to send."""
    values = {
        # A dynamic table is state that a peer fills; without one a block means the same on every connection and its decoding
        # can be remembered.
        Setting.HEADER_TABLE_SIZE: 0,
        Setting.INITIAL_WINDOW_SIZE: own.stream_window_bytes,
        Setting.MAX_FRAME_SIZE: own.max_frame_bytes,
        Setting.MAX_HEADER_LIST_SIZE: own.header_list_bytes,
    }
    if role is Role.CLIENT:
        values[Setting.ENABLE_PUSH] = 0
    else:
        values[Setting.MAX_CONCURRENT_STREAMS] = own.max_streams
    return values


class PeerSettings:
    """The peer's settings in force."""

    __slots__ = ("initial_window", "max_frame_bytes", "max_streams", "received")

    def __init__(self) -> None:
        self.initial_window = DEFAULT_WINDOW_BYTES
        self.max_frame_bytes = DEFAULT_FRAME_BYTES
        self.max_streams = ASSUMED_MAX_STREAMS
        self.received = False

    def apply(self, payload: memoryview, role: Role) -> None:
        """Obey a SETTINGS payload (a multiple of six bytes); `role` is ours."""
        if not self.received:
            # Section 6.5.2: "Initially, there is no limit to this value."
            self.received = True
            self.max_streams = UNLIMITED_STREAMS
        # Section 6.5.3: "The values in the SETTINGS frame MUST be processed in the order they appear".
        for key, value in SETTING.iter_unpack(payload):
            if key == Setting.INITIAL_WINDOW_SIZE:
                # Section 6.5.2: "Values above the maximum flow-control window size of 2^31-1 MUST be treated as a connection
                # error of type FLOW_CONTROL_ERROR."
                if value > LARGEST_WINDOW_BYTES:
                    raise violation(f"an initial window of {value}", ErrorCode.FLOW_CONTROL_ERROR)
                self.initial_window = value
            elif key == Setting.MAX_FRAME_SIZE:
                # Section 6.5.2: "Values outside this range MUST be treated as a connection error of type PROTOCOL_ERROR."
                if not DEFAULT_FRAME_BYTES <= value <= LARGEST_FRAME_BYTES:
                    raise violation(f"a maximum frame size of {value}")
                self.max_frame_bytes = value
            elif key == Setting.MAX_CONCURRENT_STREAMS:
                self.max_streams = value
            elif key == Setting.ENABLE_PUSH:
                _check_push(value, role)
            # Section 6.5.2: "An endpoint that receives a SETTINGS frame with any unknown or unsupported identifier MUST ignore
            # that setting." HEADER_TABLE_SIZE has no effect on an encoder that never indexes.


def _check_push(value: int, role: Role) -> None:
    # Section 6.5.2: "Any value other than 0 or 1 MUST be treated as a connection error of type PROTOCOL_ERROR." "A client MUST
    # treat receipt of a SETTINGS frame with SETTINGS_ENABLE_PUSH set to 1 as a connection error of type PROTOCOL_ERROR."
    if value > 1 or (value == 1 and role is Role.CLIENT):
        raise violation(f"ENABLE_PUSH is {value}")
