"""Whose turn it is to write, over a real store."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from nodeproxy.agent.node_state import NodeState
from nodeproxy.agent.sources.xds_apply import XdsChange
from nodeproxy.model.delta import Delta
from nodeproxy.model.workload import Workload

BARE = Workload(uid="K//Pod/ns/a", name="a", namespace="ns")
TOLD = Workload(uid=BARE.uid, name="a", namespace="ns", addresses=("10.0.0.1",), service_account="told")


@asynccontextmanager
async def lent(path: Path, on_written: Callable[[bool], None] = lambda changed: None) -> AsyncIterator[NodeState]:
    """Whoever writes within waits until the end of it."""
    state = NodeState(path, "test", before_commit=lambda touched: None, on_written=on_written)
    over = threading.Event()
    reading = asyncio.create_task(state.reading(lambda store: over.wait(30)))
    await asyncio.sleep(0)
    try:
        yield state
    finally:
        over.set()
        await reading


def test_what_is_told_while_a_provisional_workload_waits_for_its_turn_stays(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with lent(tmp_path / "s") as state:
            told = asyncio.create_task(state.apply(XdsChange(Delta(workloads=(TOLD,)), {}, provisional=state.provisional)))
            await asyncio.sleep(0)
            standing = asyncio.create_task(state.write(state.provisional.admit(BARE, ("10.0.0.2",))))
            await asyncio.sleep(0)
            assert state.view().workload(BARE.uid) is None  # as both are
        await asyncio.gather(told, standing)
        assert state.view().workload(BARE.uid) == TOLD
        assert not state.provisional.uids
        state.close()

    asyncio.run(scenario())


def test_what_is_told_while_a_provisional_workload_is_to_go_stays(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with lent(tmp_path / "s") as state:
            standing = asyncio.create_task(state.write(state.provisional.admit(BARE, ("10.0.0.2",))))
            await asyncio.sleep(0)
            told = asyncio.create_task(state.apply(XdsChange(Delta(workloads=(TOLD,)), {}, provisional=state.provisional)))
            await asyncio.sleep(0)
            going = asyncio.create_task(state.write(state.provisional.take_back([BARE.uid])))
            await asyncio.sleep(0)
        await asyncio.gather(standing, told, going)
        assert state.view().workload(BARE.uid) == TOLD
        state.close()

    asyncio.run(scenario())


def test_whoever_goes_by_the_state_is_told_after_each_turn(tmp_path: Path) -> None:
    async def scenario() -> None:
        written: list[bool] = []
        async with lent(tmp_path / "s", written.append) as state:
            state.view()
        await state.keep({})
        assert written == []
        await state.keep({"a": b"1"})
        assert (written, state.received) == ([False], 0.0)
        await state.apply(XdsChange(Delta(workloads=(TOLD,)), {}, pods=()))
        assert written == [False, True]
        assert state.received == state.statistics().received > 0
        assert state.take_touched().workloads == {TOLD.uid}
        state.close()

    asyncio.run(scenario())
