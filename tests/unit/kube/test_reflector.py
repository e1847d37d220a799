from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from nodeproxy.kube import client as client_module
from nodeproxy.kube.client import KubeClient
from nodeproxy.kube.reflector import DEFINITIONS, Reflector
from nodeproxy.kube.statistics import Trouble
from tests.unit.kube.playing_server import PATH, PlayingServer, body, event, page, says, stream, thing

FIRST_WAIT_S = 0.004


class Spec(msgspec.Struct):
    n: int = 0


class Thing(msgspec.Struct):
    spec: Spec


class Followed:
    """A reflector at work, and what it told: key and number, None for gone."""

    def __init__(self, server: PlayingServer, client: KubeClient, **more: Any) -> None:
        self.server = server
        self.told: list[tuple[str, int | None]] = []
        self.synced = 0
        self.reflector = Reflector(
            client,
            more.pop("paths", [PATH]),
            Thing,
            on_change=lambda key, resource: self.told.append((key, None if resource is None else resource.spec.n)),
            on_synced=self._on_synced,
            lists=asyncio.Semaphore(1),
            randomly=lambda: 0.0,
            first_wait_s=FIRST_WAIT_S,
            absent_poll_s=0.02,
            **more,
        )

    def _on_synced(self) -> None:
        self.synced += 1

    @property
    def troubles(self) -> dict[str, int]:
        return dict(self.reflector.statistics.troubles)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.002)

    async def until_told(self, *told: tuple[str, int | None]) -> None:
        try:
            await self.until(lambda: len(self.told) >= len(told))
        except TimeoutError:
            pass
        assert self.told == list(told)


def play(
    folder: Path, test: Callable[[Followed], Awaitable[None]], *scripts: Callable[[PlayingServer], None], **more: Any
) -> None:
    server = PlayingServer(folder)
    for script in scripts:
        script(server)

    async def main() -> None:
        async with server.serving():
            client = await KubeClient.connect(server.kubeconfig)
            followed = Followed(server, client, **more)
            task = asyncio.create_task(followed.reflector.run())
            try:
                await test(followed)
            finally:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
                await client.close()

    asyncio.run(main())


def script(lists: list[Any], watches: list[Any] | None = None) -> Callable[[PlayingServer], None]:
    def apply(server: PlayingServer) -> None:
        server.lists += lists
        server.watches += watches or []

    return apply


def test_pages_then_a_watch_from_their_version(tmp_path: Path) -> None:
    async def test(followed: Followed) -> None:
        await followed.until_told(("a/x", 1), ("b", 2), ("a/y", 3), ("b", 4), ("a/x", None))
        assert followed.synced == 1
        first, second = followed.server.queries(watch=False)
        assert first == {"limit": "500"}
        assert second == {"limit": "500", "continue": "more"}
        (watch,) = followed.server.queries(watch=True)
        assert watch["resourceVersion"] == "10"
        assert watch["allowWatchBookmarks"] == "true"
        assert int(watch["timeoutSeconds"]) >= 300
        assert followed.reflector.statistics.objects == 2

    events = [
        event("ADDED", thing("a/y", 11, n=3)),
        event("MODIFIED", thing("b", 12, n=4)),
        event("DELETED", thing("a/x", 13)),
    ]
    play(
        tmp_path,
        test,
        script([page(10, thing("a/x", 1, n=1), more="more"), page(10, thing("b", 2, n=2))], [stream(*events)]),
    )


def test_a_query_narrows_lists_and_watches(tmp_path: Path) -> None:
    async def test(followed: Followed) -> None:
        await followed.until_told(("a", 1), ("b", 1))
        for query in (*followed.server.queries(watch=False), *followed.server.queries(watch=True)):
            assert query["fieldSelector"] == "metadata.name=a"

    play(
        tmp_path,
        test,
        script([page(10, thing("a", 1, n=1))], [stream(event("ADDED", thing("b", 11, n=1)))]),
        query={"fieldSelector": "metadata.name=a"},
    )


def test_a_watch_goes_on_from_the_last_event_or_bookmark(tmp_path: Path) -> None:
    async def test(followed: Followed) -> None:
        await followed.until_told(("a", 1), ("b", 1))
        watches = followed.server.queries(watch=True)
        assert [query["resourceVersion"] for query in watches] == ["10", "11", "20"]
        assert len(followed.server.queries(watch=False)) == 1
        assert not followed.troubles

    play(
        tmp_path,
        test,
        script(
            [page(10)],
            [
                stream(event("ADDED", thing("a", 11, n=1)), then="end"),
                stream(event("BOOKMARK", {"metadata": {"resourceVersion": "20"}}), then="end"),
                stream(event("ADDED", thing("a", 11, n=1)), event("ADDED", thing("b", 21, n=1))),
            ],
        ),
    )


GONE_EVENT = event("ERROR", {"kind": "Status", "code": 410, "message": "too old resource version"})


@pytest.mark.parametrize("gone", [says(410), stream(GONE_EVENT)], ids=["status", "event"])
def test_gone_lists_again_and_tells_the_difference(tmp_path: Path, gone: Any) -> None:
    async def test(followed: Followed) -> None:
        await followed.until_told(("same", 1), ("changed", 1), ("gone", 1), ("changed", 2), ("new", 1), ("gone", None))
        await followed.until(lambda: len(followed.server.queries(watch=True)) == 2)
        assert followed.server.queries(watch=True)[1]["resourceVersion"] == "20"
        assert followed.troubles == {Trouble.GONE: 1}
        assert followed.synced == 1

    before = page(10, thing("same", 1, n=1), thing("changed", 2, n=1), thing("gone", 3, n=1))
    after = page(20, thing("same", 1, n=1), thing("changed", 12, n=2), thing("new", 13, n=1))
    play(tmp_path, test, script([before, after], [gone, stream()]))


def test_a_page_that_is_gone_begins_the_list_anew(tmp_path: Path) -> None:
    async def test(followed: Followed) -> None:
        await followed.until_told(("a", 1), ("b", 1), ("a", None))
        queries = followed.server.queries(watch=False)
        assert [query.get("continue", "") for query in queries] == ["", "x", "", "y"]
        assert followed.troubles == {Trouble.GONE: 1}

    pages = [page(10, thing("a", 1, n=1), more="x"), says(410), page(20, more="y"), page(20, thing("b", 11, n=1))]
    play(tmp_path, test, script(pages, [stream()]))


def test_a_server_that_is_throttled_or_broken_is_asked_again(tmp_path: Path) -> None:
    async def test(followed: Followed) -> None:
        await followed.until_told(("a", 1), ("b", 1))
        assert followed.troubles == {Trouble.THROTTLED: 2, Trouble.FAILED: 2, Trouble.DENIED: 1}
        assert len(followed.server.queries(watch=False)) == 4
        assert [query["resourceVersion"] for query in followed.server.queries(watch=True)] == ["10", "10", "10"]

    lists = [says(500), says(429, **{"Retry-After": "0"}), says(403), page(10, thing("a", 1, n=1))]
    watches = [says(429), says(503), stream(event("ADDED", thing("b", 11, n=1)))]
    play(tmp_path, test, script(lists, watches))


def test_a_cut_connection_loses_nothing(tmp_path: Path) -> None:
    async def test(followed: Followed) -> None:
        await followed.until_told(("a", 1), ("b", 1))
        assert [query["resourceVersion"] for query in followed.server.queries(watch=True)] == ["10", "11"]
        assert sum(followed.troubles.values()) == 1

    half = event("ADDED", thing("b", 12, n=1))[:-20]
    watches = [stream(event("ADDED", thing("a", 11, n=1)), half, then="cut"), stream(event("ADDED", thing("b", 12, n=1)))]
    play(tmp_path, test, script([page(10)], watches))


@pytest.mark.parametrize(
    "garbage",
    [
        b"<html>\n",
        b"{}\n",
        b'{"type":"ADDED","object":{"metadata":{}}}\n',
        event("SUNG", {}),
        event("BOOKMARK", 7),
        b"\xff\xff\n",
    ],
)
def test_garbage_is_repeated_from_before_it_and_then_led_past(tmp_path: Path, garbage: bytes) -> None:
    async def test(followed: Followed) -> None:
        await followed.until_told(("a", 1), ("b", 1), ("c", 1))
        assert [query["resourceVersion"] for query in followed.server.queries(watch=True)] == ["10", "11", "30"]
        assert followed.troubles == {Trouble.GARBAGE: 2}

    watches = [
        stream(event("ADDED", thing("a", 11, n=1)), garbage),
        stream(garbage),
        stream(event("ADDED", thing("c", 31, n=1))),
    ]
    play(tmp_path, test, script([page(10), page(30, thing("a", 11, n=1), thing("b", 12, n=1))], watches))


@pytest.mark.parametrize("garbage", [b"", b"null", b"[", b'{"metadata":{"resourceVersion":"1"},"items":7}', b"{" * 5000])
def test_a_list_of_garbage_changes_nothing(tmp_path: Path, garbage: bytes) -> None:
    async def test(followed: Followed) -> None:
        await followed.until_told(("a", 1), ("b", 1))
        assert followed.troubles == {Trouble.GONE: 1, Trouble.GARBAGE: 1}

    lists = [page(10, thing("a", 1, n=1)), body(garbage), page(20, thing("a", 1, n=1), thing("b", 12, n=1))]
    play(tmp_path, test, script(lists, [says(410), stream()]))


def test_an_object_that_can_not_be_read_keeps_what_was_known_and_stops_nothing(tmp_path: Path) -> None:
    async def test(followed: Followed) -> None:
        await followed.until_told(("a", 1), ("b", 1), ("c", 1), ("a", 2), ("b", None))
        assert followed.reflector.statistics.unusable == 3
        assert not followed.troubles

    events = [
        event("MODIFIED", thing("a", 11, n="not a number")),
        event("ADDED", thing("bad", 12, n=[])),
        event("ADDED", thing("c", 13, n=1)),
        event("MODIFIED", thing("a", 14, n=2)),
        event("DELETED", thing("b", 15, n="as broken as it goes")),
    ]
    first = page(10, thing("a", 1, n=1), thing("worse", 2, n={}), thing("b", 3, n=1))
    play(tmp_path, test, script([first], [stream(*events)]))


def test_a_list_with_an_object_that_has_no_name_takes_none_for_gone(tmp_path: Path) -> None:
    async def test(followed: Followed) -> None:
        await followed.until_told(("a", 1), ("b", 1), ("c", 1))
        await followed.until(lambda: len(followed.server.queries(watch=True)) == 2)
        assert followed.reflector.statistics.unusable == 1

    lists = [page(10, thing("a", 1, n=1), thing("b", 2, n=1)), page(20, {"metadata": {"name": 7}}, thing("c", 12, n=1))]
    play(tmp_path, test, script(lists, [says(410), stream()]))


def test_pages_that_are_too_large_are_halved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "MAX_ANSWER_BYTES", 1000)

    async def test(followed: Followed) -> None:
        await followed.until_told(("a", 1))
        assert [query["limit"] for query in followed.server.queries(watch=False)] == ["500", "250", "125"]

    large = body(b"x" * 1001)
    play(tmp_path, test, script([large, large, page(10, thing("a", 1, n=1))], [stream()]))


def test_watches_that_end_at_once_are_not_repeated_at_once(tmp_path: Path) -> None:
    async def test(followed: Followed) -> None:
        await followed.until(lambda: len(followed.server.queries(watch=True)) == 4)
        assert followed.troubles == {Trouble.UNREACHED: 3}

    play(tmp_path, test, script([page(10)], [stream(then="end")] * 3 + [stream()]))


def test_a_definition_is_found_when_it_comes_and_its_objects_go_with_it(tmp_path: Path) -> None:
    definition = "things.example.org"

    async def test(followed: Followed) -> None:
        server = followed.server
        await followed.until(lambda: followed.synced == 1)
        assert not followed.reflector.statistics.present
        server.lists.append(page(10, thing("a", 1, n=1)))
        server.watches.append(stream(event("ADDED", thing("b", 11, n=1)), then="end"))
        del server.others[PATH]
        await followed.until_told(("a", 1), ("b", 1))
        assert followed.reflector.statistics.present
        server.watches.append(says(404))
        server.others[PATH] = says(404)
        await followed.until(lambda: len(followed.told) == 4)
        assert sorted(followed.told[2:]) == [("a", None), ("b", None)]
        assert followed.synced == 1

    def absent(server: PlayingServer) -> None:
        server.others[PATH] = says(404)

    play(tmp_path, test, absent, definition=definition)


def test_a_resource_is_not_gone_while_its_definition_is_there(tmp_path: Path) -> None:
    definition = "things.example.org"

    async def test(followed: Followed) -> None:
        await followed.until_told(("a", 1), ("b", 1))
        assert followed.troubles == {Trouble.REFUSED: 2}

    def defined(server: PlayingServer) -> None:
        server.others[DEFINITIONS + definition] = body(b"{}")

    lists = [page(10, thing("a", 1, n=1)), says(404), page(20, thing("a", 1, n=1), thing("b", 12, n=1))]
    play(tmp_path, test, defined, script(lists, [says(404), stream()]), definition=definition)


def test_another_version_is_read_where_the_best_is_not_served(tmp_path: Path) -> None:
    async def test(followed: Followed) -> None:
        await followed.until_told(("a", 1))
        assert followed.server.asked[0][1] == "/api/v2/things"
        assert followed.server.asked[-1][1] == PATH

    def no_v2(server: PlayingServer) -> None:
        server.others["/api/v2/things"] = says(404)

    play(tmp_path, test, no_v2, script([page(10, thing("a", 1, n=1))], [stream()]), paths=["/api/v2/things", PATH])


def test_what_every_cluster_has_can_not_be_absent(tmp_path: Path) -> None:
    async def test(followed: Followed) -> None:
        await followed.until(lambda: followed.troubles == {Trouble.REFUSED: 2})
        assert not followed.synced

    play(tmp_path, test, script([says(404), says(404), wait_forever]))


async def wait_forever(request: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError
