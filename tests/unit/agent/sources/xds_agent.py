"""What an xDS source needs of an agent, over a real store, without pods and workers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

from nodeproxy.agent.remembered import Remembered
from nodeproxy.agent.sources.change import Change
from nodeproxy.agent.sources.xds import XdsSource
from nodeproxy.config import Address, Upstream
from nodeproxy.errors import NodeproxyError
from nodeproxy.identity.control_plane import ControlPlane
from nodeproxy.proto import discovery_pb2
from nodeproxy.state.store import Meta, StateWriter
from nodeproxy.state.view import View

_T = TypeVar("_T")
ABOUT = discovery_pb2.Node(id="ztunnel~127.0.0.1~p.ns~ns.svc.cluster.local")


class StoreAgent:
    def __init__(self, store: Path, source: str = "") -> None:
        self.state = StateWriter(store)
        self.remembered = Remembered(self.state)
        self.reader = self.state.reader()
        self.source = source
        self.settled = 0
        self.went_on = False
        self.refused: list[NodeproxyError] = []
        self.writes = 0

    @property
    def has_last_state(self) -> bool:
        return self.remembered.pods is not None

    async def go_on_with_last_state(self) -> None:
        self.went_on = True

    async def apply(self, change: Change) -> None:
        self.writes += 1
        await change.write(self.state, self.remembered.source(self.source, change.pods, time.time()))
        self.settled += change.pods is not None

    def view(self) -> View:
        return self.reader.view()

    async def keep(self, meta: Meta) -> None:
        self.state.put_meta(meta)

    async def reading(self, work: Callable[[StateWriter], _T]) -> _T:
        return await asyncio.to_thread(work, self.state)

    def refuse(self, error: NodeproxyError) -> None:
        self.refused.append(error)

    def close(self) -> None:
        self.reader.close()
        self.state.close()


def upstreams(*urls: str) -> tuple[Upstream, ...]:
    found = []
    for url in urls:
        scheme, _, where = url.partition("://")
        host, _, port = where.rpartition(":")
        found.append(Upstream(Address(host.strip("[]"), int(port)), tls=scheme == "https"))
    return tuple(found)


def control(*urls: str, root: Path = Path("/nonexistent"), token: Path | None = None) -> ControlPlane:
    return ControlPlane(upstreams(*urls), root=root, token=token, cluster_id="c1", start=0)


@contextlib.asynccontextmanager
async def following(store: Path, plane: ControlPlane, **more: Any) -> AsyncIterator[tuple[StoreAgent, XdsSource]]:
    """An agent that follows the control plane until the end of the block."""
    agent = StoreAgent(store)
    source = XdsSource(agent, plane, ABOUT, **more)
    agent.source = source.name
    task = asyncio.create_task(source.run())
    try:
        yield agent, source
        if task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        agent.close()


async def until(condition: Callable[[], Any], what: str, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        await asyncio.sleep(0.005)
