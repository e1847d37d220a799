"""The direct path as the agent sees it: verdicts that let two enrolled pods of a node talk without the proxy, and their flows.

Invariant: the kernel goes by a verdict only while the table's epoch is the verdict's own and the lease has not run out.
`close` stops all of them with one write; while the table is closed, connects go through the proxy, which costs speed and
never safety.  Who may talk to whom is not known here.
"""

from __future__ import annotations

import random
import struct
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from nodeproxy.kernel import abi, batch
from nodeproxy.kernel.abi import DirectCount
from nodeproxy.kernel.bpf import Map
from nodeproxy.kernel.ring import Ring

# An agent that died or hangs loses its direct path after this; one that only restarts does not interrupt it.
LEASE_NS: Final = 30_000_000_000
# More endpoints of one service than this go through the proxy, which balances better.
MAX_ENDPOINTS: Final = abi.MAX_ENDPOINTS
_ZERO: Final = struct.pack("=I", 0)


class DirectFlow(NamedTuple):
    """One direct connection, from its SYN on, in the order of `struct np_direct_ended`.

    Cookies: of the client's socket and of both network namespaces.  Times: CLOCK_MONOTONIC, ended_ns 0 while it lives.
    Bytes: payload, as the client's end counts it; 0 while it lives.  original: what the application asked for (a VIP, maybe).
    established: the application's side accepted it.  ended: it is over, but the ring was full when that was to be told.
    refused: a reset answered its SYN.
    """

    source_ip: bytes
    destination_ip: bytes
    source_port: int
    destination_port: int
    socket_cookie: int
    source_cookie: int
    destination_cookie: int
    started_ns: int
    ended_ns: int
    sent_bytes: int
    received_bytes: int
    original_ip: bytes
    original_port: int
    established: int
    ended: int
    refused: int

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


class Verdict(NamedTuple):
    """For a pair of pods, by the cookies of their network namespaces: are its ports direct; which ones are the other way."""

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
        self.left_out = 0
        self.held = False  # whether this agent is the one whose word counts: else it reads, and writes nothing
        self._ended = Ring(maps["ended"], abi.DIRECT_ENDED)
        self._left_in_place = 0
        self._lock = threading.Lock()
        self._publishing = threading.Lock()
        self._closings = 0
        self._epoch = self._valid_until_ns = 0

    def hold(self) -> None:
        """From now on this agent's word counts; what the one before has opened stays open."""
        value = self._maps["direct_state"].get(_ZERO) or bytes(abi.DIRECT_STATE.size)
        with self._lock:
            self._epoch, self._valid_until_ns = abi.DIRECT_STATE.unpack(value)
            self.held = True

    def let_go(self) -> None:
        """Another agent goes on with what is open.  Returns when `publish` writes no more, which may take long."""
        with self._lock:
            self.held = False
            self._closings += 1
        with self._publishing:
            return

    def unmap(self) -> None:
        """Give the memory back; the kernel goes on by what was published until the lease ends."""
        self._ended.close()

    @property
    def epoch(self) -> int:
        """What the kernel goes by; 0: closed, or a former agent's lease has run out."""
        return self._epoch if time.monotonic_ns() < self._valid_until_ns else 0

    def _set(self, epoch: int) -> None:
        if not self.held:
            return
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

        What does not fit is left out, and so goes through the proxy; `left_out` says how much that was.
        """
        with self._publishing:
            if not self.held:
                return False
            # Unique while the machine is up, so that no entry of an agent before, left behind half-way, can have it.
            epoch = time.monotonic_ns()
            left_out = self._write_services(epoch, services) + self._write_verdicts(epoch, verdicts)
            with self._lock:
                if closing != self._closings:
                    return False
                self._set(epoch)
            self.left_out = left_out
            self._remove_others(epoch)
            return True

    def _write_verdicts(self, epoch: int, verdicts: Iterable[Verdict]) -> int:
        """A pair's own entry only when those of its ports are there: without them it would let through what they forbid."""
        table = self._maps["verdicts"]
        kept = [verdict for verdict in verdicts if verdict.default or verdict.exceptions]
        values = {direct: abi.VERDICT.pack(epoch, direct, 0) for direct in (False, True)}
        left = batch.update(
            table,
            (
                (abi.PAIR.pack(source, destination, port, 0), values[not default])
                for source, destination, default, ports in kept
                for port in ports
            ),
        )
        return left + batch.update(
            table,
            (
                (
                    abi.PAIR.pack(source, destination, 0, 0),
                    abi.VERDICT.pack(epoch, default, len(ports)) if ports else values[True],
                )
                for source, destination, default, ports in kept
                if not (left and ports)
            ),
        )

    def _write_services(self, epoch: int, services: Iterable[DirectService]) -> int:
        return batch.update(
            self._maps["services"],
            (
                (
                    abi.ADDRESS_PORT.pack(abi.pack_ip(ip), port),
                    abi.SERVICE.pack(
                        epoch,
                        len(endpoints),
                        random.getrandbits(16),  # where the turn begins: not always at the first
                        b"".join(abi.ADDRESS_PORT.pack(abi.pack_ip(address), at) for address, at in endpoints),
                    ),
                )
                for ip, port, endpoints in services
            ),
        )

    def _remove_others(self, epoch: int) -> None:
        """Entries of former epochs: they count no more, and they take room."""
        for name in ("verdicts", "services"):
            table = self._maps[name]
            stale = [
                keys[at * table.key_bytes : (at + 1) * table.key_bytes]
                for keys, values in batch.walk(table)
                for at, (written,) in enumerate(struct.iter_unpack(f"=Q{table.value_bytes - 8}x", values))
                if written != epoch
            ]
            batch.delete(table, stale)

    def flows(self) -> list[DirectFlow]:
        """Those that live, from their SYN on."""
        return [flow for _, flow in self._remembered() if not flow.ended]

    def take_ended(self) -> list[DirectFlow]:
        """Those that ended since the last call, oldest first.  Each is told once, also over a restart of the agent."""
        if not self.held:
            return []
        found = [DirectFlow._make(fields) for fields in self._ended.take()]
        left = self._maps["direct_counts"].per_cpu_sum(DirectCount.LEFT)
        if left != self._left_in_place:
            self._left_in_place = left
            over = [(key, flow) for key, flow in self._remembered() if flow.ended]
            batch.delete(self._maps["direct"], (key for key, _ in over))
            found += (flow for _, flow in over)
        return found

    def _remembered(self) -> list[tuple[bytes, DirectFlow]]:
        padding = bytes(abi.DIRECT_ENDED.size - abi.FLOW.size - abi.DIRECT_FLOW.size)
        found = {}
        for keys, values in batch.walk(self._maps["direct"]):
            for at in range(len(keys) // abi.FLOW.size):
                key = keys[at * abi.FLOW.size : (at + 1) * abi.FLOW.size]
                value = values[at * abi.DIRECT_FLOW.size : (at + 1) * abi.DIRECT_FLOW.size]
                found[key] = DirectFlow._make(abi.DIRECT_ENDED.unpack(key + padding + value))
        return list(found.items())

    def counters(self) -> dict[str, int]:
        """What the programs counted since the maps were made: `DirectCount` in small letters."""
        return {count.name.lower(): self._maps["direct_counts"].per_cpu_sum(count) for count in DirectCount}
