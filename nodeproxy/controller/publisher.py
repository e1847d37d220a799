"""What the controller knows of the mesh, as its subscribers get it, and when they get it.

A change is encoded once and costs what it touches; subscribers are woken in rounds.  A lone change is told at once; where changes
follow one another, a round is as long as all subscribers take, so that 1,000 of them leave the controller time to read the
cluster.  Invariants: nobody is told anything before `start`, as an incomplete state would wipe a client's; what can't be encoded
leaves the resource as it was.

It must not know gRPC or how a client subscribes.  All of it runs in one event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

import msgspec

from nodeproxy.controller.bucket import Bucket
from nodeproxy.controller.xds_metrics import KINDS, XdsMetrics
from nodeproxy.controller.xds_session import Session
from nodeproxy.controller.xds_tables import Table
from nodeproxy.errors import StateError
from nodeproxy.model.delta import Delta
from nodeproxy.xds.encode import Encoded, encode_policy, encode_service, encode_workload
from nodeproxy.xds.names import ADDRESS, AUTHORIZATION

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


class Subscriber(Protocol):
    """One client, as the publisher sees it."""

    session: Session

    def wake(self) -> None:
        """There may be something to tell."""


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
        self.addresses, self.policies = Table(ADDRESS), Table(AUTHORIZATION)
        self.clock = clock
        self._subscribers: set[Subscriber] = set()
        self._started = asyncio.Event()
        self._round: asyncio.TimerHandle | None = None
        self._last_round = clock() - ROUND_S
        self._log_lines = Bucket(_LOG_LINES_PER_S, _LOG_BURST)
        self._rejections: OrderedDict[tuple[str, str, str], None] = OrderedDict()
        metrics.clients.set_function(lambda: len(self._subscribers))
        metrics.pending.set_function(self._pending)
        metrics.resources.labels(KINDS[ADDRESS]).set_function(lambda: len(self.addresses.resources))
        metrics.resources.labels(KINDS[AUTHORIZATION]).set_function(lambda: len(self.policies.resources))

    @property
    def tables(self) -> Sequence[Table]:
        """What is served."""
        return self.addresses, self.policies

    def publish(self, delta: Delta) -> None:
        """Take over what has changed.  It takes some 10 us a resource: cut what is large, so that others get their turn."""
        now = self.clock()
        self._put(self.addresses, encode_workload, delta.workloads, now)
        self._put(self.addresses, encode_service, delta.services, now)
        self._put(self.policies, encode_policy, delta.policies, now)
        self._remove(self.addresses, (*delta.removed_workloads, *delta.removed_services), now)
        self._remove(self.policies, delta.removed_policies, now)
        if self._started.is_set() and any(table.released != table.revision for table in self.tables):
            self._schedule()

    def start(self) -> None:
        """What was published is the whole state: begin to answer."""
        for table in self.tables:
            table.release()
            table.forget(table.revision)
        self._started.set()

    def close(self) -> None:
        """Tell nobody anything more."""
        if self._round is not None:
            self._round.cancel()

    async def wait_started(self) -> None:
        """Return once the state is whole."""
        await self._started.wait()

    def join(self, subscriber: Subscriber) -> None:
        """Wake it when there is something to tell."""
        self._subscribers.add(subscriber)

    def leave(self, subscriber: Subscriber) -> None:
        """The client is gone."""
        self._subscribers.discard(subscriber)

    def rejected(self, type_url: str, message: str, client: str) -> None:
        """A client rejected some of a response: counted, and logged once for each resource and version."""
        kind = KINDS[type_url]
        self.metrics.nacks.labels(kind).inc()
        known = self.addresses.resources if type_url == ADDRESS else self.policies.resources
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
            kept=sum(table.kept for table in self.tables),
        )

    def _put(self, table: Table, encode: Callable[[_Resource], Encoded], resources: Iterable[_Resource], now: float) -> None:
        changed = 0
        for resource in resources:
            try:
                changed += table.put(encode(resource), now)
            except StateError as exc:
                self.metrics.unsendable.labels(KINDS[table.type_url]).inc()
                log.error("%s; it is served as it was before", exc)
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
        for table in self.tables:
            table.release()
            table.forget(min(self._seen(table), table.released))
        for subscriber in self._subscribers:
            subscriber.wake()

    def _seen(self, table: Table) -> int:
        """Up to which revision everybody has been told."""
        subscriptions = [subscriber.session.subscriptions.get(table.type_url) for subscriber in self._subscribers]
        seen = [subscription.seen for subscription in subscriptions if subscription is not None]
        return min((revision for revision in seen if revision is not None), default=table.released)

    def _pending(self) -> int:
        return sum(subscriber.session.waiting() for subscriber in self._subscribers)
