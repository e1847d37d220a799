from __future__ import annotations

import pytest

from tests.bench.__main__ import arguments, choose
from tests.bench.agent_rows import AGENT, services, workloads
from tests.bench.rows import MEMORY, TRAFFIC


def test_names_of_rows_are_unique() -> None:
    names = [row.name for row in (*TRAFFIC, *MEMORY, *AGENT)]
    assert len(names) == len(set(names))


def test_only_takes_the_beginning_of_a_name_also_of_what_quick_leaves_out() -> None:
    assert [row.name for row in choose(TRAFFIC, ["rtt_4k", "cold"], True)] == ["rtt_4k", "rtt_4k_loaded", "cold"]


def test_quick_leaves_out_what_takes_long() -> None:
    quick = {row.name for row in choose([*MEMORY], None, True)}
    assert "memory_1000" in quick
    assert "memory_10000" not in quick


def test_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    asked = arguments([])
    assert (asked.quick, asked.only, asked.out, asked.workers) == (False, None, None, 2)
    with pytest.raises(SystemExit):
        arguments(["--help"])
    assert "rtt_64_loaded" in capsys.readouterr().out


def test_workloads_have_addresses_of_their_own() -> None:
    many, vips = workloads(20_000), services(2_000)
    assert len({each["workloadIps"][0] for each in many} | {each["vips"][0] for each in vips}) == 22_000
    assert {key for each in many for key in each["services"]} == {f"many/{each['hostname']}" for each in vips}
