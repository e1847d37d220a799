"""What the controller knows of the mesh, as its subscribers get it, and when they get it.

A change is encoded once and costs what it touches; subscribers are woken in rounds.  A lone change is told at once; where changes
follow one another, a round is as long as all subscribers take, so that 1,000 of them leave the controller time to read the
cluster.  What nodes are told of their own pods has rounds of its own, which wake those nodes' subscribers alone.  Invariants:
nobody is told anything before `start`, as an incomplete state would wipe a client's; what can't be encoded leaves the resource as
it was.

It must not know gRPC or how a client subscribes.  All of it runs in one event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import msgspec

from nodeproxy.controller.bucket import Bucket
from nodeproxy.controller.xds.metrics import KINDS, XdsMetrics
from nodeproxy.controller.xds.node_tables import NodeTables
from nodeproxy.controller.xds.subscribers import Subscriber, release
from nodeproxy.controller.xds.tables import Table
from nodeproxy.errors import StateError
from nodeproxy.model.delta import Delta
from nodeproxy.xds.encode import (
    Encoded,
    encode_mesh_namespace,
    encode_node_pod,
    encode_policy,
    encode_service,
    encode_workload,
)
from nodeproxy.xds.names import ADDRESS, AUTHORIZATION, MESH_NAMESPACE, NODE_POD

log = logging.getLogger(__name__)

# As istiod's debounce; a tenth of what a policy may take to be enforced.
ROUND_S = 0.1
# A push and its acknowledgement cost some 0.3 ms of a core [measured]: rounds take a third of it, however many clients there are.
ROUND_S_A_CLIENT = 0.001
# Rejections that are remembered, so that 1,000 nodes that reject one resource are one line in the log.
_MAX_REJECTIONS = 4096
_LOG_LINES_PER_S = 5.0
_LOG_BURST = 100.0

_Resource = TypeVar("_Resource")


class PublisherStatistics(msgspec.Struct, frozen=True):
    """subscribers: open streams.  pending: changes that they have yet to be told of, in all.  kept: changed names in the logs."""

    started: bool
    subscribers: int
    pending: int
    addresses: int
    policies: int
    kept: int


class Publisher:
    """The state that is served.  clock: seconds, monotonic."""

    def __init__(self, metrics: XdsMetrics, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.metrics = metrics
        self.addresses, self.policies, self.namespaces = Table(ADDRESS), Table(AUTHORIZATION), Table(MESH_NAMESPACE)
        self.nodes = NodeTables()
        self.clock = clock
        self._subscribers: set[Subscriber] = set()
        self._places: dict[Subscriber, str] = {}
        # Of whoever is no node's proxy.
        self._nothing = (Table(NODE_POD), Table(MESH_NAMESPACE))
        self._started = asyncio.Event()
        self._round: asyncio.TimerHandle | None = None
        self._last_round = clock() - ROUND_S
        self._nodes_round: asyncio.TimerHandle | None = None
        self._nodes_rest_until = clock()
        self._log_lines = Bucket(_LOG_LINES_PER_S, _LOG_BURST)
        self._rejections: OrderedDict[tuple[str, str, str], None] = OrderedDict()
        metrics.clients.set_function(lambda: len(self._subscribers))
        metrics.pending.set_function(self._pending)
        metrics.resources.labels(KINDS[ADDRESS]).set_function(lambda: len(self.addresses.resources))
        metrics.resources.labels(KINDS[AUTHORIZATION]).set_function(lambda: len(self.policies.resources))
        metrics.resources.labels(KINDS[MESH_NAMESPACE]).set_function(lambda: len(self.namespaces.resources))
        metrics.resources.labels(KINDS[NODE_POD]).set_function(lambda: sum(len(table.resources) for table in self.nodes.all()))

    @property
    def tables(self) -> Sequence[Table]:
        """What everybody is served."""
        return self.addresses, self.policies

    def publish(self, delta: Delta) -> None:
        """Take over what has changed.  It takes some 10 us a resource: cut what is large, so that others get their turn."""
        now = self.clock()
        self._publish_node_pods(delta, now)
        self._put(self.namespaces, encode_mesh_namespace, delta.mesh_namespaces, now)
        self._remove(self.namespaces, delta.removed_mesh_namespaces, now)
        self._put(self.addresses, encode_workload, delta.workloads, now)
        self._put(self.addresses, encode_service, delta.services, now)
        self._put(self.policies, encode_policy, delta.policies, now)
        self._remove(self.addresses, (*delta.removed_workloads, *delta.removed_services), now)
        self._remove(self.policies, delta.removed_policies, now)
        if self._started.is_set():
            if any(table.released != table.revision for table in self._shared):
                self._schedule()
            if self.nodes.changed:
                self._schedule_nodes()

    def start(self) -> None:
        """What was published is the whole state: begin to answer."""
        for table in self._shared:
            release(table, ())
        self.nodes.release()
        self._started.set()

    def close(self) -> None:
        """Tell nobody anything more."""
        for timer in (self._round, self._nodes_round):
            if timer is not None:
                timer.cancel()

    async def wait_started(self) -> None:
        """Return once the state is whole."""
        await self._started.wait()

    def join(self, subscriber: Subscriber) -> None:
        """Wake it when there is something to tell."""
        self._subscribers.add(subscriber)

    def place(self, subscriber: Subscriber, node: str) -> Sequence[Table]:
        """What it is served as the proxy of a node (""; of none, which is nothing)."""
        if not node:
            return self._nothing
        self._places[subscriber] = node
        return self.nodes.join(node, subscriber), self.namespaces

    def leave(self, subscriber: Subscriber) -> None:
        """The client is gone."""
        self._subscribers.discard(subscriber)
        node = self._places.pop(subscriber, "")
        if node:
            self.nodes.leave(node, subscriber)

    def rejected(self, table: Table, message: str, client: str) -> None:
        """A client rejected some of a response: counted, and logged once for each resource and version."""
        kind, known = KINDS[table.type_url], table.resources
        self.metrics.nacks.labels(kind).inc()
        # ztunnel and nodeproxy write "NAME: why; NAME: why".
        parts = [(part.partition(": ")[0], part) for part in message.split("; ")]
        named = [(name, known[name].version, part) for name, part in parts if name in known]
        for name, version, text in named or [("", "", message)]:
            # What names no resource is told apart by what it says.
            key = (kind, name or text, version)
            if key not in self._rejections:
                if not self._log_lines.take():
                    continue  # what a hostile client says has no end; the next time it may be told
                log.warning("client %r rejects of %s: %r; it keeps what it has until that changes", client, kind, text)
            self._rejections[key] = None
            self._rejections.move_to_end(key)
        while len(self._rejections) > _MAX_REJECTIONS:
            self._rejections.popitem(last=False)

    def statistics(self) -> PublisherStatistics:
        """For tests, and for who asks the controller how it is."""
        return PublisherStatistics(
            started=self._started.is_set(),
            subscribers=len(self._subscribers),
            pending=self._pending(),
            addresses=len(self.addresses.resources),
            policies=len(self.policies.resources),
            kept=sum(table.kept for table in (*self._shared, *self.nodes.all())),
        )

    @property
    def _shared(self) -> Sequence[Table]:
        """What is the same for all who are told of it."""
        return self.addresses, self.policies, self.namespaces

    def _publish_node_pods(self, delta: Delta, now: float) -> None:
        changed = 0
        for node, pod in delta.node_pods:
            encoded = self._encoded(NODE_POD, encode_node_pod, pod)
            changed += encoded is not None and self.nodes.put(node, encoded, now)
        changed += sum(self.nodes.remove(node, key, now) for node, key in delta.removed_node_pods)
        self.metrics.changes.labels(KINDS[NODE_POD]).inc(changed)

    def _encoded(self, type_url: str, encode: Callable[[_Resource], Encoded], resource: _Resource) -> Encoded | None:
        try:
            return encode(resource)
        except StateError as exc:
            self.metrics.unsendable.labels(KINDS[type_url]).inc()
            log.error("%s; it is served as it was before", exc)
            return None

    def _put(self, table: Table, encode: Callable[[_Resource], Encoded], resources: Iterable[_Resource], now: float) -> None:
        changed = 0
        for resource in resources:
            encoded = self._encoded(table.type_url, encode, resource)
            changed += encoded is not None and table.put(encoded, now)
        self.metrics.changes.labels(KINDS[table.type_url]).inc(changed)

    def _remove(self, table: Table, names: Iterable[str], now: float) -> None:
        removed = sum(table.remove(name, now) for name in names)
        self.metrics.changes.labels(KINDS[table.type_url]).inc(removed)

    def _schedule(self) -> None:
        if self._round is None:
            length_s = max(ROUND_S, ROUND_S_A_CLIENT * len(self._subscribers))
            wait_s = max(0.0, self._last_round + length_s - self.clock())
            self._round = asyncio.get_running_loop().call_later(wait_s, self._tell)

    def _tell(self) -> None:
        """One round."""
        self._round = None
        self._last_round = self.clock()
        self.nodes.release()  # none later than its address
        for table in self._shared:
            release(table, self._subscribers)
        for subscriber in self._subscribers:
            subscriber.wake()

    def _schedule_nodes(self) -> None:
        if self._nodes_round is None:
            wait_s = max(0.0, self._nodes_rest_until - self.clock())
            self._nodes_round = asyncio.get_running_loop().call_later(wait_s, self._tell_nodes)

    def _tell_nodes(self) -> None:
        """One round of what is of nodes.  Most are of one client, so that the next may come a millisecond later."""
        self._nodes_round = None
        if self.policies.released != self.policies.revision:
            return  # a pod may list a policy that is told in the next round; without it, it would be open: it is told then
        concerned = self.nodes.release()
        self._nodes_rest_until = self.clock() + ROUND_S_A_CLIENT * len(concerned)
        for subscriber in concerned:
            subscriber.wake()

    def _pending(self) -> int:
        return sum(subscriber.session.waiting() for subscriber in self._subscribers)
