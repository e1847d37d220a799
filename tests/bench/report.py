"""The record as Markdown: a table of all rows with medians and spreads, one of ratios, and the short one in the README."""

from __future__ import annotations

from pathlib import Path

from tests.bench.compare import REFERENCE, bases
from tests.bench.metrics import kind_of, row_of, written
from tests.bench.record import Record
from tests.bench.statistics import Summary

BEGIN, END = "<!-- bench:begin (./dev bench writes what is between) -->", "<!-- bench:end -->"
# What the README shows.
HEADLINES = (
    ("bulk_1_up.gbps", "1 bulk stream, Gb/s"),
    ("bulk_4_up.gbps", "4 bulk streams, Gb/s"),
    ("rtt_64.p50_us", "round trip of 64 bytes, p50, µs"),
    ("rtt_64.p99_us", "the same, p99, µs"),
    ("connections.per_s", "new connections a second"),
    ("keepalive.per_s", "requests a second over kept connections"),
    ("bulk_1_up.cpu_s_per_gb", "proxies' CPU for a GB, s"),
    ("connections.cpu_s_per_1000", "proxies' CPU for 1,000 connections, s"),
    ("memory_rest.mb", "memory at rest, both sides, MB"),
    ("memory_1000.bytes_each", "an idle connection, both sides, bytes"),
)


def document(record: Record) -> str:
    """The whole bench.md."""
    about = record.about
    lines = [
        "# Bench",
        "",
        f"Written by `./dev bench` on {about['date']}: commit {about['commit']}, {about['cpus']} × {about['cpu']},",
        f"Linux {about['kernel']}, Python {about['python']}, Envoy {about['envoy']}; {about['rounds']} rounds,",
        f"{about['seconds']} s a measurement. Load generators, both nodes and all proxies share these CPUs.",
        "Cells are medians, in brackets the quartiles (with fewer than four samples the extremes).",
        "",
        table(record),
        "## Ratios",
        "",
        "Within rounds, in which contestants run one after the other.  The way is the same: within a node, or between nodes.",
        "",
        ratio_table(record),
    ]
    if record.failures:
        lines += ["## Failed", "", *(f"- {failure.splitlines()[0]}" for failure in record.failures), ""]
    return "\n".join(lines)


def table(record: Record) -> str:
    """Every metric: median and spread of each contestant."""
    names = list(record.contestants)
    lines = ["| | " + " | ".join(record.contestants[name]["title"] for name in names) + " |", "|---" * (len(names) + 1) + "|"]
    for metric in record.metrics():
        kind = kind_of(metric)
        title = f"{record.rows[row_of(metric)]}: {kind.title}{kind.unit and ', ' + kind.unit}"
        lines.append(f"| {title} | " + " | ".join(_cell(metric, record.summary(name, metric)) for name in names) + " |")
    return "\n".join(lines) + "\n"


def ratio_table(record: Record) -> str:
    """Every ratio: to the same way without a mesh, and to Envoy."""
    pairs = [(name, base) for name in record.contestants for base in bases(record, name)]
    lines = ["| | " + " | ".join(f"{name} / {base}" for name, base in pairs) + " |", "|---" * (len(pairs) + 1) + "|"]
    for metric in record.metrics():
        cells = [_ratio_cell(record.ratio(name, metric, base)) for name, base in pairs]
        if any(cells):
            lines.append(f"| {record.rows[row_of(metric)]}: {kind_of(metric).title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def headline_table(record: Record) -> str:
    """The README's: medians, and in brackets the ratio to the same way without a mesh, or to Envoy where there is none."""
    names = list(record.contestants)
    lines = ["| | " + " | ".join(record.contestants[name]["title"] for name in names) + " |", "|---" * (len(names) + 1) + "|"]
    for metric, words in HEADLINES:
        if any(record.summary(name, metric) for name in names):
            lines.append(f"| {words} | " + " | ".join(_headline_cell(record, name, metric) for name in names) + " |")
    return "\n".join(lines) + "\n"


def _headline_cell(record: Record, name: str, metric: str) -> str:
    summary = record.summary(name, metric)
    if summary is None:
        return ""
    text = written(metric, summary.median)
    if name != REFERENCE and REFERENCE in bases(record, name) and (ratio := record.ratio(name, metric, REFERENCE)):
        return f"{text} ({ratio.median:.2f} × Envoy)"
    base = record.contestants[name]["baseline"]
    if name not in (base, REFERENCE) and (ratio := record.ratio(name, metric, base)):
        return f"{text} ({ratio.median:.2f} × direct)"
    return text


def put_between(readme: Path, begin: str, end: str, between: str) -> bool:
    """Put a text between its markers; whether they are there."""
    text = readme.read_text(encoding="utf-8")
    if begin not in text or end not in text:
        return False
    before, _, rest = text.partition(begin)
    readme.write_text(f"{before}{begin}\n{between}{end}{rest.partition(end)[2]}", encoding="utf-8")
    return True


def write_readme(readme: Path, record: Record) -> bool:
    """Put the table between its markers; whether they are there."""
    about = record.about
    where = f"{about['cpus']} × {about['cpu']}, Linux {about['kernel']}, shared by load generators, both nodes and all proxies"
    words = f"{where}; medians of {about['rounds']} rounds. [Everything that was measured](docs/bench/bench.md)"
    between = f"{headline_table(record)}\n{words}\n\n![The same as bars, with their spreads](docs/bench/bench.svg)\n"
    return put_between(readme, BEGIN, END, between)


def _cell(metric: str, summary: Summary | None) -> str:
    if summary is None:
        return ""
    if summary.count == 1:
        return written(metric, summary.median)
    return f"{written(metric, summary.median)} [{written(metric, summary.low)}–{written(metric, summary.high)}]"


def _ratio_cell(summary: Summary | None) -> str:
    if summary is None:
        return ""
    return f"{summary.median:.2f}" + (f" [{summary.low:.2f}–{summary.high:.2f}]" if summary.count > 1 else "")
