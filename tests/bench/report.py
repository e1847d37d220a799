"""The record as Markdown: a table of all rows."""

from __future__ import annotations

from tests.bench.metrics import kind_of, row_of, written
from tests.bench.record import Record
from tests.bench.statistics import Summary


def table(record: Record) -> str:
    """Every metric: median and spread of each contestant, then its ratios."""
    names = list(record.contestants)
    lines = ["| | " + " | ".join(record.contestants[name]["title"] for name in names) + " |", "|---" * (len(names) + 1) + "|"]
    for metric in record.metrics():
        kind = kind_of(metric)
        title = f"{record.rows[row_of(metric)]}: {kind.title}, {kind.unit}"
        lines.append(f"| {title} | " + " | ".join(_cell(metric, record.summary(name, metric)) for name in names) + " |")
    return "\n".join(lines) + "\n"


def ratio_table(record: Record) -> str:
    """Ratios within rounds: to the same way without a mesh, and to Envoy."""
    pairs = [
        (name, base)
        for name, about in record.contestants.items()
        for base in dict.fromkeys((about["baseline"], "envoy"))
        if base != name
        and base in record.contestants
        and record.contestants[base]["baseline"] == about["baseline"]
        and about["baseline"] != name
    ]
    heads = [f"{name} / {base}" for name, base in pairs]
    lines = ["| ratio | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for metric in record.metrics():
        cells = [_ratio_cell(record.ratio(name, metric, base)) for name, base in pairs]
        if any(cells):
            lines.append(f"| {metric} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(metric: str, summary: Summary | None) -> str:
    if summary is None:
        return ""
    return f"{written(metric, summary.median)} [{written(metric, summary.low)}–{written(metric, summary.high)}]"


def _ratio_cell(summary: Summary | None) -> str:
    return "" if summary is None else f"{summary.median:.2f} [{summary.low:.2f}–{summary.high:.2f}]"
