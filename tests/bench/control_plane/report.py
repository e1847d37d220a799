"""The record of control planes as Markdown, and the short table in the README."""

from __future__ import annotations

from pathlib import Path

from tests.bench.metrics import written
from tests.bench.record import Record
from tests.bench.report import put_between, ratio_table, table

BEGIN = "<!-- control-plane:begin (./dev bench --control-plane writes what is between) -->"
END = "<!-- control-plane:end -->"
REFERENCE = "istiod"
# What the README shows; words may name a number of `about`.
HEADLINES = (
    ("start.s", "from its start until it is ready, s"),
    ("push_1.s", "first full push to 1 subscriber, s"),
    ("push_all.s", "the same to {clients} at once, s"),
    ("change.p50_ms", "a pod's change until each of {clients} subscribers has it, p50, ms"),
    ("change.p99_ms", "the same, p99, ms"),
    ("rate.cpu", "CPU at {rate} changes a second, cores"),
    ("rate.p99_ms", "a change at that rate until each of them has it, p99, ms"),
    ("subscribed.mb", "memory (PSS) with {clients} subscribers, MB"),
    ("push_all.peak_mb", "memory (RSS) at most, while {clients} get their first push, MB"),
    ("agent.s", "a node agent, from its start until it has the whole state, s"),
    ("agent.mb", "a node agent's memory (PSS) then, MB"),
    ("agent_on_demand.mb", "the same with --xds-on-demand, MB"),
)
_PICTURE = "![The same as bars](docs/bench/control-plane.svg)"
_HOW = """Subscribers are streams of delta xDS for everything, each with a token of its own, and acknowledge what they
get.  A change is of a label of a pod; it counts from the sending of the request to the API server, so its write and its watch
are within.  API server, etcd, subscribers and control plane share these CPUs.  Control planes run one after the other."""
PANELS = (
    ("start.s", "start until ready"),
    ("push_all.s", "first push to all"),
    ("subscribed.mb", "memory, subscribed"),
    ("change.p50_ms", "a change until all have it"),
    ("rate.p50_ms", "the same at the rate"),
    ("rate.cpu", "CPU at the rate"),
)


def document(record: Record) -> str:
    """The whole control-plane.md."""
    about = record.about
    lines = [
        "# Bench of the control plane",
        "",
        f"Written by `./dev bench --control-plane` on {about['date']}: commit {about['commit']},",
        f"{about['cpus']} × {about['cpu']}, Linux {about['kernel']}, Python {about['python']}.",
        "",
        f"{_cluster(record)} in a real kube-apiserver, there after {about['write_s']:,.0f} s.  The API server made one pod and",
        "one service; the others were put into its etcd in the form of those.",
        _HOW,
        "",
        table(record),
    ]
    if len(record.contestants) > 1:
        lines += ["## Ratios", "", ratio_table(record)]
    if record.failures:
        lines += ["## Failed", "", *(f"- {failure.splitlines()[0]}" for failure in record.failures), ""]
    return "\n".join(lines)


def headline_table(record: Record) -> str:
    """The README's: medians, and in brackets the ratio to istiod."""
    names = sorted(record.contestants, key=REFERENCE.__eq__)  # ours first
    lines = ["| | " + " | ".join(record.contestants[name]["title"] for name in names) + " |", "|---" * (len(names) + 1) + "|"]
    for metric, words in HEADLINES:
        if any(record.summary(name, metric) for name in names):
            cells = [_cell(record, name, metric) for name in names]
            lines.append(f"| {words.format(**record.about)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write_readme(readme: Path, record: Record) -> bool:
    """Put the table between its markers; whether they are there."""
    about = record.about
    where = f"{_cluster(record)} on {about['cpus']} × {about['cpu']}, shared with the API server, etcd and the subscribers"
    words = f"{where}; {about['date'][:10]}. [Everything that was measured](docs/bench/control-plane.md)"
    return put_between(readme, BEGIN, END, f"{headline_table(record)}\n{words}\n\n{_PICTURE}\n")


def _cluster(record: Record) -> str:
    about = record.about
    return f"{about['nodes']:,} nodes, {about['pods']:,} pods and {about['services']:,} services"


def _cell(record: Record, name: str, metric: str) -> str:
    summary = record.summary(name, metric)
    if summary is None:
        return ""
    text = written(metric, summary.median)
    if name != REFERENCE and (ratio := record.ratio(name, metric, REFERENCE)):
        return f"{text} ({ratio.median:.2f} × {REFERENCE})"
    return text
