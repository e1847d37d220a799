from __future__ import annotations

import pytest

from tests.bench.statistics import Summary, percentile, ratio, ratios, summary


def test_few_samples_have_extremes_many_have_quartiles() -> None:
    assert summary([3.0, 1.0, 2.0]) == Summary(2.0, 1.0, 3.0, 3)
    assert summary([1.0, 2.0, 3.0, 4.0, 100.0]) == Summary(3.0, 2.0, 4.0, 5)


def test_failed_rounds_do_not_count() -> None:
    assert summary([None, 4.0]) == Summary(4.0, 4.0, 4.0, 1)
    assert summary([]) is None
    assert summary([None]) is None


def test_ratios_are_of_the_same_round() -> None:
    assert ratios([2.0, None, 9.0, 8.0], [1.0, 5.0, None, 4.0]) == [2.0, 2.0]
    assert ratios([1.0], [0.0]) == []


def test_a_slow_round_of_the_machine_does_not_show_in_a_ratio() -> None:
    ours, theirs = [10.0, 5.0, 10.0, 2.5], [20.0, 10.0, 20.0, 5.0]
    found = ratio(ours, theirs)
    assert found is not None
    assert (found.median, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))


def test_a_percentile_is_one_of_the_values() -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert [percentile(values, part) for part in (0, 50, 99, 100)] == [1.0, 50.0, 99.0, 100.0]
    assert percentile([7.0], 99) == 7.0
