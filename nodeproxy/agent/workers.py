"""The worker processes as the agent sees them: made through the zygote, told things, asked things, replaced when they die.

Invariant: `slot` names a worker's place (its listeners, its counters); a replacement takes the place of the one that died, and
gets from `on_ready` all that a worker must know before it gets anything else.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from nodeproxy.agent.outbox import Outbox
from nodeproxy.model.channel import Channel
from nodeproxy.model.connection import Connection
from nodeproxy.model.messages import (
    LISTENERS_LINGER_S,
    Connections,
    ConnectionsWanted,
    Drain,
    Exited,
    Fork,
    Forked,
    FromWorker,
    NamesUsed,
    NamesWanted,
    PodReleased,
    Ready,
    Report,
    ReportWanted,
    WorkerSettings,
    ZygoteReply,
)
from nodeproxy.observe.counters import Totals

log = logging.getLogger(__name__)

# A worker that dies at once, again and again, must not take the node's CPU.
_RESTART_DELAYS_S = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)
# After this long a worker counts as having started well.
_SETTLED_S = 30.0
_ANSWER_TIMEOUT_S = 2.0


@dataclass(slots=True)
class Worker:
    """One worker.  `pid` 0: being forked."""

    slot: int
    channel: Channel[FromWorker]
    outbox: Outbox
    started: float
    pid: int = 0
    ready: bool = False


class Workers:
    """`count` workers, kept alive.

    `on_ready(slot)` tells a new worker everything; `on_released(slot, cookie)`: see `PodReleased`; `on_names(slot, message)`: a
    worker asks for names or says which it uses.
    """

    def __init__(
        self,
        count: int,
        settings: WorkerSettings,
        originals_fd: int,
        totals: Totals,
        on_ready: Callable[[int], None],
        on_released: Callable[[int, int], None],
        on_names: Callable[[int, NamesWanted | NamesUsed], None] = lambda slot, message: None,
    ) -> None:
        self.count = count
        self.restarts = [0] * count
        self._settings = settings
        self._originals_fd = originals_fd
        self._totals = totals
        self._on_ready = on_ready
        self._on_released = on_released
        self._on_names = on_names
        self._workers: dict[int, Worker] = {}
        self._failures = [0] * count
        self._zygotes = 0  # that have died
        self._zygote: asyncio.subprocess.Process | None = None
        self._channel: Channel[ZygoteReply] | None = None
        self._changed = asyncio.Event()
        self._answers: dict[int, tuple[set[int], list[Connection], asyncio.Future[None]]] = {}
        self._last_request = 0
        self._ending = False

    # ── life ──

    async def start(self) -> None:
        """Start the zygote and fork the workers; returns when all are ready."""
        ours, theirs = Channel.pair()
        ours.setblocking(False)
        self._channel = Channel(ours, ZygoteReply)
        self._zygote = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "nodeproxy.proxy.zygote",
            str(theirs.fileno()),
            pass_fds=(theirs.fileno(),),
            stdin=asyncio.subprocess.DEVNULL,
        )
        theirs.close()
        self._loop.add_reader(ours.fileno(), self._zygote_speaks)
        for slot in range(self.count):
            self._fork(slot)
        await self.wait_ready()

    async def wait_ready(self) -> None:
        """Until every slot has a worker that serves."""
        while not self.all_ready:
            self._changed.clear()
            await self._changed.wait()

    @property
    def all_ready(self) -> bool:
        """Whether every slot has a worker that serves."""
        return len(self._workers) == self.count and all(worker.ready for worker in self._workers.values())

    async def drain(self, grace_s: float, *, passed_on: bool = False) -> None:
        """Have every worker end, after at most `grace_s`; returns when they have.

        passed_on: the kernel gives new connections to another agent's workers, and none that came before is to be refused.
        """
        self._ending = True
        for worker in [each for each in self._workers.values() if not each.ready]:
            self._forget(worker)  # nothing reaches it yet, and no connection did
        self.broadcast(Drain(grace_s, LISTENERS_LINGER_S if passed_on else 0.0))
        deadline = self._loop.time() + grace_s + _ANSWER_TIMEOUT_S
        while self._workers and self._loop.time() < deadline:
            self._changed.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._changed.wait()
            except TimeoutError:
                break
        await self.stop()

    async def stop(self) -> None:
        """End the zygote, and with it whatever worker is left."""
        self._ending = True
        if self._channel is not None:
            self._loop.remove_reader(self._channel.sock.fileno())
            self._channel.sock.close()
            self._channel = None
        for worker in list(self._workers.values()):
            self._forget(worker)
        if self._zygote is not None:
            await self._zygote.wait()

    @property
    def pids(self) -> dict[int, tuple[int, bool]]:
        """slot → (process id, ready)."""
        return {slot: (worker.pid, worker.ready) for slot, worker in sorted(self._workers.items())}

    # ── telling ──

    def send(self, slot: int, message: msgspec.Struct, fds: tuple[int, ...] = ()) -> bool:
        """Tell one worker, with descriptors (copied if they must wait).  False: there is none in that slot now; `on_ready` will
        tell it."""
        worker = self._workers.get(slot)
        if worker is None or not worker.ready:
            return False
        if worker.outbox.full:
            log.error("worker %d (pid %d) has not read for long: it is replaced", slot, worker.pid)
            self._kill(worker)
            return False
        return worker.outbox.send(message, fds)  # False: it is dying; the zygote will say so

    def broadcast(self, message: msgspec.Struct) -> None:
        """Tell all workers that are ready."""
        for slot in list(self._workers):
            self.send(slot, message)

    # ── asking ──

    async def refresh_counters(self) -> None:
        """Have every worker report what it has counted until now (workers that do not answer in time are left out)."""
        await self._ask(ReportWanted)

    async def connections(self) -> list[Connection]:
        """The live connections of all workers."""
        return await self._ask(ConnectionsWanted)

    async def _ask(self, kind: type[ReportWanted] | type[ConnectionsWanted]) -> list[Connection]:
        self._last_request += 1
        request = self._last_request
        found: list[Connection] = []
        future: asyncio.Future[None] = self._loop.create_future()
        waiting = {slot for slot in list(self._workers) if self.send(slot, kind(request))}
        if not waiting:
            return found
        self._answers[request] = (waiting, found, future)
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                await future
        except TimeoutError:
            log.warning("workers %s did not answer in %.0f s", sorted(waiting), _ANSWER_TIMEOUT_S)
        finally:
            del self._answers[request]
        return found

    def _answered(self, request: int, slot: int) -> None:
        answer = self._answers.get(request)
        if answer is None:
            return
        waiting, _, future = answer
        waiting.discard(slot)
        if not waiting and not future.done():
            future.set_result(None)

    # ── what they say ──

    def _worker_speaks(self, worker: Worker) -> None:
        while True:
            try:
                received = worker.channel.receive()
            except BlockingIOError:
                return
            except OSError:
                received = None
            if received is None:
                self._loop.remove_reader(worker.channel.sock.fileno())
                return
            self._handle(worker, received[0])

    def _handle(self, worker: Worker, message: FromWorker) -> None:
        match message:
            case Ready():
                worker.ready = True
                self._on_ready(worker.slot)
                self._changed.set()
            case Report():
                if message.counters:
                    self._totals.merge(message.counters, worker.slot)
                if message.last:
                    self._answered(message.request, worker.slot)
            case PodReleased():
                self._on_released(worker.slot, message.cookie)
            case NamesWanted() | NamesUsed():
                self._on_names(worker.slot, message)
            case Connections():
                answer = self._answers.get(message.request)
                if answer is not None:
                    answer[1].extend(message.connections)
                if message.last:
                    self._answered(message.request, worker.slot)

    def _zygote_speaks(self) -> None:
        channel = self._channel
        while channel is not None:
            try:
                received = channel.receive()
            except BlockingIOError:
                return
            except OSError:
                received = None  # it was killed with a message of ours unread
            if received is None:
                self._zygote_died(channel.sock)
                return
            message = received[0]
            match message:
                case Forked():
                    worker = self._workers.get(message.slot)
                    if worker is not None:
                        worker.pid = message.pid
                case Exited():
                    self._exited(message)

    def _zygote_died(self, sock: socket.socket) -> None:
        """Without it no worker lives.  That is a defect or an operator's kill -9: start over as a whole."""
        self._loop.remove_reader(sock.fileno())
        log.error("the workers' zygote died, and all workers with it; making new ones")
        for worker in list(self._workers.values()):
            self._lost(worker)
        sock.close()
        self._channel = None
        if not self._ending:
            delay_s = _RESTART_DELAYS_S[min(self._zygotes, len(_RESTART_DELAYS_S) - 1)]
            self._zygotes += 1
            self._restarting = self._loop.create_task(self._start_after(delay_s))

    async def _start_after(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        if not self._ending:
            await self.start()

    def _exited(self, message: Exited) -> None:
        worker = next((each for each in self._workers.values() if each.pid == message.pid), None)
        if worker is None:
            return
        self._lost(worker)
        if self._ending:
            return
        slot = worker.slot
        if self._loop.time() - worker.started > _SETTLED_S:
            self._failures[slot] = 0
        delay_s = _RESTART_DELAYS_S[min(self._failures[slot], len(_RESTART_DELAYS_S) - 1)]
        self._failures[slot] += 1
        self.restarts[slot] += 1
        log.error(
            "worker %d (pid %d) ended with status %d; its connections are lost, a new one follows",
            slot,
            worker.pid,
            message.status,
        )
        self._loop.call_later(delay_s, self._fork, slot)

    # ── inside ──

    def _fork(self, slot: int) -> None:
        if self._channel is None or self._ending or slot in self._workers:
            return
        ours, theirs = Channel.pair()
        ours.setblocking(False)
        channel: Channel[FromWorker] = Channel(ours, FromWorker)
        worker = Worker(slot, channel, Outbox(channel), self._loop.time())
        self._workers[slot] = worker
        self._loop.add_reader(ours.fileno(), self._worker_speaks, worker)
        settings = msgspec.structs.replace(self._settings, slot=slot)
        try:
            self._channel.send(Fork(settings), (theirs.fileno(), self._originals_fd))
        except OSError as error:
            # It is dying, which `_zygote_speaks` will see, or does not read.
            log.error("worker %d can't be made: %s", slot, error)
            self._forget(worker)
            self._loop.call_later(_RESTART_DELAYS_S[-1], self._fork, slot)
        finally:
            theirs.close()

    def _kill(self, worker: Worker) -> None:
        worker.ready = False  # nothing more is told to it; its successor is told everything
        if worker.pid:
            os.kill(worker.pid, 9)

    def _lost(self, worker: Worker) -> None:
        try:
            # What it said before it died is still to be counted.
            self._worker_speaks(worker)
        finally:
            self._forget(worker)
        self._totals.forget_worker(worker.slot)
        for request in list(self._answers):
            self._answered(request, worker.slot)
        self._changed.set()

    def _forget(self, worker: Worker) -> None:
        self._loop.remove_reader(worker.channel.sock.fileno())
        worker.outbox.close()
        worker.channel.sock.close()
        self._workers.pop(worker.slot, None)

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()
