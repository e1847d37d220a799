"""The resources of one type as subscribers get them, what leads to them, and in which order they changed.

A change costs what it touches, however many resources and subscribers there are.  Subscribers share one log of changed names and
read it from a place of their own: whoever is slow gets the latest version once.  Invariants: the log knows every name that
changed after `horizon`; a resource whose bytes are the same has not changed; what has changed is read only when it is released,
so that what comes together is pushed together.

It must not know clients or messages.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from weakref import ref

from nodeproxy.controller.xds_limits import MAX_REMOVED
from nodeproxy.controller.xds_log import ChangeLog
from nodeproxy.xds import request
from nodeproxy.xds.encode import Encoded, encode_response

# What was made of the whole state for one subscriber serves others, as long as they would then read no more changes than this.
_MAX_SNAPSHOT_AGE = 2000


class Snapshot:
    """The response that tells all resources, as of `revision`: one for all who begin at about the same time, nonce included."""

    __slots__ = ("__weakref__", "count", "message", "nonce", "revision")

    def __init__(self, type_url: str, revision: int, resources: Collection[Encoded]) -> None:
        self.revision, self.count = revision, len(resources)
        self.nonce = f"all-{revision}"
        self.message = encode_response(type_url, self.nonce, resources)


class Inventory:
    """Names by what a client says that has them as they are, as of `revision`; for all who resume at about the same time."""

    __slots__ = ("__weakref__", "names", "revision")

    def __init__(self, revision: int, resources: Collection[Encoded]) -> None:
        self.revision = revision
        self.names = {request.entry(resource.name, resource.version): resource.name for resource in resources}


class Table:
    """One type's resources by name."""

    def __init__(self, type_url: str, *, max_removed: int = MAX_REMOVED) -> None:
        self.type_url = type_url
        self.resources: dict[str, Encoded] = {}
        self.revision = 0  # of the latest change
        self.released = 0  # changes up to here may be read
        self.horizon = 0  # changes up to here are forgotten
        self._max_removed = max_removed
        self._log = ChangeLog()
        self._aliases = _Index()
        self._endpoints = _Index()
        self._nodes = _Index()
        # They live as long as somebody has them.
        self._snapshot: ref[Snapshot] | None = None
        self._inventory: ref[Inventory] | None = None

    def put(self, encoded: Encoded, now: float) -> bool:
        """A resource that came or changed; False if it is as it was.  now: seconds, monotonic."""
        old = self.resources.get(encoded.name)
        if old is not None:
            if old.version == encoded.version:
                return False
            self._unindex(old)
        self.resources[encoded.name] = encoded
        for alias in encoded.aliases:
            self._aliases.add(alias, encoded.name)
        for service in encoded.services:
            self._endpoints.add(service, encoded.name)
        if encoded.node:
            self._nodes.add(encoded.node, encoded.name)
        self._changed(encoded.name, now)
        return True

    def remove(self, name: str, now: float) -> bool:
        """A resource that went; False if there was none."""
        old = self.resources.pop(name, None)
        if old is None:
            return False
        self._unindex(old)
        self._changed(name, now)
        return True

    def release(self) -> bool:
        """Let subscribers read what has changed; False if nothing has."""
        if self.released == self.revision:
            return False
        self.released = self.revision
        return True

    def forget(self, up_to: int) -> None:
        """Drop the log of changes up to this revision: everybody has read them, or has to begin again."""
        if up_to > self.horizon:
            self._log.drop(up_to)
            self.horizon = up_to

    def changes(self, after: int) -> Iterator[tuple[int, str]]:
        """(revision, name) of what changed after a revision and is released, oldest first."""
        return self._log.between(after, self.released)

    def waiting(self, after: int) -> int:
        """How many changes, at most, a subscriber has before it that has read up to `after`."""
        return self._log.count(after, self.released)

    @property
    def kept(self) -> int:
        """How many changed names are kept for subscribers."""
        return len(self._log)

    def changed_at(self, revision: int) -> float:
        """When a change was made that `changes` told of, in `put`'s seconds."""
        return self._log.time(revision)

    def find(self, key: str) -> list[Encoded]:
        """What a key leads to: a resource's name, or a network address ("network/ip") of whatever has it.

        A service brings the workloads that are its endpoints.  They stand before it: who knows it knows them.
        """
        return list(self.find_all((key,))[0].values())

    def find_all(self, keys: Iterable[str]) -> tuple[dict[str, Encoded], list[str]]:
        """What keys lead to as in `find`, by name, and those that lead to nothing.  However many of them lead to one service, its
        endpoints are looked at once."""
        found: dict[str, Encoded] = {}
        missing = []
        for key in keys:
            named = self._named(key)
            for resource in named:
                if resource.name not in found:
                    if resource.is_service:
                        found.update((endpoint.name, endpoint) for endpoint in self.endpoints(resource.name))
                    found[resource.name] = resource
            if not named:
                missing.append(key)
        return found, missing

    def _named(self, key: str) -> list[Encoded]:
        resource = self.resources.get(key)
        return [resource] if resource is not None else [self.resources[name] for name in self._aliases.get(key)]

    def endpoints(self, service: str) -> list[Encoded]:
        """The workloads that list a service."""
        return [self.resources[name] for name in self._endpoints.get(service)]

    def on_node(self, node: str) -> list[Encoded]:
        """The workloads of a node."""
        return [self.resources[name] for name in self._nodes.get(node)] if node else []

    def snapshot(self) -> Snapshot:
        """The whole state, as of now or of a little earlier."""
        kept = None if self._snapshot is None else self._snapshot()
        if kept is not None and self._is_fresh(kept.revision):
            return kept
        made = Snapshot(self.type_url, self.revision, self.resources.values())
        self._snapshot = ref(made)
        return made

    def inventory(self) -> Inventory:
        """What a client that has all may say that it has, as of now or of a little earlier."""
        kept = None if self._inventory is None else self._inventory()
        if kept is not None and self._is_fresh(kept.revision):
            return kept
        made = Inventory(self.revision, self.resources.values())
        self._inventory = ref(made)
        return made

    def _is_fresh(self, revision: int) -> bool:
        """Whether who has the state of a revision may read on from there."""
        return revision >= self.horizon and self.revision - revision <= _MAX_SNAPSHOT_AGE

    def _changed(self, name: str, now: float) -> None:
        self.revision += 1
        self._log.append(self.revision, name, now)
        # Names that are still there take no room of their own; those of what is gone would add up behind a slow subscriber.
        if len(self._log) > len(self.resources) + self._max_removed:
            self.forget(self._log.middle())

    def _unindex(self, resource: Encoded) -> None:
        for alias in resource.aliases:
            self._aliases.discard(alias, resource.name)
        for service in resource.services:
            self._endpoints.discard(service, resource.name)
        if resource.node:
            self._nodes.discard(resource.node, resource.name)


class _Index:
    """Names by key.  Nearly every address leads to one name, so that one stands there without a set around it (216 bytes)."""

    def __init__(self) -> None:
        self._names: dict[str, str | set[str]] = {}

    def get(self, key: str) -> Collection[str]:
        names = self._names.get(key, ())
        return (names,) if isinstance(names, str) else names

    def add(self, key: str, name: str) -> None:
        names = self._names.get(key)
        if names is None:
            self._names[key] = name
        elif isinstance(names, set):
            names.add(name)
        elif names != name:
            self._names[key] = {names, name}

    def discard(self, key: str, name: str) -> None:
        names = self._names.get(key)
        if names == name:
            del self._names[key]
        elif isinstance(names, set):
            names.discard(name)
            if not names:
                del self._names[key]
