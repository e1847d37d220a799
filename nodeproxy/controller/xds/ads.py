"""The gRPC shell of delta xDS: AggregatedDiscoveryService/DeltaAggregatedResources over a `Publisher`.

Invariants: nothing is read of a stream whose caller is not authenticated; before the publisher has started nobody is answered;
whoever is refused is told why, by a status and its text.  What becomes of an admitted stream is `stream`'s.

Messages are bytes to gRPC, so that a response is not serialized for each client.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar
from urllib.parse import unquote

import grpc
import grpc.aio

from nodeproxy.controller.xds.limits import (
    END_WAIT_S,
    MAX_CLIENTS,
    MAX_REQUEST_BYTES,
    MAX_STREAMS_OF_A_CALLER,
    START_WAIT_S,
    StreamEnd,
    end,
)
from nodeproxy.controller.xds.publisher import Publisher
from nodeproxy.controller.xds.stream import Context, Gates, Stream
from nodeproxy.errors import CallerError
from nodeproxy.linux import own_connections

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


_Caller = TypeVar("_Caller", bound=Caller)


class Ads(grpc.GenericRpcHandler, Generic[_Caller]):
    """The service; give it to `grpc.aio.Server.add_generic_rpc_handlers`.

    authenticate: from a request's metadata and the peer's address (for logs) to the caller; CallerError refuses.
    node_of: from a caller to the node whose proxy it is, "" if it is none; CallerError ends its stream.
    """

    def __init__(
        self,
        publisher: Publisher,
        authenticate: Callable[[Metadata, str], Awaitable[_Caller]],
        node_of: Callable[[_Caller], Awaitable[str]],
    ) -> None:
        self._publisher = publisher
        self._authenticate = authenticate
        self._node_of = node_of
        self._streams = 0
        self._by_caller: Counter[str] = Counter()
        self._gates = Gates()
        self._handler: _Handler = grpc.stream_stream_rpc_method_handler(self._serve)

    @property
    def streams(self) -> int:
        """How many streams are open, those included that are not admitted yet."""
        return self._streams

    @property
    def callers(self) -> int:
        """How many callers have a stream."""
        return len(self._by_caller)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> _Handler | None:
        """The handler of a method, None if it is another service's."""
        return self._handler if handler_call_details.method == METHOD else None

    async def _serve(self, _: object, context: Context) -> None:
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

    async def _admit(self, context: Context) -> None:
        peer = context.peer()
        caller = await self._authenticate(context.invocation_metadata() or (), peer)
        key = caller.pod_uid or caller.node or peer
        if self._by_caller[key] >= MAX_STREAMS_OF_A_CALLER:
            raise end(StreamEnd.CALLER_STREAMS, f"a pod may have {MAX_STREAMS_OF_A_CALLER} streams")
        self._by_caller[key] += 1
        try:
            await self._wait_started()
            await Stream(self._publisher, context, caller.node, self._gates, partial(self._node_of, caller)).run()
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

    async def _refuse(self, context: Context, error: CallerError) -> None:
        # Who is not authenticated is counted and logged where that is judged.
        if isinstance(error.reason, StreamEnd):
            self._publisher.metrics.ended.labels(error.reason).inc()
            log.info("the stream of %s ends: %s (%s)", context.peer(), error.reason, error)
        try:
            async with asyncio.timeout(END_WAIT_S):
                await context.abort(grpc.StatusCode[error.code], str(error))
        except TimeoutError:
            # gRPC sends a status after what is being written, and the client does not read.  Nothing but the end of its
            # connection makes gRPC let go of the message.
            _shut_down(context.peer())


def _shut_down(peer: str) -> None:
    """peer: as gRPC writes it, "ipv4:10.0.0.1:443" or "ipv6:%5Bfd00::1%5D:443"."""
    ip, _, port = unquote(peer).partition(":")[2].rpartition(":")
    if port.isdecimal() and own_connections.shut_down(ip.strip("[]"), int(port)):
        log.warning("the connection of %s is shut down: it does not read", peer)
    else:
        log.warning("the connection of %s does not read and can't be found to be shut down; it ends when it is too old", peer)
