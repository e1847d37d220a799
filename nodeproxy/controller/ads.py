"""The gRPC shell of delta xDS: AggregatedDiscoveryService/DeltaAggregatedResources over a `Publisher`.

A stream is two tasks, one that reads requests and one that writes responses; what they do stands in `xds_session`.  Invariants:
nothing is read of a stream whose caller is not authenticated; before the publisher has started nobody is answered; a stream that
does not read, does not write or does not acknowledge ends after a while, and others do not wait for it.

Messages are bytes to gRPC, so that a response is not serialized for each client.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Protocol

import grpc
import grpc.aio

from nodeproxy.controller.publisher import Publisher
from nodeproxy.controller.xds_limits import (
    ACK_WAIT_S,
    FIRST_REQUEST_WAIT_S,
    MAX_CLIENTS,
    MAX_FIRST_REQUESTS,
    MAX_REQUEST_BYTES,
    MAX_STREAMS_OF_A_CALLER,
    MAX_WHOLE_STATES,
    START_WAIT_S,
    WRITE_WAIT_S,
    StreamEnd,
    end,
)
from nodeproxy.controller.xds_metrics import KINDS
from nodeproxy.controller.xds_session import Acknowledged, Begun, Event, PassedOver, Rejected, Session
from nodeproxy.controller.xds_subscription import Push
from nodeproxy.errors import CallerError

log = logging.getLogger(__name__)

METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"

# Options of the gRPC server that serves this, and the CA beside it.
SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.max_send_message_length", -1),  # what is sent has its own limits
    # A node has one connection: a stream of xDS, one while it is replaced, and requests to the CA (8 at once).
    ("grpc.max_concurrent_streams", 100),
    ("grpc.max_metadata_size", 32 << 10),  # a token has some 1 to 2 KiB
    # As istiod: a dead peer is found out in 40 s, and a client may ping as often as ztunnel (each 10 s) without being sent away.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 10),
    # As istiod's charts: after half an hour (gRPC adds or takes 10 % at random) a client connects anew, maybe to another replica.
    ("grpc.max_connection_age_ms", 30 * 60_000),
    ("grpc.max_connection_age_grace_ms", 10_000),
    ("grpc.so_reuseport", 0),  # two servers on one port are a mistake
)

Metadata = Iterable[tuple[str, str | bytes]]
_Context = grpc.aio.ServicerContext[bytes, bytes]
if TYPE_CHECKING:
    _Handler = grpc.RpcMethodHandler[bytes, bytes]  # the stubs' alone: no generic when it runs


class Caller(Protocol):
    """Who is at the other end, as far as xDS cares."""

    @property
    def node(self) -> str:
        """The Kubernetes node that it runs on, "" if that is not known."""

    @property
    def pod_uid(self) -> str:
        """Its pod."""


# From a request's metadata and the peer's address (for logs) to the caller; CallerError refuses.
Authenticate = Callable[[Metadata, str], Awaitable[Caller]]


class Ads(grpc.GenericRpcHandler):
    """The service; give it to `grpc.aio.Server.add_generic_rpc_handlers`."""

    def __init__(self, publisher: Publisher, authenticate: Authenticate) -> None:
        self._publisher = publisher
        self._authenticate = authenticate
        self._streams = 0
        self._by_caller: Counter[str] = Counter()
        self._first_requests = asyncio.Semaphore(MAX_FIRST_REQUESTS)
        self._whole_states = asyncio.Semaphore(MAX_WHOLE_STATES)
        self._handler: _Handler = grpc.stream_stream_rpc_method_handler(self._serve)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> _Handler | None:
        """The handler of a method, None if it is another service's."""
        return self._handler if handler_call_details.method == METHOD else None

    async def _serve(self, _: object, context: _Context) -> None:
        """One stream, to its end."""
        if self._streams >= MAX_CLIENTS:
            await self._refuse(
                context, end(StreamEnd.CLIENTS, "the controller has as many clients as it takes: try another replica")
            )
        self._streams += 1
        try:
            await self._admit(context)
        except CallerError as exc:
            await self._refuse(context, exc)
        finally:
            self._streams -= 1

    async def _admit(self, context: _Context) -> None:
        peer = context.peer()
        caller = await self._authenticate(context.invocation_metadata() or (), peer)
        key = caller.pod_uid or caller.node or peer
        if self._by_caller[key] >= MAX_STREAMS_OF_A_CALLER:
            raise end(StreamEnd.CALLER_STREAMS, f"a pod may have {MAX_STREAMS_OF_A_CALLER} streams")
        self._by_caller[key] += 1
        try:
            await self._wait_started()
            await _Stream(self._publisher, context, caller, self._first_requests, self._whole_states).run()
        finally:
            self._by_caller[key] -= 1
            if not self._by_caller[key]:
                del self._by_caller[key]

    async def _wait_started(self) -> None:
        try:
            async with asyncio.timeout(START_WAIT_S):
                await self._publisher.wait_started()
        except TimeoutError as exc:
            raise end(StreamEnd.UNSTARTED, "the controller has not read the cluster yet: try again") from exc

    async def _refuse(self, context: _Context, error: CallerError) -> None:
        # Who is not authenticated is counted and logged where that is judged.
        if isinstance(error.reason, StreamEnd):
            self._publisher.metrics.ended.labels(error.reason).inc()
            log.info("the stream of %s ends: %s (%s)", context.peer(), error.reason, error)
        await context.abort(grpc.StatusCode[error.code], str(error))


class _Stream:
    """One admitted client."""

    def __init__(
        self,
        publisher: Publisher,
        context: _Context,
        caller: Caller,
        first_requests: asyncio.Semaphore,
        whole_states: asyncio.Semaphore,
    ) -> None:
        self.session = Session(publisher.tables, node=caller.node, clock=publisher.clock)
        self._publisher = publisher
        self._metrics = publisher.metrics
        self._context = context
        self._first_requests = first_requests
        self._whole_states = whole_states
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """There may be something to send."""
        self._woken.set()

    async def run(self) -> None:
        """Serve it until it ends.  CallerError: it is ended by us."""
        self._metrics.streams.inc()
        self._publisher.join(self)
        tasks = [asyncio.create_task(self._read(), name="xds read"), asyncio.create_task(self._write(), name="xds write")]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._publisher.leave(self)
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _read(self) -> None:
        """Requests, until the client ends its side."""
        try:
            # The first one may name all that the client has.
            async with asyncio.timeout(FIRST_REQUEST_WAIT_S), self._first_requests:
                data = await self._context.read()
        except TimeoutError as exc:
            raise end(StreamEnd.SILENT, "no first request came") from exc
        while isinstance(data, bytes):  # else EOF
            for event in self.session.receive(data):
                self._note(event)
            self.wake()
            data = await self._context.read()

    async def _write(self) -> None:
        """Responses, as there are any."""
        while True:
            if self.session.owes_whole_state:
                async with self._whole_states:
                    push = await self._send()
            else:
                push = await self._send()
            if not push:
                await self._wait_woken()

    async def _send(self) -> bool:
        push = self.session.respond()
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
                self._publisher.rejected(type_url, message, self.session.client)
            case Begun(type_url, wildcard, resumed):
                mode = "wildcard" if wildcard else "on_demand"
                self._metrics.subscribed.labels(KINDS[type_url], mode, "yes" if resumed else "no").inc()
                log.info("client %r gets %s, %s; it has %d", self.session.client, KINDS[type_url], mode, resumed)
            case PassedOver(type_url, why):
                self._metrics.passed_over.labels(why).inc()
                log.debug("a request of client %r for %r is passed over: %s", self.session.client, type_url, why)
            case _:
                pass
