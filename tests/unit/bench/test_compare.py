from __future__ import annotations

from collections.abc import Callable

from tests.bench.compare import bases, changes, told
from tests.bench.record import Record


def test_whom_a_contestant_is_measured_against(make: Callable[..., Record]) -> None:
    record = make()
    assert [bases(record, name) for name in record.contestants] == [[], ["direct"], ["direct", "envoy"]]


def test_the_same_again_is_neither_worse_nor_better(make: Callable[..., Record]) -> None:
    found = changes(make(), make())
    assert [(each.metric, each.base) for each in found] == [
        ("bulk_1_up.gbps", "direct"),
        ("bulk_1_up.gbps", "envoy"),
        ("memory_rest.mb", ""),
    ]
    assert not any(each.is_worse or each.is_better for each in found)


def test_less_throughput_and_more_memory_are_worse(make: Callable[..., Record]) -> None:
    found = changes(make(), make(0.8))
    assert all(each.is_worse and not each.is_better for each in found)
    assert all(each.is_better and not each.is_worse for each in changes(make(0.8), make()))


def test_what_is_within_the_margin_is_noise(make: Callable[..., Record]) -> None:
    assert not any(each.is_worse for each in changes(make(), make(0.97)))


def test_what_the_machine_does_to_all_is_no_news(make: Callable[..., Record]) -> None:
    slow = make()
    for name in slow.contestants:
        slow.samples[name]["bulk_1_up.gbps"] = [each / 2 for each in slow.of(name, "bulk_1_up.gbps") if each]
    assert not any(each.is_worse for each in changes(make(), slow))


def test_it_is_told_in_words(make: Callable[..., Record]) -> None:
    text = told(make(), make(0.8))
    assert "Worse by more than the noise: 3\n" in text
    assert "bulk_1_up.gbps, nodeproxy / envoy: 1 [1–1] → 0.8 [0.8–0.8]" in text
    assert "Better by more than the noise: none" in text
