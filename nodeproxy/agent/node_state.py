"""The state that a node goes by, and whose turn it is to change it.

Everything that writes to the store of a running agent does so here, one after the other: what the source says, what the agent
puts beside it, what an administrator said.  Invariants: nobody writes while the store is lent, to a thread or another process;
what is written is worked out when its turn has come, so that nothing which was told meanwhile is overridden; whoever goes by the
state is told after each change.  It must not know what is in it, nor who is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

from nodeproxy.agent.pods.provisional import Provisional
from nodeproxy.agent.remembered import Commands, Remembered
from nodeproxy.agent.sources.change import Change
from nodeproxy.observe.metrics import StateStatistics
from nodeproxy.state.changes import Touched
from nodeproxy.state.store import Meta, StateWriter
from nodeproxy.state.view import View

_T = TypeVar("_T")


class NodeState:
    """before_commit(touched): told before anybody can see a change; on_written(changed): after each turn, whether it has changed
    the state or not.
    """

    def __init__(
        self, path: Path, source: str, *, before_commit: Callable[[Touched], None], on_written: Callable[[bool], None]
    ) -> None:
        """source: its name, for people.  Raises StateError if another agent has the store, or it can't be used."""
        self.received = 0.0  # when the source last spoke, of what is whole
        self._source = source
        self.store = StateWriter(path, before_commit=before_commit)
        self.remembered = Remembered(self.store)
        self.provisional = Provisional(self.store, self.view)
        self._reader = self.store.reader()
        self._releasing = False
        self._on_written = on_written
        self._turn = asyncio.Lock()
        self._first_epoch = self.store.epoch

    @property
    def epoch(self) -> int:
        """The number of the last change."""
        return self.store.epoch

    @property
    def doubtful(self) -> bool:
        """Whether what was opened by what an agent before knew may not hold any more."""
        return bool(self.store.rebuilt) or self.store.epoch != self._first_epoch

    def view(self) -> View:
        """The state as it is now, until control goes back to the loop: a snapshot that is held keeps the store from shrinking."""
        if not self._releasing:
            self._releasing = True
            asyncio.get_running_loop().call_soon(self._release)
        return self._reader.view()

    def take_touched(self) -> Touched:
        """What has changed since this was asked last."""
        self.view()
        return self._reader.take_touched()

    async def apply(self, change: Change) -> None:
        """What the source says now.  Raises StateError."""
        received = time.time()
        await self.write(change, self.remembered.source(self._source, change.pods, received))
        if change.pods is not None or self.received:
            self.received = received

    async def write(self, change: Change, meta: Meta | None = None) -> None:
        """Make the change, with `meta` in its transaction.  Raises StateError."""
        async with self._changing():
            await change.write(self.store, meta or {})

    async def keep(self, meta: Meta) -> None:
        """Put this beside the state.  Raises StateError."""
        if meta:
            async with self._changing():
                self.store.put_meta(meta)

    async def keep_commands(self, commands: Commands) -> None:
        """An administrator spoke.  Raises StateError."""
        async with self._turn:
            self.remembered.keep_commands(commands)

    async def reading(self, work: Callable[[StateWriter], _T]) -> _T:
        """Do this in a thread, for what takes long; nobody writes meanwhile."""
        async with self._turn:
            return await asyncio.to_thread(work, self.store)

    def statistics(self) -> StateStatistics:
        """Source, age and size."""
        counts = self.view().counts()
        return StateStatistics(source=self._source, received=self.received, epoch=self.epoch, **counts)

    def close(self) -> None:
        """Let go of the store."""
        self.store.close()

    @contextlib.asynccontextmanager
    async def _changing(self) -> AsyncIterator[None]:
        before = self.store.epoch
        try:
            async with self._turn:
                yield
        finally:
            self._on_written(self.store.epoch != before)

    def _release(self) -> None:
        self._releasing = False
        self._reader.release()
