"""istiod or nodeproxy's controller as source: the asyncio shell around `nodeproxy.xds.delta_client`.

Invariants: whatever the server does, the last good state stays; nothing is kept of a message once it is applied; a server that
flaps costs a connection each 15 s, and what has changed meanwhile.  Policies are there before the workloads that they hold for.
Knows neither pods nor workers, and what a resource means is `decode`'s.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import Protocol

import grpc
import grpc.aio

from nodeproxy.agent.pods.provisional import Provisional
from nodeproxy.agent.pods.roster import Roster
from nodeproxy.agent.sources.connection import SourceConnection
from nodeproxy.agent.sources.xds_apply import Applier, Sink, XdsChange
from nodeproxy.agent.sources.xds_kept import known, taking_over
from nodeproxy.agent.sources.xds_node_pods import NODE_TYPES, NodePodsApplier
from nodeproxy.agent.sources.xds_rejected import RejectedResources
from nodeproxy.errors import IdentityError, NodeproxyError, ResourceError, StateError
from nodeproxy.identity.control_plane import ControlPlane, describe
from nodeproxy.model.delta import Delta
from nodeproxy.observe.xds_metrics import XdsStatistics
from nodeproxy.proto import discovery_pb2
from nodeproxy.state.layout import PARTIAL
from nodeproxy.state.store import StateWriter
from nodeproxy.xds.backoff import Backoff
from nodeproxy.xds.delta_client import DeltaClient, Rejected, encode_known
from nodeproxy.xds.message import Response
from nodeproxy.xds.names import ADDRESS, AUTHORIZATION

METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
# As HBONE's connect timeout.
CONNECT_TIMEOUT_S = 10.0
# The controller waits for 30 s until it has read its cluster; who has not answered in twice that may be stuck, another may not.
ANSWER_TIMEOUT_S = 60.0
# A server that does not read what it is told for so long is no good; keep-alive finds only those that are dead.
_SEND_TIMEOUT_S = 60.0
# gRPC's servers take requests of 4 MiB where nobody has told them otherwise, istiod too: names and versions of 50,000 addresses.
_ANY_SERVER_TAKES_BYTES = 4_000_000
_ISTIOD = "istiod"  # in what it says of itself: JSON with its component, name and version
# Replies that wait to be sent.
_MAX_WAITING = 16
# How often the file of roots is compared with what the connection was checked by.
TRUST_POLL_S = 5.0
# What becomes of workloads as policies go is told within a round of the server, right after it.
HOLD_S = 0.1
# A message of this size is walked in 1 ms; a larger one in a thread.
_LARGE_BYTES = 1 << 20

log = logging.getLogger(__name__)

_Stream = grpc.aio.StreamStreamCall[bytes, bytes]


class Node(Sink, Protocol):
    """The agent, as this source needs it."""

    @property
    def has_last_state(self) -> bool:
        """Whether an agent before this one left a state to go on with."""

    async def go_on_with_last_state(self) -> None:
        """Serve it."""

    def refuse(self, error: NodeproxyError) -> None:
        """What the source said can't be used."""


class Listener(Protocol):
    """Who subscribes on demand, and what it is told."""

    async def arrived(self, keys: Iterable[str], gone: Iterable[str]) -> None:
        """A response was applied.  keys: of what came.  gone: what is not there (any more), among it what was subscribed and does
        not exist."""

    def connected(self, connected: bool) -> None:
        """A server is connected and has answered for every type, or it is not any more."""


class XdsSource:
    """One source.  With on_demand, addresses are watched by name: `subscribe` and kin, and `listener` is told what came.

    roster: where this node's pods go, if the control plane is to tell of them: nodeproxy's own controller alone does.
    provisional: workloads of theirs that it has not told of.
    """

    def __init__(
        self,
        node: Node,
        control: ControlPlane,
        about: discovery_pb2.Node,
        *,
        on_demand: bool = False,
        roster: Roster | None = None,
        provisional: Provisional | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = f"xds {control}"
        self.listener: Listener | None = None
        self._node = node
        self._control = control
        self._clock = clock
        types = (AUTHORIZATION, ADDRESS, *(NODE_TYPES if roster is not None else ()))
        self._client = DeltaClient(about, types, on_demand=(ADDRESS,) if on_demand else ())
        self._rejected = RejectedResources()
        self._applier = Applier(node, self._rejected, provisional)
        self._node_pods = NodePodsApplier(node, self._rejected, roster) if roster is not None else None
        self._backoff = Backoff(len(control))
        self._to_send = asyncio.Event()
        self._sent = asyncio.Event()
        self._taken_over = False
        self._settled = False
        self._let_go_at = 0.0  # in the time of the loop
        self._tells_known = True  # what is known of addresses, to a server that takes so much
        self._told_bytes = 0  # in the request that has not been answered
        self._connected_at = 0.0  # in the time of the loop; 0.0: not connected
        self._address, self._since, self._error = str(control.current()), clock(), ""
        self._messages: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        self._terminations: Counter[str] = Counter()

    # ── on demand ──

    def subscribe(self, names: Iterable[str]) -> None:
        """Watch these addresses, too: "network/ip", a workload's uid or a service's key.  `listener` is told what comes of it."""
        self._client.subscribe(ADDRESS, names)
        self._to_send.set()

    def unsubscribe(self, names: Iterable[str]) -> None:
        """Watch these no more.  What is in the store of them stays there: the caller's to remove."""
        self._client.unsubscribe(ADDRESS, names)
        self._to_send.set()

    def ask_again(self, names: Iterable[str]) -> None:
        """Have these, which are watched, answered once more."""
        self._client.ask_again(ADDRESS, names)
        self._to_send.set()

    # ── what can be asked ──

    @property
    def connected(self) -> bool:
        """Whether a server is connected, and has answered for every type."""
        return self._connected_at > 0 and self._client.all_answered

    def connection(self) -> SourceConnection:
        """For `status`."""
        return SourceConnection(self._address, self._connected_at > 0, self._since, self._error, self._rejected.listed())

    def statistics(self) -> XdsStatistics:
        """For the metrics."""
        return XdsStatistics(
            connected=self._connected_at > 0,
            messages=self._messages,
            message_bytes=self._bytes,
            terminations=self._terminations,
            rejected=self._rejected.totals,
            rejected_now=self._rejected.now(),
        )

    # ── life ──

    async def run(self) -> None:
        """Follow the control plane until cancelled."""
        if self._node.has_last_state:
            await self._node.go_on_with_last_state()
        loop = asyncio.get_running_loop()
        while True:
            reason, why = await self._attempt()
            lived_s = loop.time() - self._connected_at if self._connected_at else 0.0
            self._terminations[reason] += 1
            self._control.turn()
            self._disconnected(reason, why)
            await asyncio.sleep(self._backoff.wait_s(lived_s, random.random()))

    async def _take_over(self) -> None:
        """Versions of another source are not this one's."""
        for meta in await self._node.reading(lambda state: list(taking_over(state, self.name))):
            await self._node.keep(meta)
        if not self._node.has_last_state:
            # Addresses come in pieces: one that is not there yet must not be taken for one outside the mesh.
            await self._node.keep({PARTIAL: b"1"})
        self._taken_over = True

    async def _attempt(self) -> tuple[str, str]:
        """Connect and follow, until that ends; the reason, and what to tell people."""
        try:
            if not self._taken_over:
                await self._take_over()
            roots = self._control.roots()
            metadata = self._control.metadata()
            async with self._control.channel(roots) as channel:
                return await self._follow(channel.stream_stream(METHOD)(metadata=metadata), roots)
        except IdentityError as exc:
            return "credentials", str(exc)
        except StateError as exc:
            return self._unwritten(exc)
        except TimeoutError:
            if self._node_pods is not None and self._client.answered(ADDRESS) and not self._client.all_answered:
                return "timeout", "it does not tell nodes of their pods: enrolment by labels needs nodeproxy's own controller"
            return "timeout", f"it did not connect within {CONNECT_TIMEOUT_S:.0f} s, or not answer or read within a minute"
        except grpc.aio.AioRpcError as exc:
            if exc.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and self._told_bytes > _ANY_SERVER_TAKES_BYTES:
                self._tells_known = False
                return "request_too_large", f"what is known of {ADDRESS} is not told from now on: {describe(exc)}"
            return _reason(exc), describe(exc)

    async def _follow(self, stream: _Stream, roots: bytes) -> tuple[str, str]:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await stream.wait_for_connection()
        self._connected()
        self._client.open()
        self._applier.forget_held()
        self._told_bytes = 0
        return await _first(self._read(stream), self._send(stream), self._watch_trust(roots))

    async def _read(self, stream: _Stream) -> tuple[str, str]:
        await self._begin_due()
        while True:
            while self._client.waiting > _MAX_WAITING:  # a server that does not read is not listened to either
                self._sent.clear()
                await self._sent.wait()
            async with asyncio.timeout(None if self._client.all_answered else ANSWER_TIMEOUT_S):
                raw = await self._next(stream)
            if not isinstance(raw, bytes):  # grpc.aio.EOF
                return "complete", "the server ended the stream"
            # Errors are caught here, for their tracebacks hold the message, and a task holds what it has ended with.
            try:
                response = Response(raw) if len(raw) < _LARGE_BYTES else await asyncio.to_thread(Response, raw)
                del raw
                await self._take(response)
                del response
            except ResourceError as exc:
                return exc.reason, f"the server broke the protocol: {exc}"
            except StateError as exc:
                return self._unwritten(exc)
            await self._begin_due()

    def _unwritten(self, error: StateError) -> tuple[str, str]:
        self._node.refuse(error)
        return "state", str(error)

    async def _next(self, stream: _Stream) -> object:
        """The next message.  Policies that have gone are removed with the addresses that follow, or without if none do."""
        if not self._applier.holds or not self._client.all_answered:
            return await stream.read()
        reading = asyncio.ensure_future(stream.read())  # must not be cancelled, which would end the stream
        try:
            now = asyncio.get_running_loop().time
            await asyncio.wait((reading,), timeout=max(0.0, self._let_go_at - now()))
            if now() >= self._let_go_at:
                await self._applier.let_go()
            return await reading
        finally:
            reading.cancel()

    async def _take(self, response: Response) -> None:
        """Apply one response, and reply."""
        url = response.type_url
        try:
            self._client.expect(url)
        except ResourceError as exc:
            self._rejected.totals["", exc.reason] += 1
            self._client.reply(url, response.nonce, [Rejected("", exc.reason, str(exc))])
            self._to_send.set()
            return
        self._messages[url] += 1
        self._bytes[url] += response.bytes
        self._client.lets_go_first = _ISTIOD in response.server
        by_name = self._client.subscribed(url) is not None
        listener = self.listener if by_name else None
        is_all = url == ADDRESS and not by_name and not self._tells_known and not self._client.answered(url)
        held = self._applier.holds
        if self._node_pods is not None and url in NODE_TYPES:
            outcome = await self._node_pods.apply(response)
        else:
            outcome = await self._applier.apply(response, tell_names=listener is not None, is_all=is_all)
        if self._applier.holds and not held:
            self._let_go_at = asyncio.get_running_loop().time() + HOLD_S
        self._told_bytes = 0  # it was taken, if it was all that was told
        self._client.reply(url, response.nonce, outcome.rejected, outcome.count)
        self._to_send.set()
        if self._client.all_answered:
            if url == ADDRESS and self._applier.holds:
                await self._applier.let_go()
            await self._settle()
        if listener is not None:
            await listener.arrived(outcome.arrived, outcome.removed)
        if self.listener is not None and (by_name or url in NODE_TYPES):
            self.listener.connected(self.connected)

    async def _settle(self) -> None:
        """Everything has been answered once: the node can serve by it."""
        if self._node_pods is not None:
            await self._node_pods.settled()
        if not self._settled:
            await self._node.apply(XdsChange(Delta(), {}, pods=()))
            self._settled = True
            log.info("the control plane has answered for everything")

    async def _begin_due(self) -> None:
        while (type_url := self._client.due()) is not None:
            told = b""
            if type_url != ADDRESS or self._tells_known:
                told = await self._node.reading(partial(_encode_known, type_url))
            self._told_bytes = len(told)
            self._client.begin(type_url, told)
            self._to_send.set()

    async def _send(self, stream: _Stream) -> tuple[str, str]:
        while True:
            await self._to_send.wait()
            self._to_send.clear()
            for raw in self._client.take():
                try:
                    async with asyncio.timeout(_SEND_TIMEOUT_S):
                        await stream.write(raw)
                except asyncio.InvalidStateError:
                    await asyncio.Event().wait()  # the stream has ended: the reader knows how
            self._sent.set()

    async def _watch_trust(self, roots: bytes) -> tuple[str, str]:
        """A server that is trusted no more must not go on because it was once."""
        unreadable = ""
        while True:
            await asyncio.sleep(TRUST_POLL_S)
            try:
                if self._control.roots() != roots:
                    return "trust_changed", "the file of roots has changed"
            except IdentityError as exc:
                if str(exc) != unreadable:  # once for each failure, not at each look
                    unreadable = str(exc)
                    log.warning("%s; the connection stays", exc)

    def _connected(self) -> None:
        self._connected_at = asyncio.get_running_loop().time()
        self._address, self._since, self._error = str(self._control.current()), self._clock(), ""
        log.info("connected to the control plane at %s", self._address)

    def _disconnected(self, reason: str, why: str) -> None:
        error = f"{reason}: {why}"
        if self._connected_at or error != self._error:
            log.warning("the control plane at %s: %s; the last state stays in use", self._address, error)
        if self._connected_at:
            self._since = self._clock()
        self._connected_at, self._error = 0.0, error
        if self.listener is not None:
            self.listener.connected(False)
        self._address = str(self._control.current())


async def _first(*works: Coroutine[None, None, tuple[str, str]]) -> tuple[str, str]:
    """What the first of them to end says; the others are cancelled."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return next(task for task in tasks if task in done).result()


def _encode_known(type_url: str, state: StateWriter) -> bytes:
    return encode_known(known(state, type_url))


def _reason(error: grpc.aio.AioRpcError) -> str:
    """What an ended stream is called in the metric."""
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return "connection_error"
    if error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return "unauthenticated"
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in (error.details() or ""):
        return "message_too_large"
    return "error"
