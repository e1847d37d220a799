"""What the CNI plug-in's calls count, and their families."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

# Of a pod's ADD, in seconds: 20 ms is what a pod outside the mesh may notice, 100 ms one inside, 12 s the most there is.
BOUNDS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 12.0)


class CniStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """calls: by command and outcome ("in_mesh", "outside", "done", or a `CniRefusal`).

    add_counts: how many ADDs took at most each of `BOUNDS_S`, and longer: not summed up.  add_sum_s: all of them together.
    installed: whether the plug-in stands in the chain that the runtime uses; None: nobody was told to see to that.
    """

    calls: Mapping[tuple[str, str], int]
    add_counts: Sequence[int]
    add_sum_s: float
    installed: bool | None


def cni_families(cni: CniStatistics) -> Iterator[Metric]:
    """The families of one agent."""
    calls = CounterMetricFamily("nodeproxy_cni_calls", "Calls of the CNI plug-in, by outcome", labels=("command", "outcome"))
    for labels, count in cni.calls.items():
        calls.add_metric(labels, count)
    yield calls
    total, buckets = 0, []
    for bound, count in zip([*map(str, BOUNDS_S), "+Inf"], cni.add_counts, strict=True):
        total += count
        buckets.append((bound, total))
    yield HistogramMetricFamily("nodeproxy_cni_add_seconds", "How long an ADD took", buckets=buckets, sum_value=cni.add_sum_s)
    if cni.installed is not None:
        text = "1 while the plug-in stands in the chain that the runtime uses"
        yield GaugeMetricFamily("nodeproxy_cni_installed", text, value=int(cni.installed))
