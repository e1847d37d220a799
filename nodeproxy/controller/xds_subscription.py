"""What one client is subscribed to of one type, what it has been told, and what it is told next.

    wildcard      the whole state in one response, then what changes
    on demand     what the client asks for, by name or address, with the endpoints of services, the workloads of the client's own
                  node, and what changes of these

A response to a request is whole, as istiod's is: a client takes the first response of a type for the state, and what it asked for
for all that there is.  Later changes are cut into pushes of bounded size.  Invariants: one response is unacknowledged at most, so
that a slow client has what gRPC holds of one, and then the latest version of what changed; a name that was asked for is answered,
by the resource or as removed; what a client rejected is sent again only when it has changed; what a client on demand has is
known, and when it is told no more of a resource, it is told that the resource is gone.

Sans-I/O: it must not know streams, clocks or tasks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import msgspec
from google.protobuf.message import DecodeError

from nodeproxy.controller.xds_limits import MAX_ANSWER_BYTES, MAX_NAMES, MAX_PUSH_BYTES, StreamEnd, end
from nodeproxy.controller.xds_tables import Inventory, Snapshot, Table
from nodeproxy.xds import request
from nodeproxy.xds.encode import Encoded, encode_response
from nodeproxy.xds.names import MAX_NAME_BYTES, WILDCARD


class Push(msgspec.Struct, frozen=True):
    """One response.  resources, removed: how many are in it.  changed_at: when the oldest change in it was made, if it tells of
    changes.  keep: what must live until it is written."""

    type_url: str
    nonce: str
    message: bytes
    resources: int
    removed: int
    changed_at: float | None = None
    keep: Snapshot | None = None


class Subscription:
    """One client's view of one table.  node: whose workloads a client gets unasked when it asks on demand."""

    def __init__(self, table: Table, node: str = "") -> None:
        self.seen: int | None = None  # the revision up to which the client has been told, None until the whole state is sent
        self.wildcard = False
        self.unacknowledged = ""  # a nonce
        self._table = table
        self._node = node
        self._count = 0
        self._inventory: Inventory | None = None  # for who else begins until this one is answered
        self._explicit: set[str] = set()  # names and addresses that the client asked for
        self._sent: dict[str, str] = {}  # on demand only: names and versions that the client has
        self._owes = False  # a request is to be answered, even with nothing
        self._whole = False  # with the whole state
        self._asked: dict[str, None] = {}  # with what these keys lead to, or that it is not there
        self._due: dict[str, None] = {}  # with these resources
        self._dropped: dict[str, None] = {}  # and by saying that these are gone, as nothing leads to them any more

    @property
    def owes_whole_state(self) -> bool:
        """Whether the next response is the whole state."""
        return self._whole and not self.unacknowledged

    @property
    def is_behind(self) -> bool:
        """Whether the client, which has had the whole state, has yet to be told of a change of it."""
        return self.wildcard and self.seen is not None and not self._whole and self._table.waiting(self.seen) > 0

    def waiting(self) -> int:
        """About how many names the client has yet to be told of."""
        queued = len(self._asked) + len(self._due) + len(self._dropped)
        if self.seen is None or self._whole:
            return queued + len(self._table.resources)
        return queued + self._table.waiting(self.seen)

    def begin(self, subscribe: Collection[str], unsubscribe: Collection[str], had: Collection[bytes]) -> None:
        """The first request of the stream.  had: what the client has of an earlier one, as `xds.request` tells it.

        CallerError: too many names, or what it has can't be read.
        """
        names = set(subscribe).difference(unsubscribe)
        # xDS, "How the client specifies what resources to return": no name at all stands for all.  istiod's clients write "*" as
        # subscribed and as unsubscribed to begin with nothing.
        self.wildcard = not subscribe or WILDCARD in names
        names.discard(WILDCARD)
        self._owes = True
        if self.wildcard:
            self._want(names)
            self._begin_wildcard(had)
            return
        self._bound(len(had))
        versions = _read(had)
        self.seen = self._table.revision
        self._want(names)
        for resource in self._table.on_node(self._node):
            self._have_or_owe(resource, versions)
        self._explicit.update(map(_checked, versions))
        found, missing = self._table.find_all(versions)
        for resource in found.values():
            self._have_or_owe(resource, versions)
        for key in missing:
            self._asked[key] = self._dropped[key] = None

    def change(self, subscribe: Collection[str], unsubscribe: Collection[str]) -> None:
        """A later request.  What is subscribed to again is answered again.  CallerError: too many names."""
        known = len(self._explicit)
        for name in unsubscribe:
            if name == WILDCARD:
                self._leave_wildcard()
            self._explicit.discard(name)
            self._asked.pop(name, None)
        if len(self._explicit) < known and not self.wildcard:
            self._narrow()
        names = set(subscribe).difference(unsubscribe)
        self._want(names - {WILDCARD})
        if WILDCARD in names:
            self.wildcard = self._whole = self._owes = True
            self._sent, self._due, self._dropped = {}, {}, {}

    def acknowledge(self, nonce: str) -> bool:
        """The client has taken a response, or rejected it.  False if it is not the one that is awaited."""
        if not nonce or nonce != self.unacknowledged:
            return False
        self.unacknowledged = ""
        return True

    def respond(self) -> Push | None:
        """The next response; None while one is unacknowledged or nothing is to be told.  CallerError: the client is too far
        behind, or what it asked for is too much."""
        if self.unacknowledged:
            return None
        if self._whole:
            push = self._whole_state()
        elif self._owes or self._asked or self._due or self._dropped:
            push = self._answer()
        else:
            push = self._changes()
        if push is not None:
            self.unacknowledged = push.nonce
        return push

    def _want(self, names: Iterable[str]) -> None:
        for name in names:
            self._explicit.add(_checked(name))
            self._asked[name] = None
        self._bound()

    def _bound(self, more: int = 0) -> None:
        if max(len(self._explicit) + more, len(self._sent)) > MAX_NAMES:
            raise end(StreamEnd.NAMES, f"a subscriber may have {MAX_NAMES} names; subscribe to all (*), or unsubscribe from some")

    def _begin_wildcard(self, had: Collection[bytes]) -> None:
        """The client gets what differs from what it has; without a version that it has in common, simply everything."""
        if not had:
            self._whole = True
            return
        inventory = self._inventory = self._table.inventory()
        held = set(had)
        differing = inventory.names.keys() - held
        if len(held) > len(inventory.names) - len(differing):
            # It has something of another version, or that is gone.
            versions = _read(held.difference(inventory.names))
            self._asked.update((name, None) for name in versions if name not in self._table.resources)
        if len(differing) == len(inventory.names):
            self._whole = True
        else:
            self._due = {inventory.names[entry]: None for entry in differing}
        # What it has and goes from here on, it has to be told, whole state or not.
        self.seen = inventory.revision

    def _have_or_owe(self, resource: Encoded, versions: Mapping[str, str]) -> None:
        version = versions.get(resource.name)
        if version is not None:
            self._sent[resource.name] = version
        if version != resource.version:
            self._due[resource.name] = None

    def _leave_wildcard(self) -> None:
        if not self.wildcard:
            return
        # What else the client asked for is told anew: from here on it matters what it has.
        self.wildcard = self._whole = False
        self._due.clear()
        self._asked = dict.fromkeys(self._explicit)
        if self.seen is None:
            self.seen = self._table.revision

    def _narrow(self) -> None:
        """Let go of what nothing leads to any more.  Services first: their endpoints follow."""
        resources = self._table.resources
        for services in (True, False):
            for name in [*self._sent, *self._due]:
                resource = resources.get(name)
                if resource is not None and resource.is_service is services and not self._matches(resource):
                    self._due.pop(name, None)
                    if self._sent.pop(name, None) is not None:
                        self._dropped[name] = None

    def _matches(self, resource: Encoded) -> bool:
        """Whether a resource belongs to what an on-demand client asked for."""
        explicit, sent, due = self._explicit, self._sent, self._due
        return (
            resource.name in explicit
            or (self._node != "" and resource.node == self._node)
            or any(alias in explicit for alias in resource.aliases)
            or any(service in sent or service in due for service in resource.services)
        )

    def _whole_state(self) -> Push | None:
        snapshot = self._table.snapshot()
        self._whole, self._inventory = False, None
        self.seen = snapshot.revision if self.seen is None else min(self.seen, snapshot.revision)
        if len(snapshot.message) > MAX_ANSWER_BYTES:
            self._due = dict.fromkeys(self._table.resources)
            return self._answer()
        self._owes = False
        message, missing = snapshot.message, [key for key in self._asked if not self._table.find(key)]
        if missing:
            message += encode_response("", "", (), missing)
        self._asked = {}
        return Push(self._table.type_url, snapshot.nonce, message, snapshot.count, len(missing), None, snapshot)

    def _answer(self) -> Push:
        found, nowhere = self._table.find_all(self._asked)
        missing = dict.fromkeys(nowhere)
        for name in self._due:
            resource = self._table.resources.get(name)
            if resource is not None:  # else the log tells
                found[name] = resource
        missing.update((name, None) for name in self._dropped if name not in found)
        self._owes, self._asked, self._due, self._dropped = False, {}, {}, {}
        self._inventory = None
        told = self._cut(found)
        self._told(told, missing)
        return self._push(told, missing)

    def _cut(self, found: dict[str, Encoded]) -> list[Encoded]:
        """As much as a message can have; the rest is due."""
        told: list[Encoded] = []
        size = 0
        for name, resource in found.items():
            size += len(resource.entry)
            if size > MAX_ANSWER_BYTES and told:
                self._due[name] = None
            else:
                told.append(resource)
        return told

    def _changes(self) -> Push | None:
        table, seen = self._table, self.seen
        if seen is None or seen < table.horizon:
            raise end(StreamEnd.BEHIND, "too many changes were not acknowledged in time; connect again to resume")
        told: list[Encoded] = []
        removed: list[str] = []
        size, first, reached = 0, 0, max(seen, table.released)
        for revision, name in table.changes(seen):
            resource = table.resources.get(name)
            if self.wildcard or self._concerns(name, resource):
                size += len(name) if resource is None else len(resource.entry)
                if size > MAX_PUSH_BYTES and first:
                    reached = revision - 1
                    break
                first = first or revision
                if resource is None:
                    removed.append(name)
                else:
                    told.append(resource)
        self.seen = reached
        self._told(told, removed)
        if first:
            return self._push(told, removed, table.changed_at(first))
        return self._answer() if self._due else None

    def _told(self, resources: Iterable[Encoded], removed: Iterable[str]) -> None:
        if not self.wildcard:
            self._sent.update((resource.name, resource.version) for resource in resources)
            for name in removed:
                self._sent.pop(name, None)
            self._bound()

    def _concerns(self, name: str, resource: Encoded | None) -> bool:
        """Whether a change is told to an on-demand client now."""
        if resource is None:
            return name in self._sent
        version = self._sent.get(name)
        if version is not None:
            return version != resource.version
        if not self._matches(resource):
            return False
        if resource.is_service:
            # What it asked for is there at last: it comes with its endpoints, in an answer.
            self._due.update((found.name, None) for found in self._table.find(name))
            return False
        return True

    def _push(self, told: Collection[Encoded], removed: Collection[str], changed_at: float | None = None) -> Push:
        self._count += 1
        nonce = str(self._count)
        message = encode_response(self._table.type_url, nonce, told, removed)
        return Push(self._table.type_url, nonce, message, len(told), len(removed), changed_at)


def _read(entries: Collection[bytes]) -> dict[str, str]:
    try:
        return request.read(entries)
    except DecodeError as exc:
        raise end(StreamEnd.MALFORMED, "initial_resource_versions are no map of strings") from exc


def _checked(name: str) -> str:
    if len(name) > MAX_NAME_BYTES:
        raise end(StreamEnd.NAMES, f"no resource has a name of more than {MAX_NAME_BYTES} bytes")
    return name
