"""Counts what connections do, in the workers, and adds the workers' counts up in the agent.

A worker's `Counters` yields what changed since the last time, in pages that fit a packet; the agent's `Totals` keeps the sums.
Invariants: a byte is counted once; the number of series is bounded on both sides, and what the bound costs is itself counted.
It must not know Prometheus, nor how the pages travel.  Workers import it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import msgspec

from nodeproxy.errors import StateError
from nodeproxy.model.connection import Direction
from nodeproxy.model.messages import MAX_MESSAGE_BYTES
from nodeproxy.model.reason import Reason
from nodeproxy.observe.counter_page import CounterPage, Counts
from nodeproxy.observe.labels import FLAGS_INDEX, LABELS, REPORTER_INDEX, UNKNOWN, Labels

# Measured: a series takes 0.6 KB in the agent and 4.4 KB of a scrape's text, so a full table makes a page of 44 MB: beyond what a
# node with some hundred pods needs, and within what a scrape can carry.
MAX_SERIES = 10_000
# A page must fit a message with its envelope.
MAX_PAGE_BYTES = MAX_MESSAGE_BYTES - 1024
# A series in a page: 27 references to strings of at most 3 bytes each, and five numbers of at most 9.
_SERIES_BYTES = 27 * 3 + 5 * 9 + 8
NO_FLAGS = "-"


class Series:
    """The counts under one set of labels since they were last taken.  On the hot path: `series.received_bytes += n`."""

    __slots__ = ("closed", "failed", "labels", "opened", "received_bytes", "sent_bytes", "users")

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        self.users = 0  # connections that hold it and may count on
        self.opened = self.closed = self.failed = self.received_bytes = self.sent_bytes = 0


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(CounterPage)


class Counters:
    """A worker's counts (or those of the agent itself, for direct flows)."""

    def __init__(self, max_series: int = MAX_SERIES) -> None:
        self._max_series = max_series
        self._series: dict[Labels, Series] = {}
        self._refused: dict[tuple[str, str], int] = {}
        self._dry_run: dict[tuple[str, bool], int] = {}
        self._sockets: dict[str, int] = {}
        self._passed_over: dict[str, int] = {}

    def open(self, labels: Labels) -> Series:
        """A connection begins; keep what is returned until `close`."""
        series = self._of(labels)
        self.open_more(series)
        return series

    def open_more(self, series: Series) -> None:
        """Another connection begins that counts in `series`, which has users."""
        series.opened += 1
        series.users += 1
        reporter = series.labels[REPORTER_INDEX]
        self._sockets[reporter] = self._sockets.get(reporter, 0) + 1

    def close(self, series: Series, labels: Labels) -> None:
        """The connection ends.  labels: as they are now, with the flags of how it ended."""
        series.users -= 1
        self._sockets[labels[REPORTER_INDEX]] -= 1
        end = series if labels is series.labels else self._of(labels)
        end.closed += 1
        if labels[FLAGS_INDEX] != NO_FLAGS:
            end.failed += 1

    def fail(self, labels: Labels) -> None:
        """A connection that never was: refused before it was opened."""
        self._of(labels).failed += 1

    def add(self, labels: Labels, counts: Counts) -> None:
        """Many connections at once, that nobody holds a series for."""
        series = self._of(labels)
        series.opened += counts.opened
        series.closed += counts.closed
        series.failed += counts.failed
        series.received_bytes += counts.received_bytes
        series.sent_bytes += counts.sent_bytes

    def set_open(self, reporter: str, count: int) -> None:
        """How many connections are open, for who does not count them by `open` and `close`."""
        self._sockets[reporter] = count

    def refused(self, reason: Reason, direction: Direction) -> None:
        """Something was refused or ended by this reason."""
        key = (reason.value, direction.value)
        self._refused[key] = self._refused.get(key, 0) + 1

    def passed_over(self, reason: Reason) -> None:
        """An endpoint of a service was not reached, and another one was tried."""
        self._passed_over[reason.value] = self._passed_over.get(reason.value, 0) + 1

    def dry_run(self, policy: str, denied: bool) -> None:
        """A dry-run policy (key "namespace/name") would have denied, or allowed."""
        key = (policy, denied)
        if key in self._dry_run or len(self._dry_run) < self._max_series:
            self._dry_run[key] = self._dry_run.get(key, 0) + 1

    def take(self) -> list[bytes]:
        """What changed since the last call, as pages for `Totals.merge`; at least one.  Series without a user are forgotten."""
        pages = [_encoder.encode(page) for page in self._pages()]
        self._series = {labels: series for labels, series in self._series.items() if series.users > 0}
        return pages

    def _of(self, labels: Labels) -> Series:
        series = self._series.get(labels)
        if series is None:
            if len(self._series) >= self._max_series:
                labels = overflow(labels)
                series = self._series.get(labels)
            if series is None:
                series = self._series[labels] = Series(labels)
        return series

    def _pages(self) -> Iterator[CounterPage]:
        page = CounterPage(
            [],
            [],
            [(reason, direction, count) for (reason, direction), count in self._refused.items()],
            [(policy, denied, count) for (policy, denied), count in self._dry_run.items()],
            dict(self._sockets),
            self._passed_over,
        )
        self._refused, self._dry_run, self._passed_over = {}, {}, {}
        # Refusals are few (a closed list of reasons), but policies have names of up to 2 × 253 characters.
        size = 1024 + sum(len(policy) + 16 for policy, _, _ in page.dry_run)
        places: dict[str, int] = {}
        for series in self._series.values():
            counts = (series.opened, series.closed, series.failed, series.received_bytes, series.sent_bytes)
            if not any(counts):
                continue
            series.opened = series.closed = series.failed = series.received_bytes = series.sent_bytes = 0
            # 4 bytes a character is UTF-8's worst case, 5 the longest head of a msgpack string.
            size += _SERIES_BYTES + sum(4 * len(value) + 5 for value in set(series.labels) if value not in places)
            if size > MAX_PAGE_BYTES and page.series:
                yield page
                page, size, places = (
                    CounterPage([], [], sockets=page.sockets),
                    _SERIES_BYTES + sum(4 * len(v) + 5 for v in series.labels),
                    {},
                )
            page.series.append((tuple(_place(places, page.strings, value) for value in series.labels), *counts))
        yield page


def overflow(labels: Labels) -> Labels:
    """Where counts go when there are too many series: all unknown but who reports and how it ended."""
    return tuple(value if index in (REPORTER_INDEX, FLAGS_INDEX) else UNKNOWN for index, value in enumerate(labels))


def _place(places: dict[str, int], strings: list[str], value: str) -> int:
    place = places.get(value)
    if place is None:
        place = places[value] = len(strings)
        strings.append(value)
    return place


class Totals:
    """The agent's sums over all workers, and over those that have died.

    series: labels → [opened, closed, failed, received bytes, sent bytes], the longest untouched first; dropped_series: how many
    of these had to make room (a scraper sees them end, and begin at zero if they come back).
    """

    def __init__(self, max_series: int = MAX_SERIES) -> None:
        self._max_series = max_series
        self.series: dict[Labels, list[int]] = {}
        self.refused: dict[tuple[str, str], int] = {}
        self.dry_run: dict[tuple[str, bool], int] = {}
        self.passed_over: dict[str, int] = {}
        self.dropped_series = 0
        self._sockets: dict[int, dict[str, int]] = {}

    def merge(self, page: bytes, worker: int) -> None:
        """Add a page of `Counters.take`.  worker: whose it is, for the gauges; StateError if it is not a page."""
        try:
            parts = _decoder.decode(page)
            strings = [sys.intern(value) for value in parts.strings]
            rows = [(tuple([strings[place] for place in places]), counts) for places, *counts in parts.series]
        except (msgspec.DecodeError, IndexError) as exc:
            raise StateError(f"worker {worker} sent counters that can't be read: {exc}") from exc
        if any(len(labels) != len(LABELS) for labels, _ in rows):
            raise StateError(f"worker {worker} sent counters with other labels than the agent's: are the versions the same?")
        for labels, counts in rows:
            self._add(labels, counts)
        for reason, direction, count in parts.refused:
            self.refused[reason, direction] = self.refused.get((reason, direction), 0) + count
        for reason, count in parts.passed_over.items():
            self.passed_over[reason] = self.passed_over.get(reason, 0) + count
        for policy, denied, count in parts.dry_run:
            if (policy, denied) in self.dry_run or len(self.dry_run) < self._max_series:
                self.dry_run[policy, denied] = self.dry_run.get((policy, denied), 0) + count
        self._sockets[worker] = parts.sockets

    def forget_worker(self, worker: int) -> None:
        """The worker has died, and its open sockets with it; what it counted stays."""
        self._sockets.pop(worker, None)

    def sockets_open(self) -> dict[str, int]:
        """Open connections by reporter."""
        sums: dict[str, int] = {}
        for sockets in self._sockets.values():
            for reporter, count in sockets.items():
                sums[reporter] = sums.get(reporter, 0) + count
        return sums

    def _add(self, labels: Labels, counts: list[int]) -> None:
        before = self.series.pop(labels, None)
        if before is not None:
            counts = [old + new for old, new in zip(before, counts, strict=True)]
        elif len(self.series) >= self._max_series:
            del self.series[next(iter(self.series))]
            self.dropped_series += 1
        self.series[labels] = counts
