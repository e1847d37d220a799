"""Requests to an API server, over TLS on loopback: what becomes of each, and whose token and roots it goes by."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web

from nodeproxy.agent.pods import event_api as module
from nodeproxy.agent.pods.event_api import EventApi, Outcome
from nodeproxy.settings import Address
from tests.xds_server import Root

pytestmark = pytest.mark.unit

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def serve(folder: Path, handler: Handler, body: Callable[[EventApi, Path], Awaitable[None]]) -> None:
    """A server, and a client with an account's directory."""
    account = folder / "account"
    account.mkdir()
    (account / "token").write_text("first\n")
    root = Root()
    (account / "ca.crt").write_bytes(root.pem)
    for name, content in zip(("key", "certificate"), root.server("127.0.0.1"), strict=True):
        (folder / name).write_bytes(content)

    async def run() -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(folder / "certificate", folder / "key")
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", handler)
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        api = EventApi(Address("127.0.0.1", runner.addresses[0][1]), account)
        try:
            await body(api, account)
        finally:
            await api.close()
            await runner.cleanup()

    asyncio.run(asyncio.wait_for(run(), 20.0))


def test_events_are_created_and_changed_with_the_token_that_the_file_holds_now(tmp_path: Path) -> None:
    seen: list[tuple[str, str, str, object]] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append((request.method, request.path, request.headers["Authorization"], await request.json()))
        assert request.content_type == ("application/json" if request.method == "POST" else "application/merge-patch+json")
        return web.json_response({}, status=201)

    async def body(api: EventApi, account: Path) -> None:
        assert (await api.create("shop", {"a": 1})).outcome is Outcome.DONE
        (account / "token").write_text("second\n")
        assert (await api.change("shop", "web.1", {"count": 2})).outcome is Outcome.DONE

    serve(tmp_path, handler, body)
    assert seen == [
        ("POST", "/apis/events.k8s.io/v1/namespaces/shop/events", "Bearer first", {"a": 1}),
        ("PATCH", "/apis/events.k8s.io/v1/namespaces/shop/events/web.1", "Bearer second", {"count": 2}),
    ]


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, Outcome.DONE),
        (302, Outcome.REFUSED),
        (401, Outcome.LATER),
        (403, Outcome.LATER),
        (404, Outcome.GONE),
        (409, Outcome.REFUSED),
        (422, Outcome.REFUSED),
        (429, Outcome.LATER),
        (500, Outcome.LATER),
        (503, Outcome.LATER),
    ],
)
def test_what_an_answer_means(status: int, outcome: Outcome) -> None:
    answer = module._judge(status, "7", b'{"kind":"Status","message":"why"}')
    assert answer.outcome is outcome
    assert answer.retry_after_s == (7.0 if outcome is Outcome.LATER else 0.0)
    advice = f"; {module._NEEDS}" if status in (401, 403) else ""
    assert answer.why == ("" if outcome is Outcome.DONE else f"{status}: why{advice}")


@pytest.mark.parametrize("text", [b"", b"<html>", b"\xff\xfe", b"[1]"])
def test_an_answer_that_is_no_status_is_told_as_it_is(text: bytes) -> None:
    assert module._judge(500, "Wed, 21 Oct", text) == module.Answer(Outcome.LATER, f"500: {text!r}")


def test_whoever_does_not_answer_or_is_another_is_asked_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REQUEST_S", 0.05)
    waiting = asyncio.Event()

    async def handler(request: web.Request) -> web.Response:
        if (await request.json()) == "wait":
            await waiting.wait()
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async def body(api: EventApi, account: Path) -> None:
        for event in ("wait", "cut"):
            assert (await api.create("shop", event)).outcome is Outcome.LATER  # type: ignore[arg-type]
        waiting.set()
        (account / "ca.crt").write_bytes(Root().pem)
        answer = await api.create("shop", {})
        assert (answer.outcome, "certificate" in answer.why.lower()) == (Outcome.LATER, True)
        (account / "ca.crt").unlink()
        assert (await api.create("shop", {})).outcome is Outcome.LATER
        (account / "token").write_text("no\nheader\n")
        assert (await api.create("shop", {})).outcome is Outcome.LATER
        (account / "token").unlink()
        assert (await api.create("shop", {})).outcome is Outcome.LATER

    serve(tmp_path, handler, body)
