"""The record as a picture: a panel for each headline number, a bar for each contestant, its spread as a line on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display is needed or opened
from matplotlib import pyplot

from tests.bench.metrics import kind_of
from tests.bench.record import Record

# metric, title; as many as fill rows of `_COLUMNS`.
PANELS = (
    ("bulk_1_up.gbps", "1 bulk stream"),
    ("bulk_4_up.gbps", "4 bulk streams"),
    ("rtt_64.p50_us", "round trip, 64 bytes, p50"),
    ("rtt_64.p99_us", "round trip, 64 bytes, p99"),
    ("connections.per_s", "new connections"),
    ("keepalive.per_s", "requests, kept connections"),
    ("bulk_1_up.cpu_s_per_gb", "proxy CPU for a GB"),
    ("connections.cpu_s_per_1000", "proxy CPU, 1,000 connections"),
    ("memory_1000.bytes_each", "an idle connection, both sides"),
)
_COLUMNS = 3
_COLOURS = {"direct": "#9aa0a6", "envoy": "#c58af9", "istiod": "#c58af9", "nodeproxy": "#1a73e8"}
_OTHER = "#e37400"
# So that the same record gives the same file.
_SALT = "nodeproxy bench"


def draw(record: Record, folder: Path, stem: str = "bench", panels: Sequence[tuple[str, str]] = PANELS) -> None:
    """Write STEM.svg and STEM.png."""
    panels = [(metric, title) for metric, title in panels if any(record.summary(name, metric) for name in record.contestants)]
    if not panels:
        return
    matplotlib.rcParams.update({"svg.hashsalt": _SALT, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    rows = -(-len(panels) // _COLUMNS)
    figure, axes = pyplot.subplots(rows, _COLUMNS, figsize=(12, 2.5 * rows), squeeze=False, layout="constrained")
    flat = list(axes.flat)
    for axis, (metric, title) in zip(flat, panels, strict=False):
        _panel(axis, record, metric, title)
    for axis in flat[len(panels) :]:
        axis.set_visible(False)
    for name in (f"{stem}.svg", f"{stem}.png"):
        metadata = {"Date": None} if name.endswith("svg") else None
        figure.savefig(folder / name, dpi=110, metadata=metadata, facecolor="white")
    pyplot.close(figure)


def _panel(axis: matplotlib.axes.Axes, record: Record, metric: str, title: str) -> None:
    found = {name: summary for name in record.contestants if (summary := record.summary(name, metric)) is not None}
    kind = kind_of(metric)
    for place, (name, summary) in enumerate(found.items()):
        around = [[summary.median - summary.low], [summary.high - summary.median]]
        axis.barh(place, summary.median, color=_COLOURS.get(name.partition("-")[0], _OTHER))
        axis.errorbar(summary.median, place, xerr=around, color="#202124", capsize=2, linewidth=1)
        axis.annotate(f" {summary.median:,.{kind.digits}f}", (max(summary.high, summary.median), place), va="center", fontsize=8)
    axis.set_yticks(range(len(found)), [record.contestants[name]["title"] for name in found], fontsize=8)
    axis.invert_yaxis()
    axis.margins(x=0.18)
    axis.set_title(f"{title}, {kind.unit}\n({'more' if kind.higher_is_better else 'less'} is better)", fontsize=9, loc="left")
