"""Medians, spreads and ratios of samples that were taken in rounds.

A sample is None where a measurement failed.  Ratios are taken within a round, where both contestants met the same machine.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

Samples = Sequence[float | None]


@dataclass(frozen=True)
class Summary:
    """Median, lower and upper quartile, and how many samples they are of."""

    median: float
    low: float
    high: float
    count: int


def summary(samples: Samples) -> Summary | None:
    """None without a sample.  With fewer than four, quartiles say nothing: then low and high are the least and the greatest."""
    values = sorted(value for value in samples if value is not None)
    if not values:
        return None
    low, high = values[0], values[-1]
    if len(values) >= 4:
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return Summary(statistics.median(values), low, high, len(values))


def ratios(samples: Samples, base: Samples) -> list[float]:
    """Round by round, of those rounds in which both were measured."""
    return [value / other for value, other in zip(samples, base, strict=False) if value is not None and other]


def ratio(samples: Samples, base: Samples) -> Summary | None:
    """Summary of `ratios`."""
    return summary(ratios(samples, base))


def percentile(values: Sequence[float], part: float) -> float:
    """The least value that `part` per cent of the values are not above."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * part / 100) - 1)]
