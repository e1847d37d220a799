"""Records that eBPF programs left in a pinned ring buffer: read by mmap, no system call for each, none lost by a restart.

What is read is given back by moving the consumer's position, which stands in the ring itself: the next agent goes on from there.
One reader at a time (the instance's lock sees to it).  Layout: Documentation/bpf/ringbuf.rst of the kernel.
"""

from __future__ import annotations

import mmap
import struct
from typing import Any, Final

from nodeproxy.kernel.bpf import Map

# struct bpf_ringbuf_hdr: length with two flags, and the page's number; records are padded to 8 bytes.
_HEADER: Final = "II"
_BUSY_OR_DISCARDED: Final = 0xC0000000
_PAGE: Final = mmap.PAGESIZE


class Ring:
    """A ring whose records all have one layout."""

    def __init__(self, opened: Map, record: struct.Struct) -> None:
        if record.size % 8:
            raise ValueError("records of a ring are multiples of 8 bytes")
        self._record = struct.Struct("=" + _HEADER + record.format.lstrip("="))
        self._mask = opened.max_entries - 1
        # Three parts: the consumer's page, the producer's page, and the data twice, so that no record is cut by the end.
        self._consumer_page = mmap.mmap(opened.fd, _PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0)
        self._rest = mmap.mmap(opened.fd, _PAGE + 2 * opened.max_entries, mmap.MAP_SHARED, mmap.PROT_READ, offset=_PAGE)
        # Casts, because struct reads "=Q" byte by byte while the kernel writes.
        self._consumed = memoryview(self._consumer_page).cast("Q")
        self._produced = memoryview(self._rest).cast("Q")
        self._data = memoryview(self._rest)[_PAGE:]

    def close(self) -> None:
        """Unmap; the pin keeps what was not read."""
        for view in (self._consumed, self._produced, self._data):
            view.release()
        self._consumer_page.close()
        self._rest.close()

    def take(self) -> list[tuple[Any, ...]]:
        """The records that are there, oldest first, each as the layout's fields."""
        begin, end = self._consumed[0], self._produced[0]
        size = self._record.size
        at = begin & self._mask
        found: list[tuple[Any, ...]] = []
        for fields in self._record.iter_unpack(self._data[at : at + (end - begin) // size * size]):
            if fields[0] & _BUSY_OR_DISCARDED:  # being written at this moment; ours are never discarded
                break
            found.append(fields[2:])
        self._consumed[0] = begin + len(found) * size
        return found
