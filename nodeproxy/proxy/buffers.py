"""The few large buffers that all connections of a worker read through.

Nothing stays in them between two callbacks.  Their size is measured: 64 KiB instead of 256 KiB costs a third of the throughput,
1 MiB instead of 256 KiB gives 7 to 9 per cent and an eighth of the CPU back, 4 MiB adds nothing that is sure.
"""

from __future__ import annotations

SHARED_BYTES = 1 << 20

# Cipher text as it comes from a tunnel's socket.
raw = memoryview(bytearray(SHARED_BYTES))
# What TLS made of it.  A record is 16 KiB at most, so that the last read of a pass may want that much room.
plain = memoryview(bytearray(SHARED_BYTES + 16_384))
# Bytes of an application on their way to another socket or, behind gaps for frame headers, into a tunnel.
application = memoryview(bytearray(SHARED_BYTES))

# What a worker may hold of bytes that applications do not take, beyond which tunnels as a whole are slowed (see `Budget`).
MAX_HELD_BYTES = 64 << 20
# What it may hold beyond that.  Such bytes fill windows that peers were given before; more of them than this can only be refused.
MAX_OWED_BYTES = 192 << 20


class Budget:
    """How much of `MAX_HELD_BYTES` and `MAX_OWED_BYTES` is used, over all tunnels of the worker."""

    __slots__ = ("_left", "_unowed")

    def __init__(self, limit_bytes: int = MAX_HELD_BYTES, owed_bytes: int = MAX_OWED_BYTES) -> None:
        self._left = limit_bytes
        self._unowed = owed_bytes

    def take(self, count: int) -> bool:
        """Reserve `count` bytes; False: there are not so many left, and nothing is reserved."""
        if count > self._left:
            return False
        self._left -= count
        return True

    def give(self, count: int) -> None:
        """Give back what was taken."""
        self._left += count

    def owe(self, count: int) -> bool:
        """Hold `count` bytes beyond the budget, which is so in any case; False: it is too much, whoever sent them must go."""
        self._unowed -= count
        return self._unowed >= 0

    @property
    def exhausted(self) -> bool:
        """No more should be held, by whoever can help it."""
        return self._unowed <= 0

    def settle(self, count: int) -> None:
        """Owed bytes have left."""
        self._unowed += count
