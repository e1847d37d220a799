"""One admitted stream of delta xDS: a task that reads requests and one that writes responses, around a `Session`.

Invariants: a stream that does not send its first request, does not read or does not acknowledge ends after a while, and nobody
waits for it, nor for one that asks for much; how many whole states are written and how many streams begin at once is bounded
for all streams.
It must not know who the client is.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

import grpc.aio

from nodeproxy.controller.memory import Trimming
from nodeproxy.controller.xds.limits import (
    ACK_WAIT_S,
    FIRST_REQUEST_WAIT_S,
    MAX_REST_S,
    MAX_STARTING,
    MAX_WHOLE_STATES,
    MIN_WORK_S,
    REST,
    STARTING_S,
    WRITE_WAIT_S,
    StreamEnd,
    end,
)
from nodeproxy.controller.xds.metrics import KINDS
from nodeproxy.controller.xds.publisher import Publisher
from nodeproxy.controller.xds.session import Acknowledged, Begun, Event, PassedOver, Rejected, Session
from nodeproxy.controller.xds.subscription import Push

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[bytes, bytes]


class Gates:
    """What all streams share of what takes much memory."""

    def __init__(self) -> None:
        self.starting = asyncio.Semaphore(MAX_STARTING)
        self.whole_states = asyncio.Semaphore(MAX_WHOLE_STATES)
        self.memory = Trimming()


class Stream:
    """One admitted client.

    node: its, "" if it is not known.  place: says of which node it is the proxy, "" if of none; CallerError ends the stream.
    """

    def __init__(
        self,
        publisher: Publisher,
        context: Context,
        node: str,
        gates: Gates,
        place: Callable[[], Awaitable[str]],
    ) -> None:
        self.session = Session(publisher.tables, node=node, clock=publisher.clock)
        self._publisher = publisher
        self._metrics = publisher.metrics
        self._context = context
        self._gates = gates
        self._place = place
        self._starting = False
        self._ending = False
        self._woken = asyncio.Event()
        self._worked_s = 0.0  # for this stream, since it last rested

    def wake(self) -> None:
        """There may be something to send."""
        self._woken.set()

    async def run(self) -> None:
        """Serve it until it ends.  CallerError: it is ended by us."""
        self._metrics.streams.inc()
        # Without it, gRPC's headers would be part of the first response: one that can't be written would let no status through.
        await self._context.send_initial_metadata(())
        # Until then nothing is read, so that what the client says stays with it but for HTTP/2's window.
        await self._gates.starting.acquire()
        self._starting = True
        started = asyncio.get_running_loop().call_later(STARTING_S, self._has_started)
        self._publisher.join(self)
        reader = asyncio.create_task(self._read(), name="xds read")
        writer = asyncio.create_task(self._write(), name="xds write")
        try:
            await asyncio.wait((reader, writer), return_when=asyncio.FIRST_COMPLETED)
            if reader.done() and reader.exception() is None:
                # The client has said all that it had to say.  What is being written comes to its end: gRPC can't break it off.
                self._ending = True
                self.wake()
                await asyncio.wait((writer,))
        finally:
            started.cancel()
            self._has_started()
            self._publisher.leave(self)
            reader.cancel()
            writer.cancel()
            results = await asyncio.gather(reader, writer, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    def _has_started(self) -> None:
        if self._starting:
            self._starting = False
            self._gates.starting.release()

    async def _read(self) -> None:
        """Requests, until the client ends its side."""
        try:
            async with asyncio.timeout(FIRST_REQUEST_WAIT_S):
                data = await self._context.read()
        except TimeoutError as exc:
            raise end(StreamEnd.SILENT, "no first request came") from exc
        while isinstance(data, bytes):  # else EOF
            began = time.perf_counter()
            for event in self.session.receive(data):
                self._note(event)
            if self.session.awaits_place:
                # It is asked for only now: stock clients never want it, and need no pod that the controller has seen.
                tables = self._publisher.place(self, await self._place())
                for event in self.session.place(tables):
                    self._note(event)
            self._worked_s += time.perf_counter() - began
            if self.session.all_begun:
                self._has_started()
            self.wake()
            await self._rest()
            data = await self._context.read()

    async def _rest(self) -> None:
        worked_s = self._worked_s
        if worked_s > MIN_WORK_S:
            self._worked_s = 0.0
            await asyncio.sleep(min(worked_s * REST, MAX_REST_S))

    async def _write(self) -> None:
        """Responses, as there are any."""
        while not self._ending:
            if self.session.owes_whole_state:
                async with self._gates.whole_states:
                    sent = await self._send()
                self._gates.memory.soon()
            else:
                sent = await self._send()
            if not sent:
                await self._wait_woken()

    async def _send(self) -> bool:
        began = time.perf_counter()
        push = self.session.respond()
        self._worked_s += time.perf_counter() - began
        if push is None:
            return False
        try:
            async with asyncio.timeout(WRITE_WAIT_S):
                await self._context.write(push.message)
        except TimeoutError as exc:
            raise end(StreamEnd.STALLED, f"a response could not be written within {WRITE_WAIT_S:g} s") from exc
        self._count(push)
        return True

    async def _wait_woken(self) -> None:
        since = self.session.unacknowledged_since()
        wait_s = None if since is None else max(0.0, since + ACK_WAIT_S - self._publisher.clock())
        try:
            async with asyncio.timeout(wait_s):
                await self._woken.wait()
        except TimeoutError as exc:
            raise end(StreamEnd.STALLED, f"a response was not acknowledged within {ACK_WAIT_S:g} s") from exc
        self._woken.clear()

    def _count(self, push: Push) -> None:
        kind = KINDS[push.type_url]
        self._metrics.pushes.labels(kind).inc()
        self._metrics.push_bytes.labels(kind).inc(len(push.message))

    def _note(self, event: Event) -> None:
        match event:
            case Acknowledged(type_url, since_change_s) if since_change_s is not None:
                self._metrics.seconds.labels(KINDS[type_url]).observe(since_change_s)
            case Rejected(type_url, message):
                self._publisher.rejected(self.session.table(type_url), message, self.session.client)
            case Begun(type_url, wildcard, resumed):
                mode = "wildcard" if wildcard else "on_demand"
                self._metrics.subscribed.labels(KINDS[type_url], mode, "yes" if resumed else "no").inc()
                log.info("client %r gets %s, %s; it has %d", self.session.client, KINDS[type_url], mode, resumed)
            case PassedOver(type_url, why):
                self._metrics.passed_over.labels(why).inc()
                log.debug("a request of client %r for %r is passed over: %s", self.session.client, type_url, why)
            case _:
                pass
