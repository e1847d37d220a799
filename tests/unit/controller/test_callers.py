"""Who is let in, who is not and by what name, and what is kept of the answers."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable
from typing import Any

import pytest

from nodeproxy.controller import callers as callers_module
from nodeproxy.controller.callers import KEEP_REFUSAL_S, KEEP_S, MAX_REVIEWS, Caller, Callers
from nodeproxy.errors import CallerError
from tests.unit.controller.fakes import Reviewer, review, token

NOW = 1_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def metadata(*tokens: str) -> list[tuple[str, str | bytes]]:
    return [("user-agent", "test"), *(("authorization", f"Bearer {token}") for token in tokens)]


def refused(callers: Callers, *tokens: str) -> CallerError:
    with pytest.raises(CallerError) as caught:
        asyncio.run(callers.authenticate(metadata(*tokens), "ipv4:10.0.0.1:99"))
    return caught.value


def test_a_pod_is_known_by_what_the_api_server_says() -> None:
    good = token(NOW + 600)
    callers = Callers(Reviewer({good: review()}), clock=Clock())
    caller = asyncio.run(callers.authenticate(metadata(good)))
    assert caller == Caller("nodeproxy-system", "nodeproxy", "agent", "u1", "n1")
    assert callers.statistics().results == {"authenticated": 1}


def test_an_api_server_that_does_not_tell_nodes() -> None:
    good = token(NOW + 600)
    callers = Callers(Reviewer({good: review(node="")}), clock=Clock())
    assert asyncio.run(callers.authenticate(metadata(good))).node == ""


REFUSALS: dict[str, tuple[str, dict[str, Any] | None]] = {
    "token_expired": (token(NOW - 1), None),
    "token_audience": (token(NOW + 600, aud=("https://kubernetes.default.svc",)), None),
    "token_rejected": (token(NOW + 600), None),
    "not_a_pod": (token(NOW + 600), review(pod="", uid="")),
}


@pytest.mark.parametrize("reason", REFUSALS)
def test_refused_by_name(reason: str, caplog: pytest.LogCaptureFixture) -> None:
    bad, status = REFUSALS[reason]
    callers = Callers(Reviewer({bad: status} if status else {}), clock=Clock())
    error = refused(callers, bad)
    assert (error.reason, error.code) == (reason, "UNAUTHENTICATED")
    assert callers.statistics().results == {reason: 1}
    assert reason in caplog.text
    assert "10.0.0.1:99" in caplog.text
    assert bad not in caplog.text + str(error)
    assert bad.split(".")[1] not in caplog.text + str(error)


def test_other_accepted_tokens_that_are_no_pods() -> None:
    for changes, reason in (
        ({"audiences": ["somebody-else"]}, "token_audience"),
        ({"audiences": []}, "token_audience"),
        ({"user": {"username": "system:node:n1"}}, "not_a_pod"),
        ({"user": {"username": "system:serviceaccount:only"}}, "not_a_pod"),
        ({"user": {"username": "admin", "extra": review()["user"]["extra"]}}, "not_a_pod"),
    ):
        good = token(NOW + 600)
        error = refused(Callers(Reviewer({good: review() | changes}), clock=Clock()), good)
        assert (error.reason, error.code) == (reason, "UNAUTHENTICATED")


@pytest.mark.parametrize(
    "text",
    ["x", "a.b", "a..c", "....", "a.!!.c", "a.YQ.c", "a.W10.c", "a." + "A" * 9000 + ".c", token(aud={"a": 1}), token("soon")],  # type: ignore[arg-type]
)
def test_what_is_no_token_never_reaches_the_api_server(text: str) -> None:
    api = Reviewer()
    assert refused(Callers(api), text).reason == "token_malformed"
    assert api.asked == []


def test_no_token_or_two() -> None:
    callers = Callers(Reviewer())
    assert refused(callers).reason == "no_token"
    assert refused(callers, token(), token()).reason == "no_token"
    for value in ("Basic abc", "Bearer", "Bearer  ", b"Bearer a.b.c", "Bearer \u00e4"):
        with pytest.raises(CallerError) as caught:
            asyncio.run(callers.authenticate([("authorization", value)]))
        assert caught.value.reason == "no_token"


def test_answers_are_kept_for_a_minute_and_not_beyond_the_tokens_end() -> None:
    long, short, bad = token(NOW + 600), token(NOW + 20), token(NOW + 600, signature="YmFk")
    api, clock = Reviewer({long: review(), short: review()}), Clock()
    callers = Callers(api, clock=clock)

    async def ask(text: str) -> int:
        before = len(api.asked)
        try:
            await callers.authenticate(metadata(text))
        except CallerError:
            pass
        return len(api.asked) - before

    assert [asyncio.run(ask(text)) for text in (long, long, short, short, bad, bad)] == [1, 0, 1, 0, 1, 0]
    clock.now = NOW + KEEP_REFUSAL_S
    assert [asyncio.run(ask(text)) for text in (long, short, bad)] == [0, 0, 1]
    clock.now = NOW + 20
    assert [asyncio.run(ask(text)) for text in (long, short)] == [0, 1]
    clock.now = NOW + KEEP_S
    assert asyncio.run(ask(long)) == 1
    clock.now = NOW  # set back: what is from the future is not known
    assert asyncio.run(ask(long)) == 1


def test_closed_while_the_api_server_is_away() -> None:
    known, new = token(NOW + 600), token(NOW + 600, signature="bmV3")
    api, clock = Reviewer({known: review(), new: review()}), Clock()
    callers = Callers(api, clock=clock)
    asyncio.run(callers.authenticate(metadata(known)))
    api.away = True
    asyncio.run(callers.authenticate(metadata(known)))
    for _ in range(2):  # and this answer is not kept
        error = refused(callers, new)
        assert (error.reason, error.code) == ("review_unavailable", "UNAVAILABLE")
    clock.now = NOW + KEEP_S
    assert refused(callers, known).code == "UNAVAILABLE"
    api.away = False
    asyncio.run(callers.authenticate(metadata(new)))
    api.raw = b"<html>"
    assert refused(callers, known).code == "UNAVAILABLE"


def test_many_callers_at_once_are_bounded_and_share_a_review(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = [token(NOW + 600, signature=f"s{number}") for number in range(3 * MAX_REVIEWS)]
    monkeypatch.setattr(callers_module, "MAX_WAITING", len(tokens))

    async def run() -> None:
        api = Reviewer(dict.fromkeys(tokens, review()))
        callers = Callers(api, clock=Clock())
        api.open.clear()
        asking = [asyncio.create_task(callers.authenticate(metadata(text))) for text in tokens + tokens]
        while api.under_way < MAX_REVIEWS:
            await asyncio.sleep(0)
        with pytest.raises(CallerError) as caught:
            await callers.authenticate(metadata(token(NOW + 600, signature="more")))
        assert caught.value.reason == "busy"
        asking[0].cancel()  # its review goes on for the other that waits
        api.open.set()
        results = await asyncio.gather(*asking, return_exceptions=True)
        assert sum(isinstance(result, Caller) for result in results) == len(asking) - 1
        assert api.most == MAX_REVIEWS
        assert len(api.asked) == len(tokens)

    asyncio.run(run())


def test_one_address_does_not_keep_the_others_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callers_module, "MAX_WAITING_OF_A_PEER", 2)

    async def run() -> None:
        good = token(NOW + 600)
        api = Reviewer({good: review()})
        callers = Callers(api, clock=Clock())
        api.open.clear()
        forged = [metadata(token(NOW + 600, signature=f"s{number}")) for number in range(3)]
        hostile = [asyncio.create_task(callers.authenticate(it, f"ipv4:10.0.0.66:{port}")) for port, it in enumerate(forged)]
        honest = asyncio.create_task(callers.authenticate(metadata(good), "ipv4:10.0.0.1:1"))
        while api.under_way < 3:
            await asyncio.sleep(0)
        api.open.set()
        assert await honest
        reasons = [exc.reason for exc in await asyncio.gather(*hostile, return_exceptions=True) if isinstance(exc, CallerError)]
        assert reasons == ["token_rejected", "token_rejected", "busy"]
        assert not callers._peers

    asyncio.run(run())


def test_close_ends_what_waits() -> None:
    async def run() -> None:
        api = Reviewer()
        callers = Callers(api)
        api.open.clear()
        asking = asyncio.create_task(callers.authenticate(metadata(token())))
        while not api.under_way:
            await asyncio.sleep(0)
        await callers.close()
        with pytest.raises(CallerError) as caught:
            await asking
        assert caught.value.code == "UNAVAILABLE"

    asyncio.run(run())


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callers_module, "MAX_KEPT", 3)
    callers = Callers(Reviewer(), clock=Clock())
    for number in range(6):
        refused(callers, token(NOW + 600, signature=f"s{number}"))
    assert callers.statistics().kept == 3


def test_no_token_is_left_in_memory() -> None:
    """Neither in the cache nor in the frames of a refusal that it holds."""
    good, bad = token(NOW + 600, mark="keep-me-not-1"), token(NOW + 600, mark="keep-me-not-2")
    callers = Callers(Reviewer({good: review()}), clock=Clock())
    asyncio.run(callers.authenticate(metadata(good)))
    refused(callers, bad)
    gc.collect()
    seen: set[int] = set()

    def walk(item: Any) -> None:
        if id(item) in seen or isinstance(item, type | Callable | logging.Logger):  # type: ignore[arg-type]
            return
        seen.add(id(item))
        assert item not in (good, bad) if isinstance(item, str) else True
        for other in gc.get_referents(item):
            walk(other)

    walk(callers._kept)
    assert len(seen) > 10


def test_a_flood_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    callers = Callers(Reviewer())
    for _ in range(300):
        refused(callers)
    assert len(caplog.records) < 100
    assert callers.statistics().results == {"no_token": 300}
