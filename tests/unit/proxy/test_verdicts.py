"""A remembered verdict is the verdict of the moment: it ends with the state that it was made from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeproxy.model.reason import Reason
from nodeproxy.model.workload import Workload
from nodeproxy.proxy import verdicts as module
from nodeproxy.proxy.verdicts import MAX_VERDICTS, Verdict, Verdicts
from nodeproxy.wire.baggage import encode_baggage
from tests.unit.proxy.conftest import Bench
from tests.unit.proxy.mesh_state import CLIENT, SERVER, WEB, State, deny
from tests.unit.state.builders import pod

STRANGER = pod("stranger", "10.9.9.9", service_account="stranger")


@pytest.fixture
def state(bench: Bench, tmp_path: Path) -> Iterator[State]:
    made = State(bench, tmp_path)
    yield made
    made.close()


def of(state: State, client: Workload = CLIENT) -> Verdicts:
    return Verdicts(state.context, "server", client.identity, (client.addresses[0], 4000), ("10.0.0.2", 15008))


def headers(authority: str, *more: tuple[bytes, bytes], method: bytes = b"CONNECT") -> tuple[tuple[bytes, bytes], ...]:
    return ((b":method", method), (b":authority", authority.encode()), *more)


def reason(verdict: Verdict) -> Reason | None:
    return verdict.refusal.reason if verdict.refusal else None


def test_the_second_request_has_the_verdict_of_the_first(state: State) -> None:
    verdicts = of(state)
    first = verdicts.get(headers("10.0.0.2:80", (b"forwarded", b'for="10.0.0.1:4001"'), (b"traceparent", b"1")))
    assert first.admission is not None
    assert first.admission.address == ("10.0.0.2", 80)
    assert (first.source.workload, first.source.identity) == (CLIENT, CLIENT.identity)
    assert verdicts.get(headers("10.0.0.2:80", (b"forwarded", b'for="10.0.0.1:4002"'), (b"traceparent", b"2"))) is first
    assert verdicts.get(headers("10.0.0.2:81")) is not first


def test_it_ends_with_the_state(bench: Bench, state: State) -> None:
    verdicts = of(state)
    assert reason(verdicts.get(headers("10.0.0.2:80"))) is None
    for _ in range(3):
        state.put(deny(80))
        bench.passes(1)
        assert reason(verdicts.get(headers("10.0.0.2:80"))) is Reason.POLICY_DENY
        assert reason(verdicts.get(headers("10.0.0.2:81"))) is None
        state.put()
        bench.passes(1)
        assert reason(verdicts.get(headers("10.0.0.2:80"))) is None
    state.put(workloads=(CLIENT,))
    bench.passes(1)
    assert reason(verdicts.get(headers("10.0.0.2:80"))) is Reason.UNKNOWN_WORKLOAD


def test_a_new_state_within_a_pass_holds_once_it_was_asked_for(bench: Bench, state: State) -> None:
    """As on StateChanged: what was accepted before is judged again, what comes after must not be judged by the state before."""
    verdicts = of(state)
    assert reason(verdicts.get(headers("10.0.0.2:80"))) is None
    state.put(deny(80))
    state.context.renewed_view()
    assert reason(verdicts.get(headers("10.0.0.2:80"))) is Reason.POLICY_DENY


def test_a_dry_run_is_told_each_time(state: State) -> None:
    state.put(deny(80, dry_run=True))
    verdicts = of(state)
    for _ in range(2):
        admission = verdicts.get(headers("10.0.0.2:80")).admission
        assert admission is not None
        assert [each.reason for each in admission.dry_run] == [Reason.POLICY_DENY]


def test_who_the_state_does_not_know_is_who_he_says(state: State) -> None:
    verdicts = of(state, STRANGER)
    baggage = (b"baggage", encode_baggage(STRANGER).encode())
    verdict = verdicts.get(headers("10.0.0.2:80", baggage))
    assert verdict.source.workload is not None
    assert (verdict.source.workload.name, verdict.source.workload.service_account) == ("stranger", "stranger")
    assert verdicts.get(headers("10.0.0.2:80")).source.workload is None


def test_the_service_that_the_client_meant_is_told_apart(state: State) -> None:
    verdicts = of(state)
    meant = verdicts.get(headers("10.0.0.2:8080", (b"forwarded", b"for=10.0.0.1;host=WEB.svc")))
    assert meant.admission is not None
    assert meant.admission.service == WEB
    assert verdicts.get(headers("10.0.0.2:8080", (b"forwarded", b"for=10.0.0.2;Host=web.svc"))) is meant
    assert verdicts.get(headers("10.0.0.2:8080", (b"forwarded", b"for=10.0.0.2;host=other.svc"))) is not meant


@pytest.mark.parametrize(
    ("request_headers", "expected"),
    [
        (headers("10.0.0.2:80", method=b"GET"), Reason.NOT_CONNECT),
        (headers("nowhere"), Reason.BAD_AUTHORITY),
        (headers("10.0.0.3:80"), Reason.AUTHORITY_MISMATCH),
        (headers("10.0.0.2:15008"), Reason.ILLEGAL_PORT),
    ],
)
def test_refusals_are_remembered_too(request_headers: tuple[tuple[bytes, bytes], ...], expected: Reason, state: State) -> None:
    verdicts = of(state)
    verdict = verdicts.get(request_headers)
    assert reason(verdict) is expected
    assert verdict.destination.workload == SERVER
    assert verdicts.get(request_headers) is verdict


def test_what_a_client_makes_us_remember_is_bounded(state: State) -> None:
    verdicts = of(state)
    for port in range(1, 1000):
        verdicts.get(headers(f"10.0.0.2:{port}"))
    assert len(verdicts._verdicts) <= MAX_VERDICTS
    verdicts._verdicts.clear()
    verdicts.get(headers("10.0.0.2:80", (b"baggage", b"x" * 2000)))
    assert verdicts._verdicts == {}


def test_a_defect_is_a_refusal_and_not_remembered(
    state: State, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: object, **named: object) -> None:
        raise RuntimeError("a defect")

    verdicts = of(state)
    with monkeypatch.context() as patched:
        patched.setattr(module, "admit_hbone", fail)
        assert reason(verdicts.get(headers("10.0.0.2:80"))) is Reason.INTERNAL
    assert "a defect" in caplog.text
    assert reason(verdicts.get(headers("10.0.0.2:80"))) is None
