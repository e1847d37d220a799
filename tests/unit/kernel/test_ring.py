"""The ring's reader, on a file that is laid out as the kernel does it."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from typing import cast

import pytest

from nodeproxy.kernel.bpf import Map
from nodeproxy.kernel.ring import Ring

RECORD = struct.Struct("=QQ")
SIZE = 8 + RECORD.size
BUSY = 0x80000000


class Pinned:
    """Pages of consumer and producer, and the data, which is there twice."""

    max_entries = mmap.PAGESIZE

    def __init__(self) -> None:
        self.fd = os.memfd_create("ring")
        os.ftruncate(self.fd, 2 * mmap.PAGESIZE + 2 * self.max_entries)
        self.produced = 0

    def write(self, first: int, second: int, flags: int = 0) -> None:
        data = struct.pack("=II", RECORD.size | flags, 0) + RECORD.pack(first, second)
        for offset, byte in enumerate(data):
            at = (self.produced + offset) % self.max_entries
            for copy in (0, self.max_entries):
                os.pwrite(self.fd, bytes([byte]), 2 * mmap.PAGESIZE + copy + at)
        self.produced += len(data)
        os.pwrite(self.fd, struct.pack("=Q", self.produced), mmap.PAGESIZE)

    @property
    def consumed(self) -> int:
        return int(struct.unpack("=Q", os.pread(self.fd, 8, 0))[0])


@pytest.fixture
def pinned() -> Iterator[Pinned]:
    made = Pinned()
    yield made
    os.close(made.fd)


@pytest.fixture
def ring(pinned: Pinned) -> Iterator[Ring]:
    made = Ring(cast(Map, pinned), RECORD)
    yield made
    made.close()


def test_each_record_is_given_once_and_in_order(pinned: Pinned, ring: Ring) -> None:
    assert ring.take() == []
    pinned.write(1, 2)
    pinned.write(3, 4)
    assert ring.take() == [(1, 2), (3, 4)]
    assert ring.take() == []
    assert pinned.consumed == 2 * SIZE


def test_a_record_that_is_being_written_is_waited_for(pinned: Pinned, ring: Ring) -> None:
    pinned.write(1, 2)
    begun = pinned.produced
    pinned.write(3, 4, BUSY)
    pinned.write(5, 6)
    assert ring.take() == [(1, 2)]
    assert pinned.consumed == begun
    pinned.produced = begun
    pinned.write(3, 4)
    pinned.produced += SIZE
    os.pwrite(pinned.fd, struct.pack("=Q", pinned.produced), mmap.PAGESIZE)
    assert ring.take() == [(3, 4), (5, 6)]


def test_records_go_over_the_end(pinned: Pinned, ring: Ring) -> None:
    fits = pinned.max_entries // SIZE
    for turn in range(5):
        for number in range(fits):
            pinned.write(turn, number)
        assert ring.take() == [(turn, number) for number in range(fits)]


def test_the_next_reader_goes_on_from_there(pinned: Pinned, ring: Ring) -> None:
    pinned.write(1, 2)
    assert ring.take() == [(1, 2)]
    pinned.write(3, 4)
    second = Ring(cast(Map, pinned), RECORD)
    assert second.take() == [(3, 4)]
    second.close()


def test_a_layout_that_the_kernel_would_pad(pinned: Pinned) -> None:
    with pytest.raises(ValueError, match="multiples of 8"):
        Ring(cast(Map, pinned), struct.Struct("=I"))
