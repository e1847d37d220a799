"""What asking for names on demand counts, and its families."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric


class OnDemandStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Asking for names on demand.  names: how many, by answer ("present", "absent", "pending").

    asked, asked_again: names that the source was asked for, first and once more.  answers: its own, by kind.
    refused: names that workers were refused, by why; let_go: those that are not asked for any more, by why.
    """

    names: Mapping[str, int]
    asked: int
    asked_again: int
    answers: Mapping[str, int]
    refused: Mapping[str, int]
    let_go: Mapping[str, int]


def on_demand_families(on_demand: OnDemandStatistics) -> Iterator[Metric]:
    """The families of one agent."""
    names = GaugeMetricFamily("nodeproxy_on_demand_names", "Names that the source of state is asked for", labels=("answer",))
    for answer, count in on_demand.names.items():
        names.add_metric((answer,), count)
    yield names
    for name, documentation, label, counts in (
        ("answers", "Names that the source has answered", "answer", on_demand.answers),
        ("refused", "Names that connections asked for in vain", "reason", on_demand.refused),
        ("let_go", "Names that are not asked for any more", "reason", on_demand.let_go),
    ):
        family = CounterMetricFamily(f"nodeproxy_on_demand_{name}", documentation, labels=(label,))
        for value, count in counts.items():
            family.add_metric((value,), count)
        yield family
    yield CounterMetricFamily("nodeproxy_on_demand_asked", "Names that were asked for, and not before", value=on_demand.asked)
    again = on_demand.asked_again
    yield CounterMetricFamily("nodeproxy_on_demand_asked_again", "Names that were asked for once more", value=again)
