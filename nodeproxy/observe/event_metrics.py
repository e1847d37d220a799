"""What telling of pods by Events counts, and its families."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric


class EventStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Events on pods.  results: what was told, by what became of it.  waiting: Events that are to be written."""

    results: Mapping[str, int]
    waiting: int


def event_families(events: EventStatistics) -> Iterator[Metric]:
    """The families of one agent."""
    results = CounterMetricFamily("nodeproxy_pod_events", "Events on pods, by what became of them", labels=("result",))
    for result, count in events.results.items():
        results.add_metric((result,), count)
    yield results
    yield GaugeMetricFamily("nodeproxy_pod_events_waiting", "Events on pods that are to be written", value=events.waiting)
