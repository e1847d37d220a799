from __future__ import annotations

from nodeproxy.controller.bucket import Bucket


def test_a_burst_and_then_a_rate() -> None:
    now = [100.0]
    bucket = Bucket(2.0, 3.0, lambda: now[0])
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]
    assert bucket.wait_s() == 0.5
    now[0] += 0.5
    assert [bucket.take() for _ in range(2)] == [True, False]
    now[0] += 1000.0
    assert bucket.wait_s() == 0.0
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]
