"""What many connections have in common, worked out once: their labels and the part of their log lines that does not change.

Invariant: a kind depends on nothing but what `Kinds.of` compares, so it may be used for any connection that it was found for.
Measured: labels and a whole line for each connection were a sixth of the CPU of a new one.  Workers import it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from nodeproxy.model.connection import Connection, Direction
from nodeproxy.observe.labels import Labels, Reporter, tcp_labels

if TYPE_CHECKING:
    from nodeproxy.observe.counters import Series

# One for each pair of pods, service and way that talk through this worker; a kind takes some 2 KiB.
MAX_KINDS = 1024


class Fixed(NamedTuple):
    """The same for all lines of a kind: what stands before the client's port, and behind it."""

    client: str  # the client's address up to its port: of another client the line is made anew
    before: str
    behind: str


class Kind:
    """Connections that differ in the client's address, in times and in bytes only.

    fixed: the access log's own, of the last client; None: not known, or not to be said beforehand.
    series: what the last connection of this kind counts in.
    """

    __slots__ = ("_both", "_example", "_one", "fixed", "series")

    def __init__(self, example: Connection) -> None:
        # It also keeps alive what `Kinds.of` tells apart by identity.
        self._example = Connection(
            id=0,
            direction=example.direction,
            source=example.source,
            destination=example.destination,
            security=example.security,
            service=example.service,
            hbone_address=example.hbone_address,
        )
        self._one: tuple[Labels, ...] = ()
        self._both: tuple[Labels, ...] = ()
        self.series: tuple[Series, ...] = ()
        self.fixed: Fixed | None = None

    def labels(self, *, both: bool) -> tuple[Labels, ...]:
        """What it is counted under while it is well: as this node's pod sees it, or as both of two pods of this node."""
        if both and not self._both:
            self._both = tuple(tcp_labels(self._example, reporter) for reporter in Reporter)
        elif not self._one:
            inbound = self._example.direction is Direction.INBOUND
            self._one = (tcp_labels(self._example, Reporter.DESTINATION if inbound else Reporter.SOURCE),)
        return self._both if both else self._one


class Kinds:
    """The kinds of a worker's connections."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], Kind] = {}

    def of(self, record: Connection) -> Kind:
        """The kind of a connection that goes well so far."""
        source, destination = record.source, record.destination
        # Workloads and services by identity: they are frozen, and the same objects while the state is.  Members of enumerations,
        # too: they are hashed by a function of Python's.
        key = (
            id(record.direction),
            id(source.workload),
            source.identity,
            destination.address,
            id(destination.workload),
            destination.identity,
            id(record.security),
            id(record.service),
            record.hbone_address,
        )
        kind = self._known.get(key)
        if kind is None:
            if len(self._known) >= MAX_KINDS:
                self._known.clear()
            kind = self._known[key] = Kind(record)
        return kind
