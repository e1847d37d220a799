from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from nodeproxy.errors import StateError
from nodeproxy.model.connection import Connection, Direction
from nodeproxy.model.messages import MAX_MESSAGE_BYTES, Report
from nodeproxy.model.reason import Reason
from nodeproxy.observe.counters import Counters, Totals, overflow
from nodeproxy.observe.labels import FLAGS_INDEX, LABELS, REPORTER_INDEX, Labels, tcp_labels

Make = Callable[..., Connection]


def labelled(number: int, length: int = 0) -> Labels:
    values = [f"{number}-{place}".ljust(length, "é") for place in range(len(LABELS))]
    values[REPORTER_INDEX], values[FLAGS_INDEX] = "source", "-"
    return tuple(values)


def merge(totals: Totals, counters: Counters, worker: int = 0) -> None:
    for page in counters.take():
        totals.merge(page, worker)


def test_a_connections_life(connection: Make) -> None:
    counters, totals = Counters(), Totals()
    live = tcp_labels(connection())
    series = counters.open(live)
    series.received_bytes += 100
    merge(totals, counters)
    assert totals.series == {live: [1, 0, 0, 100, 0]}
    assert totals.sockets_open() == {"source": 1}
    series.received_bytes += 1
    series.sent_bytes += 7
    counters.close(series, live)
    merge(totals, counters)
    assert totals.series == {live: [1, 1, 0, 101, 7]}
    assert totals.sockets_open() == {"source": 0}
    merge(totals, counters)
    assert totals.series == {live: [1, 1, 0, 101, 7]}


def test_an_end_by_an_error_counts_under_its_flags(connection: Make) -> None:
    counters, totals = Counters(), Totals()
    live, denied = tcp_labels(connection()), tcp_labels(connection(reason=Reason.POLICY_DENY))
    counters.close(counters.open(live), denied)
    counters.fail(denied)
    merge(totals, counters)
    assert totals.series == {live: [1, 0, 0, 0, 0], denied: [0, 1, 2, 0, 0]}


def test_bytes_after_a_take_are_not_lost_though_the_series_was_idle(connection: Make) -> None:
    counters, totals = Counters(), Totals()
    live = tcp_labels(connection())
    series = counters.open(live)
    for _ in range(3):
        merge(totals, counters)
    series.sent_bytes += 5
    merge(totals, counters)
    assert totals.series[live] == [1, 0, 0, 0, 5]


def test_refusals_and_dry_runs() -> None:
    counters, totals = Counters(), Totals()
    for _ in range(2):
        counters.refused(Reason.POLICY_DENY, Direction.INBOUND)
    counters.dry_run("shop/p", denied=True)
    merge(totals, counters)
    merge(totals, counters)
    assert totals.refused == {("policy_deny", "inbound"): 2}
    assert totals.dry_run == {("shop/p", True): 1}


def test_workers_add_up_and_a_dead_ones_sockets_go(connection: Make) -> None:
    totals = Totals()
    live = tcp_labels(connection())
    for worker in range(3):
        counters = Counters()
        counters.open(live)
        merge(totals, counters, worker)
    assert totals.sockets_open() == {"source": 3}
    totals.forget_worker(1)
    totals.forget_worker(1)
    assert totals.sockets_open() == {"source": 2}
    assert totals.series[live][0] == 3


@pytest.mark.parametrize("length", [0, 250])
def test_pages_fit_a_message_and_lose_nothing(length: int) -> None:
    counters, totals = Counters(), Totals()
    for number in range(300):
        counters.open(labelled(number, length)).received_bytes += 1 << 60
    pages = counters.take()
    assert len(pages) > 1
    for page in pages:
        assert len(msgspec.msgpack.encode(Report(1 << 40, page, last=False))) <= MAX_MESSAGE_BYTES
        totals.merge(page, 0)
    assert len(totals.series) == 300
    assert all(counts == [1, 0, 0, 1 << 60, 0] for counts in totals.series.values())
    assert totals.sockets_open() == {"source": 300}


def test_a_worker_forgets_series_without_a_user_and_bounds_the_rest() -> None:
    counters, totals = Counters(max_series=10), Totals()
    for number in range(50):
        series = counters.open(labelled(number))
        series.sent_bytes += 1
        counters.close(series, labelled(number))
    merge(totals, counters)
    assert len(totals.series) == 11
    assert totals.series[overflow(labelled(0))] == [40, 40, 0, 0, 40]
    for number in range(10):
        counters.open(labelled(100 + number))  # there is room again
    merge(totals, counters)
    assert len(totals.series) == 21


def test_the_agent_lets_the_longest_untouched_go_and_counts_it() -> None:
    totals = Totals(max_series=3)
    counters = Counters()
    for number in (0, 1, 2, 0, 3):
        counters.fail(labelled(number))
        merge(totals, counters)
    assert list(totals.series) == [labelled(2), labelled(0), labelled(3)]
    assert totals.dropped_series == 1


def test_dry_run_policies_are_bounded() -> None:
    counters = Counters(max_series=5)
    totals = Totals(max_series=3)
    for number in range(100):
        counters.dry_run(f"ns/{number}", denied=False)
    merge(totals, counters)
    assert len(totals.dry_run) == 3


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode([["a"], [[[9], 1, 1, 1, 1, 1]]]),
        msgspec.msgpack.encode([["a"], [[[0], 1, 1, 1, 1, 1]]]),
    ],
)
def test_what_is_no_page_changes_nothing(page: bytes) -> None:
    totals = Totals()
    with pytest.raises(StateError):
        totals.merge(page, 0)
    assert totals.series == {}
