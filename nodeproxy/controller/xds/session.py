"""The delta xDS protocol of one stream: requests in, facts and responses out.

Invariants: types that are not served are passed over, they get no answer; a request that breaks a limit ends the stream, and
nothing of it was applied to others; what is of a node is told once it is known which node's the client is (`place`); workloads
are told of after the policies and the node's own pods that changed before them.  Sans-I/O: it must not know gRPC, tasks or the
clock's source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec
from google.protobuf.message import DecodeError

from nodeproxy.controller.xds.limits import MAX_FOREIGN_REQUESTS, StreamEnd, end
from nodeproxy.controller.xds.subscription import Push, Subscription
from nodeproxy.controller.xds.tables import Table
from nodeproxy.proto import discovery_pb2 as discovery
from nodeproxy.xds.names import AUTHORIZATION, MESH_NAMESPACE, NODE_POD
from nodeproxy.xds.request import Request, parse

# What is said of a client in logs and errors comes from the client.
_MAX_TEXT = 1000
# What a client gets depends on where it is.
_OF_ITS_NODE = frozenset((NODE_POD, MESH_NAMESPACE))


class Begun(msgspec.Struct, frozen=True):
    """The client subscribed to a type.  resumed: how many resources it says that it has."""

    type_url: str
    wildcard: bool
    resumed: int


class Acknowledged(msgspec.Struct, frozen=True):
    """The client has taken a response.  since_change_s: since the oldest change that it told of; None for an answer."""

    type_url: str
    since_change_s: float | None


class Rejected(msgspec.Struct, frozen=True):
    """The client could not take all of a response; what it says of it."""

    type_url: str
    message: str


class Changed(msgspec.Struct, frozen=True):
    """The client subscribed to other names, or to none."""

    type_url: str


class PassedOver(msgspec.Struct, frozen=True):
    """A request had no effect.  why: "type" is not served, or "nonce" is not that of the response that is awaited."""

    type_url: str
    why: str


Event = Begun | Acknowledged | Rejected | Changed | PassedOver


class Session:
    """One stream.  tables: what everybody is served.  node: the client's, if it is known otherwise than by what it says.  clock:
    seconds, monotonic, the same as the tables'."""

    def __init__(self, tables: Iterable[Table], *, node: str, clock: Callable[[], float]) -> None:
        self.node = node
        self.client = ""  # the id that the client gave itself, for logs
        self.subscriptions: dict[str, Subscription] = {}
        self.sent_at: dict[str, float] = {}  # when the responses that are unacknowledged were made, by type
        self._tables = {table.type_url: table for table in tables}
        self._everybodys = frozenset(self._tables)
        self._held: list[Request] = []  # until it is known where the client is
        self._changed_at: dict[str, float | None] = {}
        self._clock = clock
        self._foreign = 0

    def receive(self, data: bytes) -> list[Event]:
        """A request.  CallerError: the stream ends."""
        try:
            request = parse(data)
        except DecodeError as exc:
            raise end(StreamEnd.MALFORMED, "this is no DeltaDiscoveryRequest") from exc
        if not self.client and request.node.id:
            self._introduce(request.node)
        if request.type_url in _OF_ITS_NODE and request.type_url not in self._tables:
            self._held.append(request)
            return []
        return self._apply(request)

    @property
    def awaits_place(self) -> bool:
        """Whether the client has asked for what is of its node: before the next request is received, `place` it."""
        return bool(self._held)

    def place(self, tables: Iterable[Table]) -> list[Event]:
        """It is known which node's the client is: it gets these.  CallerError as for `receive`."""
        self._tables.update((table.type_url, table) for table in tables)
        held, self._held = self._held, []
        return [event for request in held for event in self._apply(request)]

    def table(self, type_url: str) -> Table:
        """What the client gets of a type that it has subscribed to."""
        return self._tables[type_url]

    def _apply(self, request: Request) -> list[Event]:
        table = self._tables.get(request.type_url)
        if table is None:
            self._foreign += 1
            if self._foreign > MAX_FOREIGN_REQUESTS:
                raise end(StreamEnd.FOREIGN, f"only {' and '.join(self._tables)} are served here")
            return [PassedOver(request.type_url[:_MAX_TEXT], "type")]
        subscription = self.subscriptions.get(table.type_url)
        if subscription is None:
            return self._begin(table, request)
        events = self._settle(subscription, request)
        if request.resource_names_subscribe or request.resource_names_unsubscribe:
            subscription.change(request.resource_names_subscribe, request.resource_names_unsubscribe)
            events.append(Changed(table.type_url))
        return events

    def respond(self) -> Push | None:
        """The next response of any type, None if there is none now.  CallerError: the stream ends."""
        # Workloads may list a policy that the client has not been told of; without it they would be open.  And a node is to know
        # its own pod before it is asked for it.
        for first in (AUTHORIZATION, NODE_POD):
            subscription = self.subscriptions.get(first)
            if subscription is not None and subscription.is_behind:
                push = self._respond(first, subscription)
                if push is not None or subscription.unacknowledged:
                    return push
        for type_url, subscription in self.subscriptions.items():
            push = self._respond(type_url, subscription)
            if push is not None:
                return push
        return None

    def _respond(self, type_url: str, subscription: Subscription) -> Push | None:
        push = subscription.respond()
        if push is not None:
            self.sent_at[type_url] = self._clock()
            self._changed_at[type_url] = push.changed_at
        return push

    @property
    def all_begun(self) -> bool:
        """Whether the client has subscribed to every type that is everybody's, and said what it has of it."""
        return self._everybodys <= self.subscriptions.keys()

    @property
    def owes_whole_state(self) -> bool:
        """Whether the next response may be a whole state, which takes much room."""
        return any(subscription.owes_whole_state for subscription in self.subscriptions.values())

    def unacknowledged_since(self) -> float | None:
        """When the oldest response that is not acknowledged was made."""
        return min(self.sent_at.values(), default=None)

    def waiting(self) -> int:
        """About how many names the client has yet to be told of."""
        return sum(subscription.waiting() for subscription in self.subscriptions.values())

    def _introduce(self, node: discovery.Node) -> None:
        self.client = node.id[:_MAX_TEXT]
        if not self.node:
            self.node = node.metadata.fields["NODE_NAME"].string_value

    def _begin(self, table: Table, request: Request) -> list[Event]:
        subscription = Subscription(table, self.node)
        had = request.initial_resource_versions
        subscription.begin(request.resource_names_subscribe, request.resource_names_unsubscribe, had)
        self.subscriptions[table.type_url] = subscription
        return [Begun(table.type_url, subscription.wildcard, len(had))]

    def _settle(self, subscription: Subscription, request: Request) -> list[Event]:
        type_url = request.type_url
        if not request.response_nonce:
            return []
        if not subscription.acknowledge(request.response_nonce):
            return [PassedOver(type_url, "nonce")]
        del self.sent_at[type_url]
        if request.HasField("error_detail"):
            return [Rejected(type_url, request.error_detail.message[:_MAX_TEXT])]
        changed_at = self._changed_at[type_url]
        return [Acknowledged(type_url, None if changed_at is None else self._clock() - changed_at)]
