"""The metrics of what the controller reads and of what it is to the other replicas, made at each scrape of what its parts tell.

A scrape changes nothing.  What serving and signing count stands in `xds_metrics` and `ca_metrics`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from nodeproxy.controller.leader import Leader
from nodeproxy.controller.placement import PodPlacement
from nodeproxy.controller.status import StatusWriter
from nodeproxy.controller.watches import Watches
from nodeproxy.kube.statistics import Trouble, WatchStatistics

PREFIX = "nodeproxy_controller_"


class ControllerParts(NamedTuple):
    """Whom the metrics are asked of."""

    watches: Watches
    leader: Leader
    placement: PodPlacement
    status: StatusWriter


class ControllerCollector(Collector):
    """For a `prometheus_client.CollectorRegistry`.  clock: as the watches'."""

    def __init__(self, parts: ControllerParts, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._parts = parts
        self._clock = clock

    def collect(self) -> Iterable[Metric]:
        """The families as they are now."""
        parts = self._parts
        yield from self._watches(parts.watches.statistics())
        failures = _counter(
            "translation_failures", "Resources that the translation failed on, which is a mistake of ours", "kind"
        )
        for kind in parts.watches.statistics():
            failures.add_metric([kind], parts.watches.failures[kind])
        yield failures
        yield _gauge("started", "Whether the whole cluster is known, and served", int(parts.watches.started))
        yield _gauge("leader", "Whether this replica leads", int(parts.leader.leads()))
        terms = _counter("leader_terms", "How often this replica began to lead")
        terms.add_metric([], parts.leader.terms)
        yield terms
        yield _gauge("placed_pods", "Pods that the CA knows to run on a node", len(parts.placement))
        writes = _counter("status_writes", "Conditions of resources, by what came of writing them", "result")
        for result, count in parts.status.writes.items():
            writes.add_metric([result], count)
        yield writes

    def _watches(self, statistics: dict[str, WatchStatistics]) -> Iterable[Metric]:
        now = self._clock()
        columns: tuple[tuple[str, str, Callable[[WatchStatistics], float]], ...] = (
            ("synced", "Whether all of a kind have been read once, or it is not defined", lambda each: each.synced),
            ("present", "Whether the kind is defined in this cluster", lambda each: each.present),
            ("objects", "Resources of the kind that are known", lambda each: each.objects),
            ("silence_seconds", "How long ago the API server last said something good", lambda each: now - each.heard_at),
        )
        for name, text, value in columns:
            gauge = GaugeMetricFamily(f"{PREFIX}watch_{name}", text, labels=["kind"])
            for kind, each in statistics.items():
                gauge.add_metric([kind], value(each))
            yield gauge
        counts: tuple[tuple[str, str, Callable[[WatchStatistics], float]], ...] = (
            ("events", "Changes that watches told", lambda each: each.events),
            ("lists", "How often all of a kind were listed", lambda each: each.lists),
            ("unusable", "Resources that could not be read; what was known of them stays", lambda each: each.unusable),
        )
        for name, text, value in counts:
            counter = _counter(f"watch_{name}", text, "kind")
            for kind, each in statistics.items():
                counter.add_metric([kind], value(each))
            yield counter
        troubles = _counter(
            "watch_troubles", "Why lists and watches did not go on; the last state stays in use", "kind", "trouble"
        )
        for kind, each in statistics.items():
            for trouble in Trouble:
                troubles.add_metric([kind, trouble], each.troubles[trouble])
        yield troubles


def _counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(PREFIX + name, text, labels=labels)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, text, value=value)
