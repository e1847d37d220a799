"""W3C trace context: the `traceparent` that a tunnel's request carries."""

from __future__ import annotations

from collections.abc import Callable


def new_traceparent(random_bits: Callable[[int], int]) -> str:
    """A `traceparent` of a new trace that is not sampled; random_bits: makes a number of so many bits."""
    # W3C trace context, section 3.2.2.3: "All bytes as zero [...] is considered an invalid value."
    return f"00-{random_bits(128) or 1:032x}-{random_bits(64) or 1:016x}-00"
