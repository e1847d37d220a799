"""W3C trace context: the `traceparent` that a tunnel's request carries.

Invariant: what is returned is valid by the W3C's grammar whatever came in.  Random bytes are the caller's to bring.
"""

from __future__ import annotations

import re

RANDOM_BYTES = 24  # a trace-id (16) and a parent-id (8)

# Version ff is forbidden, a later version may have more after its flags.
_TRACEPARENT = re.compile(
    r"(?!ff)(?P<version>[0-9a-f]{2})-(?P<trace>(?!0{32})[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-(?P<flags>[0-9a-f]{2})(?P<more>-.*)?"
)
_SAMPLED = 0x01


def child_traceparent(incoming: str | None, random_bytes: bytes) -> str:
    """A `traceparent` below `incoming`, or of a new trace that is not sampled if there is none or it is invalid."""
    if len(random_bytes) < RANDOM_BYTES:
        raise ValueError(f"a traceparent needs {RANDOM_BYTES} random bytes")
    parent = _nonzero(random_bytes[16:RANDOM_BYTES])
    match = _TRACEPARENT.fullmatch(incoming) if incoming else None
    if match is None or (match["version"] == "00" and match["more"]):
        return f"00-{_nonzero(random_bytes[:16])}-{parent}-00"
    # W3C, section 3.2.2.5: of the flags only "sampled" is known to version 00; the others "MUST be set to zero".
    return f"00-{match['trace']}-{parent}-{int(match['flags'], 16) & _SAMPLED:02x}"


def _nonzero(octets: bytes) -> str:
    # Section 3.2.2.3: "All bytes as zero [...] is considered an invalid value."
    text = octets.hex()
    return text if any(octets) else text[:-1] + "1"
