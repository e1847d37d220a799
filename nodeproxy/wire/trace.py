"""W3C trace context: the `traceparent` that a tunnel's request carries."""

from __future__ import annotations

from collections.abc import Callable

_NOT_ZERO = 1 << 64 | 1  # a bit of each of the two


def new_traceparent(random_bits: Callable[[int], int]) -> str:
    """A `traceparent` of a new trace that is not sampled; random_bits: makes a number of so many bits."""
    # A trace-id (16 bytes) and a parent-id (8).  W3C trace context, section 3.2.2.3: "All bytes as zero [...] is considered an
    # invalid value."
    ids = (random_bits(8 * 24) | _NOT_ZERO).to_bytes(24, "big").hex()
    return f"00-{ids[:32]}-{ids[32:]}-00"
