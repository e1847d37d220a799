"""The direct path as the agent sees it: verdicts that let two enrolled pods of this node talk without the proxy, and their flows.

Invariant: the kernel goes by a verdict only while the table's epoch is the verdict's own and the lease has not run out.  `close` stops
all of them with one write; while the table is closed, connects go through the proxy, which costs speed and never safety.  Who may
talk to whom is not known here.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from enum import IntFlag
from itertools import islice
from typing import Final, NamedTuple

from nodeproxy.kernel import abi
from nodeproxy.kernel.abi import DirectCount
from nodeproxy.kernel.bpf import Map
from nodeproxy.kernel.ring import Ring

# An agent that died or hangs loses its direct path after this; one that only restarts does not interrupt it.
LEASE_NS: Final = 30_000_000_000
# More endpoints of one service than this go through the proxy, which balances better.
MAX_ENDPOINTS: Final = abi.MAX_ENDPOINTS
# Entries for each system call: few calls, and a buffer of less than 100 KB.
_BATCH: Final = 2048
_ZERO: Final = struct.pack("=I", 0)


class FlowFlag(IntFlag):
    """What a flow has come to.  ENDED: its end is told, but the ring for ended ones was full."""

    ESTABLISHED = 1
    ENDED = 2


class DirectFlow(NamedTuple):
    """One direct connection, from its SYN on, in the order of `struct np_direct_flow`.

    Cookies: of the client's socket and of both network namespaces.  Times: CLOCK_MONOTONIC, ended_ns 0 while it lives.
    Bytes: payload, as the client's end counts it; 0 while it lives.  original: what the application asked for (a VIP, maybe).
    """

    socket_cookie: int
    source_cookie: int
    destination_cookie: int
    started_ns: int
    ended_ns: int
    sent_bytes: int
    received_bytes: int
    source_ip: bytes
    destination_ip: bytes
    original_ip: bytes
    source_port: int
    destination_port: int
    original_port: int
    flags: int

    @property
    def source(self) -> tuple[str, int]:
        """The client's end."""
        return abi.unpack_ip(self.source_ip), self.source_port

    @property
    def destination(self) -> tuple[str, int]:
        """The server's end."""
        return abi.unpack_ip(self.destination_ip), self.destination_port

    @property
    def original(self) -> tuple[str, int]:
        """What the application connected to."""
        return abi.unpack_ip(self.original_ip), self.original_port

    @property
    def established(self) -> bool:
        """Whether the application's side accepted it."""
        return bool(self.flags & FlowFlag.ESTABLISHED)


class Verdict(NamedTuple):
    """For one pair of pods, by the cookies of their network namespaces: is every port direct, and which ones are the other way."""

    source_cookie: int
    destination_cookie: int
    default: bool
    exceptions: tuple[int, ...] = ()


class DirectService(NamedTuple):
    """A service's VIP and port, and its endpoints, all of them pods of this node: one to `MAX_ENDPOINTS`."""

    ip: str
    port: int
    endpoints: tuple[tuple[str, int], ...]


class DirectTable:
    """What the kernel goes by.  `publish` may run in a thread of its own, one at a time; all else belongs to one thread."""

    def __init__(self, maps: Mapping[str, Map]) -> None:
        self._maps = maps
        self._ended = Ring(maps["ended"], abi.DIRECT_FLOW)
        self._left_in_place = 0
        self._lock = threading.Lock()
        self._closings = 0
        value = maps["direct_state"].get(_ZERO) or bytes(abi.DIRECT_STATE.size)
        self._epoch, self._valid_until_ns = abi.DIRECT_STATE.unpack(value)

    def unmap(self) -> None:
        """Give the memory back; the kernel goes on by what was published until the lease ends."""
        self._ended.close()

    @property
    def epoch(self) -> int:
        """What the kernel goes by; 0: closed, or a former agent's lease has run out."""
        return self._epoch if time.monotonic_ns() < self._valid_until_ns else 0

    def _set(self, epoch: int) -> None:
        self._epoch, self._valid_until_ns = epoch, time.monotonic_ns() + LEASE_NS if epoch else 0
        self._maps["direct_state"].put(_ZERO, abi.DIRECT_STATE.pack(self._epoch, self._valid_until_ns))

    def close(self) -> int:
        """From now on every connect goes to the proxy.  The number of this closing, which `publish` wants to see.

        A connection whose SYN arrives at this very moment may still get through: it is among `flows()` by now.
        """
        with self._lock:
            self._set(0)
            self._closings += 1
            return self._closings

    def renew(self) -> None:
        """The agent lives: prolong the lease by `LEASE_NS`."""
        with self._lock:
            if self._epoch:
                self._set(self._epoch)

    def publish(self, closing: int, verdicts: Iterable[Verdict], services: Iterable[DirectService]) -> bool:
        """Write everything anew and open the direct path.  False if somebody closed it after `closing`: nothing is open then.

        What does not fit is left out, and is proxied (`left_out` says how many entries).
        """
        # Unique while the machine is up, so no entry that an agent before left can have it.
        epoch = time.monotonic_ns()
        raise NotImplementedError

    left_out = 0

    def flows(self) -> list[DirectFlow]:
        """Those that live, from their SYN on."""
        raise NotImplementedError

    def take_ended(self) -> list[DirectFlow]:
        """Those that ended since the last call, oldest first.  Each is told once, also over a restart of the agent."""
        raise NotImplementedError

    def counters(self) -> dict[str, int]:
        """What the programs counted since the maps were made: `DirectCount` in small letters."""
        return {count.name.lower(): self._maps["direct_counts"].per_cpu_sum(count) for count in DirectCount}


def batches(entries: Iterable[bytes], count: int = _BATCH) -> Iterator[list[bytes]]:
    """In lists of at most `count`."""
    source = iter(entries)
    while batch := list(islice(source, count)):
        yield batch
