"""What got worse since the record that is kept.

Absolute numbers are the machine's, so ratios are compared: to the same way without a mesh, or to Envoy; numbers without either
(memory, the agent's own rows) as they are.  Worse is what lies beyond both spreads, by more than `MARGIN`.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.bench.metrics import kind_of
from tests.bench.record import Record
from tests.bench.statistics import Summary

# Medians of quiet runs of one build differ by up to this.
MARGIN = 0.05
REFERENCE = "envoy"


@dataclass(frozen=True)
class Change:
    """A ratio then and now; base "" if it is no ratio but the number itself."""

    contestant: str
    metric: str
    base: str
    then: Summary
    now: Summary

    @property
    def is_worse(self) -> bool:
        return _beyond(self.then, self.now) if kind_of(self.metric).higher_is_better else _beyond(self.now, self.then)

    @property
    def is_better(self) -> bool:
        return _beyond(self.now, self.then) if kind_of(self.metric).higher_is_better else _beyond(self.then, self.now)

    def __str__(self) -> str:
        of = f"{self.contestant} / {self.base}" if self.base else self.contestant
        return (
            f"{self.metric}, {of}: {self.then.median:.3g} [{self.then.low:.3g}–{self.then.high:.3g}] → "
            f"{self.now.median:.3g} [{self.now.low:.3g}–{self.now.high:.3g}]"
        )


def _beyond(greater: Summary, less: Summary) -> bool:
    return greater.low > less.high and greater.median > less.median * (1 + MARGIN)


def bases(record: Record, contestant: str) -> list[str]:
    """Whom a contestant is measured against: the same way without a mesh, and Envoy if its way is the same."""
    about = record.contestants
    baseline = about[contestant]["baseline"]
    if baseline == contestant:
        return []
    candidates = [baseline] if contestant == REFERENCE else [baseline, REFERENCE]
    return [base for base in candidates if base in about and about[base]["baseline"] == baseline]


def changes(then: Record, now: Record) -> list[Change]:
    """Everything of nodeproxy that both records have."""
    found = []
    for contestant in now.contestants:
        if contestant not in then.contestants or contestant == REFERENCE:
            continue
        for metric in now.metrics():
            compared = False
            for base in bases(now, contestant):
                old = then.ratio(contestant, metric, base) if base in then.contestants else None
                new = now.ratio(contestant, metric, base)
                if old and new:
                    found.append(Change(contestant, metric, base, old, new))
                    compared = True
            old, new = then.summary(contestant, metric), now.summary(contestant, metric)
            if old and new and not compared and bases(now, contestant):
                found.append(Change(contestant, metric, "", old, new))
    return found


def told(then: Record, now: Record) -> str:
    """In words, worst news first."""
    all_changes = changes(then, now)
    worse = [str(change) for change in all_changes if change.is_worse]
    better = [str(change) for change in all_changes if change.is_better]
    lines = [f"Compared with the record of {then.about['date']} ({then.about['commit']}): {len(all_changes)} numbers."]
    for title, rows in (("Worse by more than the noise", worse), ("Better by more than the noise", better)):
        lines.append(f"{title}: {len(rows) or 'none'}")
        lines += [f"  {row}" for row in rows]
    return "\n".join(lines) + "\n"
