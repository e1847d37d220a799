from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from nodeproxy.controller.leader import Leader
from nodeproxy.controller.metrics import ControllerCollector, ControllerParts
from nodeproxy.controller.placement import PodPlacement
from nodeproxy.controller.status import StatusWriter
from nodeproxy.controller.watches import Watches
from nodeproxy.kube.client import KubeClient
from nodeproxy.model.delta import Delta
from nodeproxy.translate.objects import KINDS, Resource
from nodeproxy.translate.settings import MeshSettings
from nodeproxy.translate.translator import Translator
from tests.unit.controller.stored import Stored
from tests.unit.kube.playing_server import PlayingServer, Script, event, page, says, stream

PODS, NAMESPACES = "/api/v1/pods", "/api/v1/namespaces"


class Output:
    def __init__(self) -> None:
        self.deltas: list[Delta] = []
        self.started_after = -1

    def publish(self, delta: Delta) -> None:
        self.deltas.append(delta)

    def start(self) -> None:
        self.started_after = len(self.deltas)

    @property
    def workloads(self) -> list[str]:
        return [workload.name for delta in self.deltas for workload in delta.workloads]


class Clumsy(Translator):
    """Fails on what is called "bad"."""

    def apply(self, kind: str, key: str, resource: Resource | None) -> None:
        if key.endswith("/bad"):
            raise RuntimeError("a mistake")
        super().apply(kind, key, resource)


def pod(name: str, version: int, ip: str = "10.0.0.1") -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "shop", "uid": name, "resourceVersion": str(version)},
        "spec": {"nodeName": "n1", "serviceAccountName": "a"},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]},
    }


class Collection:
    """One collection of the playing server: first the list, then the watch."""

    def __init__(self, listed: Script, watched: Script | None = None) -> None:
        self.listed, self.watched = listed, watched or stream()

    async def __call__(self, request: Any) -> Any:
        return await (self.watched if "watch" in request.query else self.listed)(request)


class World:
    def __init__(self, server: PlayingServer, watches: Watches, output: Output, placement: PodPlacement) -> None:
        self.server, self.watches, self.output, self.placement = server, watches, output, placement

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.002)


def play(folder: Path, paths: dict[str, Any], test: Callable[[World], Awaitable[None]]) -> None:
    server = PlayingServer(folder)
    server.others |= paths

    async def main() -> None:
        async with server.serving():
            client = await KubeClient.connect(server.kubeconfig)
            output, placement = Output(), PodPlacement()
            watches = Watches(
                client,
                Clumsy(MeshSettings()),
                output,
                observers={"Pod": [placement.apply]},
                synced={"Pod": placement.all_told},
                kinds={kind: KINDS[kind] for kind in ("Pod", "Namespace", "AuthorizationPolicy")},
            )
            task = asyncio.create_task(watches.run())
            try:
                await test(World(server, watches, output, placement))
            finally:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
                await client.close()

    asyncio.run(main())


def test_nothing_is_published_before_every_kind_is_known(tmp_path: Path) -> None:
    late = asyncio.Event()

    async def late_list(request: Any) -> Any:
        await late.wait()
        return await page(1)(request)

    async def test(world: World) -> None:
        # The policies are not defined, which is known as well.
        await world.until(lambda: world.placement.synced() and world.watches.unsynced() == ["Namespace"])
        assert world.output.started_after < 0
        assert not world.output.deltas
        late.set()
        await world.until(lambda: world.output.started_after >= 0)
        assert world.output.started_after == len(world.output.deltas) == 1
        assert world.output.workloads == ["p"]
        assert world.placement.runs_on("n1", "shop", "a")

    play(tmp_path, {PODS: Collection(page(1, pod("p", 1))), NAMESPACES: Collection(late_list)}, test)


def test_a_change_is_published_and_what_the_translation_fails_on_stays_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    go_on = asyncio.Event()

    async def watch(request: Any) -> Any:
        await go_on.wait()
        return await stream(event("ADDED", pod("bad", 2)), event("ADDED", pod("q", 3, "10.0.0.2")))(request)

    async def test(world: World) -> None:
        await world.until(lambda: world.output.started_after >= 0)
        go_on.set()
        await world.until(lambda: world.output.workloads == ["p", "q"])
        assert world.watches.failures == {"Pod": 1}
        assert "Pod shop/bad: the translation failed on it; please report this" in caplog.text
        assert world.placement.node_of("shop", "bad", "bad") == "n1"  # where it runs is known all the same
        assert world.output.started_after == 1

    play(tmp_path, {PODS: Collection(page(1, pod("p", 1)), watch), NAMESPACES: Collection(page(1))}, test)


def test_metrics_and_paths(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        await world.until(lambda: world.output.started_after >= 0)
        await world.until(lambda: world.watches.statistics()["Pod"].troubles)
        status = StatusWriter(Stored(), list, world.watches.path)
        leader = Leader(Stored(), "home", "me")
        await leader.try_once()
        registry = CollectorRegistry()
        registry.register(ControllerCollector(ControllerParts(world.watches, leader, world.placement, status)))

        def value(name: str, **labels: str) -> float | None:
            return registry.get_sample_value(f"nodeproxy_controller_{name}", labels)

        assert value("started") == value("leader") == value("leader_terms_total") == value("placed_pods") == 1
        assert value("watch_synced", kind="AuthorizationPolicy") == 1
        assert value("watch_present", kind="AuthorizationPolicy") == 0
        assert value("watch_objects", kind="Pod") == value("watch_lists_total", kind="Pod") == 1
        assert (value("watch_troubles_total", kind="Pod", trouble="throttled") or 0) >= 1
        assert value("watch_troubles_total", kind="Pod", trouble="garbage") == 0
        assert value("translation_failures_total", kind="Pod") == 0
        assert 0 <= (value("watch_silence_seconds", kind="Pod") or 0) < 60
        assert world.watches.path("Pod", "shop/p") == "/api/v1/namespaces/shop/pods/p"
        assert world.watches.path("Namespace", "shop") == "/api/v1/namespaces/shop"

    play(tmp_path, {PODS: Collection(page(1, pod("p", 1)), says(429)), NAMESPACES: Collection(page(1))}, test)
