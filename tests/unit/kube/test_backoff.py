from __future__ import annotations

from nodeproxy.kube.backoff import Backoff


def test_waits_double_up_to_the_cap_and_begin_anew() -> None:
    backoff = Backoff(lambda: 1.0, first_s=1, cap_s=5)
    assert [backoff.next_s() for _ in range(4)] == [1, 2, 4, 5]
    backoff.reset()
    assert backoff.next_s() == 1


def test_jitter_is_up_to_half() -> None:
    assert Backoff(lambda: 0.0, first_s=1).next_s() == 0.5


def test_what_the_server_asks_for_is_the_least_and_bounded() -> None:
    assert Backoff(lambda: 0.5, first_s=1).next_s(7) == 7.5
    assert Backoff(lambda: 0.0, first_s=1).next_s(1e9) == 60
