"""The roots in every namespace that needs them: written once, repaired, never by who does not lead."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from nodeproxy.controller import root_publisher
from nodeproxy.controller.root_publisher import BURST, CALM_S, KEY, RootConfigMap, RootPublisher
from nodeproxy.errors import ClusterError

NAME = root_publisher.DEFAULT_NAME


class World:
    """Namespaces' ConfigMaps behind an API server that refuses some, and a publisher of them."""

    def __init__(self) -> None:
        self.now = 0.0
        self.maps: dict[str, str] = {}
        self.refused: dict[str, ClusterError] = {}
        self.writes: list[str] = []
        self.roots: bytes | None = b"root 1"
        self.publisher = RootPublisher(self, lambda: self.roots, clock=lambda: self.now)

    async def request(
        self, method: str, path: str, *, query: Any = None, body: bytes | None = None, content_type: str = "", **_: Any
    ) -> bytes:
        assert (method, content_type) == ("PATCH", "application/apply-patch+yaml")
        assert query == {"fieldManager": "nodeproxy-controller", "force": "true"}
        namespace = path.split("/")[4]
        assert path == f"/api/v1/namespaces/{namespace}/configmaps/{NAME}"
        self.writes.append(namespace)
        if namespace in self.refused:
            raise self.refused[namespace]
        self.maps[namespace] = json.loads(body or b"")["data"][KEY]
        return b"{}"

    def publish(self, after_s: float = 0.0) -> list[str]:
        """What is written if time has passed."""
        self.now += after_s
        self.writes.clear()
        asyncio.run(self.publisher.publish())
        return self.writes

    def see(self, namespace: str, content: str | None) -> None:
        found = None if content is None else RootConfigMap({KEY: content, "other": "left alone"})
        self.publisher.observe(f"{namespace}/{NAME}", found)


def test_written_where_it_is_needed_and_differs() -> None:
    world = World()
    world.see("has-it", "root 1")
    world.see("has-another", "root 0")
    world.see("needs-none", "root 0")
    world.publisher.observe("has-it/another-name", RootConfigMap({KEY: "nothing of ours"}))
    for namespace in ("has-it", "has-another", "new"):
        world.publisher.need(namespace, True)
    assert world.publisher.statistics().stale == 2
    assert world.publish() == ["has-another", "new"]
    assert world.publish(10.0) == []
    world.publisher.need("new", False)
    world.see("new", None)
    assert world.publish(10.0) == []
    world.roots = b"root 2"
    world.publisher.changed()
    assert world.publish() == ["has-another", "has-it"]
    assert world.publisher.statistics().stale == 0
    assert world.publisher.query() == {"fieldSelector": f"metadata.name={NAME}"}


def test_repaired_after_an_edit_and_a_deletion() -> None:
    world = World()
    world.publisher.need("a", True)
    assert world.publish() == ["a"]
    for content in ("mine", "", None):
        world.see("a", content)
        assert world.publish(CALM_S * 10) == ["a"]
    world.publisher.observe(f"a/{NAME}", RootConfigMap(None))
    assert world.publish(CALM_S * 10) == ["a"]


def test_who_writes_without_end_is_answered_ever_less(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.publisher.need("a", True)
    writes = 0
    for _ in range(360):
        writes += len(world.publish(10.0))
        world.see("a", "theirs")
    assert writes < 25
    assert "who else writes" in caplog.text


def test_a_namespace_that_is_refused_does_not_hold_up_the_others(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.refused["a"] = ClusterError("is being terminated", 403)
    world.publisher.need("a", True)
    world.publisher.need("b", True)
    assert world.publish() == ["a", "b"]
    assert world.publish() == []
    attempts = sum(len(world.publish(1.0)) for _ in range(600))
    assert 5 < attempts < 12
    assert len(caplog.records) == 1
    assert world.publisher.statistics().writes == {"written": 1, "failed": 1 + attempts}
    assert world.publisher.statistics().stale == 1
    world.refused.clear()
    assert world.publish(300.0) == ["a"]
    world.refused["c"] = ClusterError("slow down", 429, 120.0)
    world.publisher.need("c", True)
    assert world.publish() == ["c"]
    assert world.publish(119.0) == []


def test_at_a_bounded_rate() -> None:
    async def run() -> None:
        world = World()
        for number in range(int(BURST) + 3):
            world.publisher.need(f"n{number}", True)
        publishing = asyncio.create_task(world.publisher.publish())
        while len(world.writes) < BURST:
            await asyncio.sleep(0)
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(world.writes) == BURST
        world.now += 1.0
        await publishing
        assert len(world.writes) == BURST + 3

    asyncio.run(run())


def test_only_the_leader_and_only_when_all_is_seen() -> None:
    async def run() -> None:
        world, leads = World(), [False]
        world.publisher.need("a", True)
        running = asyncio.create_task(world.publisher.run(lambda: leads[0]))

        async def settle() -> None:
            for _ in range(10):
                await asyncio.sleep(0)

        leads[0] = True
        await settle()
        assert world.writes == []  # not all is seen
        leads[0] = False
        world.publisher.observed_all()
        await settle()
        assert world.writes == []
        leads[0] = True
        world.publisher.need("b", True)
        await settle()
        assert world.writes == ["a", "b"]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(run())


def test_it_ends_when_it_is_told_to_whatever_comes_at_that_moment() -> None:
    async def run() -> None:
        world = World()
        world.publisher.observed_all()
        running = asyncio.create_task(world.publisher.run(lambda: True))
        for _ in range(10):
            await asyncio.sleep(0)
        world.publisher.need("a", True)
        running.cancel()
        async with asyncio.timeout(5):
            await asyncio.gather(running, return_exceptions=True)
        assert running.cancelled()

    asyncio.run(run())


def test_nothing_without_roots_and_nothing_after_the_lead_is_lost() -> None:
    world = World()
    world.publisher.need("a", True)
    world.roots = None
    assert world.publish() == []
    assert world.publisher.statistics().stale == 1
    world.roots = b"root 1"
    asyncio.run(world.publisher.publish(lambda: False))
    assert world.writes == []


def test_a_deletion_that_is_seen_before_the_answer_to_a_write_is_not_forgotten() -> None:
    world = World()
    world.publisher.need("shop", True)
    answered = world.request

    async def deleted_meanwhile(*arguments: Any, **options: Any) -> bytes:
        content = await answered(*arguments, **options)
        world.see("shop", "root 1")
        world.see("shop", None)
        return content

    world.request = deleted_meanwhile  # type: ignore[method-assign]
    assert world.publish() == ["shop"]
    world.request = answered  # type: ignore[method-assign]
    assert world.publish(after_s=CALM_S) == ["shop"]
