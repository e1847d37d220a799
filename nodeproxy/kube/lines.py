"""Cutting a stream of bytes into lines of a bounded length: sans-I/O, at a cost that grows with the bytes alone.

Invariant: what is kept between two chunks is one unfinished line of at most `max_bytes`.  It must not know what a line means.
"""

from __future__ import annotations

from collections.abc import Iterator


class LineTooLongError(ValueError):
    """A line is longer than the limit; nothing more can be read of this stream."""


class Lines:
    """The lines of a stream that comes in chunks, without their line feeds; empty ones are left out."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._unfinished: list[bytes] = []
        self._unfinished_bytes = 0

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Take a chunk, and give the lines that it ends.  Raises LineTooLongError; exhaust it before the next chunk."""
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            line = self._finish(chunk[start:end])
            start = end + 1
            if line:
                yield line
        if start < len(chunk):
            self._keep(chunk[start:])

    @property
    def unfinished_bytes(self) -> int:
        """The size of what waits for its line feed; not 0 at the end of a stream that was cut off."""
        return self._unfinished_bytes

    def _finish(self, rest: bytes) -> bytes:
        self._keep(rest)
        line = b"".join(self._unfinished)
        self._unfinished.clear()
        self._unfinished_bytes = 0
        return line

    def _keep(self, part: bytes) -> None:
        self._unfinished_bytes += len(part)
        if self._unfinished_bytes > self._max_bytes:
            raise LineTooLongError(f"a line has more than {self._max_bytes} bytes")
        self._unfinished.append(part)
