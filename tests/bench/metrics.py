"""What is measured: kinds of numbers, their units, and which way is better.  A metric is "row.kind": "bulk_1_up.gbps"."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """`digits` after the point in tables."""

    title: str
    unit: str
    higher_is_better: bool = False
    digits: int = 1


KINDS = {
    "gbps": Kind("throughput", "Gb/s", True, 2),
    "cpu_s_per_gb": Kind("proxy CPU", "s/GB", digits=2),
    "p50_us": Kind("p50", "µs", digits=0),
    "p99_us": Kind("p99", "µs", digits=0),
    "p999_us": Kind("p99.9", "µs", digits=0),
    "per_s": Kind("rate", "1/s", True, 0),
    "cpu_s_per_1000": Kind("proxy CPU for 1,000", "s", digits=3),
    "ms": Kind("time", "ms"),
    "s": Kind("time", "s", digits=2),
    "load_ms": Kind("loading", "ms", digits=0),
    "change_ms": Kind("change of one workload until it is in use", "ms"),
    "added_mb": Kind("memory added", "MB"),
    "peak_added_mb": Kind("memory added, peak while loading", "MB"),
    "mb": Kind("memory (PSS)", "MB"),
    "cpu_s": Kind("CPU", "s"),
    "cpu": Kind("CPU", "cores", digits=2),
    "peak_mb": Kind("memory (RSS), peak", "MB"),
    "peak_pss_mb": Kind("memory (PSS), peak", "MB"),
    "bytes_mb": Kind("received", "MB"),
    "p50_ms": Kind("p50", "ms"),
    "p99_ms": Kind("p99", "ms"),
    "max_ms": Kind("longest", "ms"),
    "max_answer_ms": Kind("longest answer of the API server", "ms"),
    "messages_each": Kind("messages for a change and subscriber", "", digits=3),
    "bytes_each_change": Kind("received for a change and subscriber", "bytes", digits=0),
    "bytes_each": Kind("memory of a connection, both sides", "bytes", digits=0),
}


def kind_of(metric: str) -> Kind:
    return KINDS[metric.rpartition(".")[2]]


def row_of(metric: str) -> str:
    return metric.rpartition(".")[0]


def written(metric: str, value: float) -> str:
    """A value as tables show it, without its unit."""
    return f"{value:,.{kind_of(metric).digits}f}"
