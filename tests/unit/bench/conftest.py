from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.bench.record import Record

ABOUT = {
    "date": "2026-01-01",
    "commit": "abc",
    "kernel": "6.1",
    "cpu": "Some CPU",
    "cpus": 2,
    "python": "3.11.2",
    "envoy": "1.40",
}
ABOUT |= {"rounds": 5, "seconds": 3}


@pytest.fixture
def make() -> Callable[..., Record]:
    """A record of three contestants: `factor` × what nodeproxy once did."""

    def made(factor: float = 1.0) -> Record:
        record = Record(
            dict(ABOUT),
            {name: {"title": name.title(), "baseline": "direct"} for name in ("direct", "envoy", "nodeproxy")},
            {"bulk_1_up": "1 bulk stream", "memory_rest": "memory at rest"},
        )
        for number in range(5):
            noise = 1 + 0.01 * number
            for name, gbps in (("direct", 12.0), ("envoy", 4.0), ("nodeproxy", 4.0 * factor)):
                record.add(name, "bulk_1_up", number, {"gbps": gbps * noise})
            record.add("nodeproxy", "memory_rest", number, {"mb": 80 / factor * noise})
        return record

    return made
