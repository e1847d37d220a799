from __future__ import annotations

import pytest

from nodeproxy.identity.certificate import IssuedCertificate
from nodeproxy.identity.schedule import MAX_BACKOFF_S, MAX_REQUESTS, MAX_WHY_CHARACTERS, Priority, Schedule

A, B = "spiffe://td/ns/a/sa/a", "spiffe://td/ns/b/sa/b"
DAY = 86_400.0


def issued(identity: str, begin: float, end: float) -> IssuedCertificate:
    return IssuedCertificate(identity=identity, chain_pem=b"", key_pem=b"", not_before=begin, not_after=end, serial="1")


def test_one_request_for_all_pods_of_an_identity() -> None:
    schedule = Schedule()
    schedule.want(A, "pod-1", Priority.WARM_UP, 0.0)
    assert schedule.start(0.0) == [A]
    schedule.want(A, "pod-2", Priority.REAL_TIME, 0.0)
    assert schedule.start(0.0) == []


def test_at_most_eight_at_once_and_each_end_lets_one_in() -> None:
    schedule = Schedule()
    for number in range(20):
        schedule.want(f"id-{number:02}", "pod", Priority.WARM_UP, float(number))
    first = schedule.start(100.0)
    assert first == [f"id-{number:02}" for number in range(MAX_REQUESTS)]
    assert schedule.start(100.0) == []
    assert schedule.next_due(100.0) is None
    schedule.succeeded(first[0], issued(first[0], 0.0, DAY), 100.0)
    assert schedule.start(100.0) == ["id-08"]


def test_order_is_by_priority_then_by_age() -> None:
    schedule = Schedule()
    for index in range(MAX_REQUESTS):
        schedule.want(f"busy-{index}", "pod", Priority.WARM_UP, 0.0)
    schedule.start(0.0)
    schedule.want("late", "pod", Priority.WARM_UP, 3.0)
    schedule.want("early", "pod", Priority.WARM_UP, 2.0)
    schedule.want("background", "pod", Priority.BACKGROUND, 1.0)
    schedule.want("hastened", "pod", Priority.BACKGROUND, 4.0)
    assert schedule.hasten("hastened", Priority.REAL_TIME, 4.0)
    for index in range(4):
        schedule.succeeded(f"busy-{index}", issued(f"busy-{index}", 0.0, DAY), 5.0)
    assert schedule.start(5.0) == ["hastened", "early", "late", "background"]


def test_renewal_at_half_life_in_the_background() -> None:
    schedule = Schedule()
    schedule.want(A, "pod", Priority.REAL_TIME, 0.0)
    schedule.start(0.0)
    schedule.succeeded(A, issued(A, -120.0, DAY), 0.0)
    assert schedule.next_due(0.0) == DAY / 2
    assert schedule.start(DAY / 2 - 1) == []
    schedule.want(B, "pod", Priority.WARM_UP, DAY / 2)
    assert schedule.start(DAY / 2) == [B, A]
    certificate = schedule.certificate(A, DAY / 2)
    assert certificate is not None  # while it is renewed


def test_a_life_shorter_than_the_clock_skew_is_not_renewed_in_a_loop() -> None:
    schedule = Schedule()
    schedule.want(A, "pod", Priority.WARM_UP, 0.0)
    schedule.start(0.0)
    schedule.succeeded(A, issued(A, -120.0, 10.0), 0.0)
    assert schedule.next_due(0.0) == 5.0
    schedule.start(5.0)
    schedule.succeeded(A, issued(A, -115.0, 5.1), 5.0)  # its root ends
    assert schedule.next_due(5.0) == 1.0


def test_back_off_doubles_to_its_cap_and_is_cut_by_chance() -> None:
    schedule = Schedule()
    schedule.want(A, "pod", Priority.WARM_UP, 0.0)
    waits = []
    now = 0.0
    for _ in range(12):
        assert schedule.start(now) == [A]
        schedule.failed(A, "no", now, 0.0)
        wait = schedule.next_due(now)
        assert wait is not None
        waits.append(wait)
        now += wait
    assert waits[:4] == pytest.approx([0.5, 1.0, 2.0, 4.0])
    assert waits[-1] == pytest.approx(MAX_BACKOFF_S)
    for _ in range(2000):  # days of outage: no overflow
        schedule.start(now)
        schedule.failed(A, "no", now, 1.0)
        wait = schedule.next_due(now)
        assert wait == pytest.approx(MAX_BACKOFF_S * 0.8)
        now += MAX_BACKOFF_S


def test_back_off_is_of_one_identity() -> None:
    schedule = Schedule()
    schedule.want(A, "pod", Priority.WARM_UP, 0.0)
    schedule.start(0.0)
    schedule.failed(A, "no", 0.0, 0.0)
    schedule.want(B, "pod", Priority.WARM_UP, 0.0)
    assert schedule.start(0.0) == [B]


def test_a_valid_certificate_is_kept_while_renewal_fails_and_the_alarm_rises_at_half_of_what_remains() -> None:
    schedule = Schedule()
    schedule.want(A, "pod", Priority.WARM_UP, 0.0)
    schedule.start(0.0)
    schedule.succeeded(A, issued(A, 0.0, 100.0), 0.0)
    schedule.start(50.0)
    schedule.failed(A, "the CA is away" + "!" * 10_000, 50.0, 0.0)
    assert schedule.certificate(A, 60.0) is not None
    (row,) = schedule.statistics(74.0)
    assert (row.failing_since, row.failures, row.alarm, row.valid_until, row.renewing, row.pods) == (
        50.0,
        1,
        False,
        100.0,
        False,
        1,
    )
    assert row.why.startswith("the CA is away")
    assert len(row.why) == MAX_WHY_CHARACTERS
    assert schedule.statistics(75.0)[0].alarm
    assert schedule.certificate(A, 100.0) is None  # expired
    schedule.start(76.0)
    schedule.succeeded(A, issued(A, 76.0, 176.0), 76.0)
    (row,) = schedule.statistics(76.0)
    assert (row.failing_since, row.failures, row.alarm, row.why) == (0.0, 0, False, "")


def test_an_identity_that_never_had_one_alarms_at_its_first_failure() -> None:
    schedule = Schedule()
    schedule.want(A, "pod", Priority.WARM_UP, 10.0)
    schedule.start(10.0)
    assert schedule.statistics(10.0)[0].renewing
    schedule.failed(A, "no", 10.0, 0.0)
    assert schedule.statistics(10.0)[0].alarm


def test_dropped_with_the_last_pod_only() -> None:
    schedule = Schedule()
    for pod in ("one", "two", "two"):
        schedule.want(A, pod, Priority.WARM_UP, 0.0)
    schedule.start(0.0)
    schedule.succeeded(A, issued(A, 0.0, 100.0), 0.0)
    assert not schedule.unwant(A, "one")
    assert not schedule.unwant(A, "one")
    assert schedule.certificate(A, 1.0) is not None
    assert schedule.unwant(A, "two")
    assert not schedule.unwant(A, "two")
    assert schedule.certificate(A, 1.0) is None
    assert schedule.statistics(1.0) == ()
    assert schedule.next_due(1.0) is None


def test_a_request_outlives_its_wish() -> None:
    schedule = Schedule()
    schedule.want(A, "pod", Priority.WARM_UP, 0.0)
    schedule.start(0.0)
    schedule.unwant(A, "pod")
    schedule.want(A, "another", Priority.WARM_UP, 1.0)
    assert schedule.start(1.0) == []  # never twice at once
    assert schedule.succeeded(A, issued(A, 0.0, 100.0), 2.0)
    schedule.unwant(A, "another")
    assert not schedule.succeeded(A, issued(A, 0.0, 100.0), 3.0)
    schedule.failed(A, "late", 3.0, 0.0)
    assert not schedule.hasten(A, Priority.REAL_TIME, 3.0)
