"""What each node's proxies are told of that node's pods: a table a node, and nobody else reads it.

So a pod's change costs its node's subscribers, of which there is one, or two while an agent is replaced, however many nodes there
are.  Invariants: a subscriber has the table of one node, for as long as it stays; a node that has neither pods nor subscribers
costs nothing.  It must not know how it is found out which node a client is of.
"""

from __future__ import annotations

from collections.abc import Iterable

from nodeproxy.controller.xds.subscribers import Subscriber, release
from nodeproxy.controller.xds.tables import Table
from nodeproxy.xds.encode import Encoded
from nodeproxy.xds.names import NODE_POD


class NodeTables:
    """By the name of a node."""

    def __init__(self) -> None:
        self._tables: dict[str, Table] = {}
        self._subscribers: dict[str, set[Subscriber]] = {}
        self._changed: dict[str, None] = {}

    def table(self, node: str) -> Table:
        """Its pods."""
        found = self._tables.get(node)
        if found is None:
            found = self._tables[node] = Table(NODE_POD)
        return found

    def put(self, node: str, pod: Encoded, now: float) -> bool:
        """A pod of a node came or changed; False if it is as it was."""
        changed = self.table(node).put(pod, now)
        if changed:
            self._changed[node] = None
        return changed

    def remove(self, node: str, name: str, now: float) -> bool:
        """A pod of a node went; False if there was none."""
        changed = self.table(node).remove(name, now)
        if changed:
            self._changed[node] = None
        self._drop_unused(node)
        return changed

    def join(self, node: str, subscriber: Subscriber) -> Table:
        """Its table, whose changes it is told of from here on."""
        self._subscribers.setdefault(node, set()).add(subscriber)
        return self.table(node)

    def leave(self, node: str, subscriber: Subscriber) -> None:
        """The client is gone."""
        subscribers = self._subscribers[node]
        subscribers.discard(subscriber)
        if not subscribers:
            del self._subscribers[node]
            self._drop_unused(node)

    @property
    def changed(self) -> bool:
        """Whether a change has not been released yet."""
        return bool(self._changed)

    def release(self) -> set[Subscriber]:
        """Let subscribers read what has changed.  Returns those that are concerned."""
        changed, self._changed = self._changed, {}
        concerned: set[Subscriber] = set()
        for node in changed:
            table = self._tables.get(node)
            if table is not None:
                subscribers = self._subscribers.get(node, set())
                release(table, subscribers)
                concerned |= subscribers
        return concerned

    def all(self) -> Iterable[Table]:
        """Every node's."""
        return self._tables.values()

    def _drop_unused(self, node: str) -> None:
        table = self._tables.get(node)
        if table is not None and not table.resources and node not in self._subscribers:
            del self._tables[node]
            self._changed.pop(node, None)
