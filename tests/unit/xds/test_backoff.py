from __future__ import annotations

from nodeproxy.xds.backoff import FIRST_S, GOOD_S, MAX_S, Backoff


def test_doubles_to_its_limit_with_half_by_chance() -> None:
    backoff = Backoff(1)
    assert backoff.wait_s(0.0, 1.0) == FIRST_S
    assert backoff.wait_s(0.0, 0.0) == FIRST_S
    for _ in range(3000):
        assert FIRST_S <= backoff.wait_s(1.0, 0.5) <= MAX_S
    assert (backoff.wait_s(0.0, 0.0), backoff.wait_s(0.0, 1.0)) == (MAX_S / 2, MAX_S)


def test_only_a_stream_that_lived_begins_anew() -> None:
    backoff = Backoff(1)
    for _ in range(10):
        backoff.wait_s(1.0, 1.0)
    assert backoff.wait_s(GOOD_S - 1, 1.0) > 5
    assert backoff.wait_s(GOOD_S, 1.0) == FIRST_S


def test_all_addresses_are_tried_before_it_doubles() -> None:
    backoff = Backoff(3)
    waits = [backoff.wait_s(0.0, 1.0) for _ in range(7)]
    assert waits == [FIRST_S] * 3 + [FIRST_S * 2] * 3 + [FIRST_S * 4]
