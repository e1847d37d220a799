"""An agent's own `check`."""

from __future__ import annotations

from nodeproxy.agent.checks import Checks
from nodeproxy.model.requirement import Requirement


def test_a_look_is_kept_for_seconds_whoever_asks() -> None:
    now, looks = [100.0], []

    def look() -> list[Requirement]:
        looks.append(now[0])
        return [Requirement("x", True, f"{len(looks)}")]

    checks = Checks(look, lambda: now[0])
    assert [checks.rows()[0].found for _ in range(1000)] == ["1"] * 1000
    now[0] += 5
    assert checks.rows()[0].found == "2"


def test_it_looks_at_this_machine() -> None:
    assert {"BCC", "IPv6"} <= {row.name for row in Checks().rows()}
