from __future__ import annotations

import pytest

from tests.bench.__main__ import arguments
from tests.bench.control_plane.objects import Size
from tests.bench.control_plane.run import plan_of, size_of


def test_the_cluster_is_a_large_one_unless_it_is_asked_otherwise() -> None:
    asked = arguments(["--control-plane"])
    assert size_of(asked) == Size(1000, 100_000, 10_000)
    assert plan_of(asked, size_of(asked)).clients == 50
    assert size_of(arguments(["--control-plane", "--quick", "--pods", "6000"])).pods == 6000


@pytest.mark.parametrize("words", [["--pods", "50", "--services", "60"], ["--pods", "3000000"]])
def test_a_cluster_that_makes_no_sense_is_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit, match="at least a pod a service"):
        size_of(arguments(words))


@pytest.mark.parametrize("words", [["--nodes", "40"], ["--pods", "2000", "--services", "100"]])
def test_a_cluster_is_large_enough_for_what_is_done_with_it(words: list[str]) -> None:
    asked = arguments(words)
    with pytest.raises(SystemExit, match="too few"):
        plan_of(asked, size_of(asked))
