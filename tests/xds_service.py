"""The controller's delta xDS server alone, on loopback, in a thread: for tests of it and of its clients."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TypeVar

import grpc.aio
import msgspec
import uvloop
from prometheus_client import CollectorRegistry

from nodeproxy.controller.xds.ads import SERVER_OPTIONS, Ads, Metadata
from nodeproxy.controller.xds.metrics import XdsMetrics
from nodeproxy.controller.xds.publisher import Publisher
from nodeproxy.model.delta import Delta

_T = TypeVar("_T")


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Somebody(msgspec.Struct, frozen=True):
    """A caller."""

    node: str = ""
    pod_uid: str = ""
    proxy: bool = False


Authenticate = Callable[[Metadata, str], Awaitable[Somebody]]


async def node_of(caller: Somebody) -> str:
    return caller.node if caller.proxy else ""


async def anybody(metadata: Metadata, peer: str) -> Somebody:
    return Somebody()


class XdsServer:
    """Use it as a context manager.  options: gRPC's, over the controller's."""

    def __init__(
        self, authenticate: Authenticate = anybody, *, start: bool = True, options: dict[str, int] | None = None
    ) -> None:
        self.registry = CollectorRegistry()
        self.target = ""
        self.publisher: Publisher
        self.ads: Ads[Somebody]
        self._authenticate = authenticate
        self._start = start
        self._options = tuple((dict(SERVER_OPTIONS) | (options or {})).items())
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._ready = threading.Event()

    def __enter__(self) -> XdsServer:
        self._thread.start()
        assert self._ready.wait(20)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        assert not self._thread.is_alive()

    def call(self, function: Callable[[], _T]) -> _T:
        """Its result, run in the server's thread."""

        async def run() -> _T:
            return function()

        return self.wait(run())

    def wait(self, awaitable: Awaitable[_T], timeout_s: float = 60.0) -> _T:
        async def run() -> _T:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(timeout_s)

    def publish(self, delta: Delta) -> None:
        self.call(lambda: self.publisher.publish(delta))

    def metric(self, name: str, **labels: str) -> float:
        """nodeproxy_controller_xds_NAME."""
        return self.registry.get_sample_value(f"nodeproxy_controller_xds_{name}", labels) or 0.0

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()
            asyncio.set_event_loop(None)

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        self.publisher = Publisher(XdsMetrics(self.registry))
        if self._start:
            self.publisher.start()
        self.ads = Ads(self.publisher, self._authenticate, node_of)
        server = grpc.aio.server(options=self._options)
        server.add_generic_rpc_handlers((self.ads,))
        self.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        self._ready.set()
        await self._stop.wait()
        await server.stop(0)
        self.publisher.close()
