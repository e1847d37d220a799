"""What there is, who depends on whom, and what has yet to be worked out again.

Invariant: a change marks what depends on it and nothing else: `touch_…` finds that by index, never by walking the cluster.
Nothing is worked out here (`translator` does), so that many changes of one thing cost one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from nodeproxy.model.workload import Locality
from nodeproxy.translate.hosts import Host, Hosts
from nodeproxy.translate.pods import Pod, Template
from nodeproxy.translate.selection import Labelled, Selectors
from nodeproxy.translate.settings import MeshSettings
from nodeproxy.translate.slices import Slices
from nodeproxy.translate.source import Source
from nodeproxy.translate.waypoints import Waypoints

NOWHERE = Locality()


class Holding(Protocol):
    """The part of the policies that workloads ask for."""

    def holding(self, namespace: str, labels: Mapping[str, str]) -> tuple[str, ...]:
        """Keys of the policies that select these labels."""


class Home:
    """A namespace, whether or not its resource has been seen, and what lives in it."""

    __slots__ = ("annotations", "asking", "hosts", "labels", "pods", "selectable", "selectors", "sources", "templates")

    def __init__(self) -> None:
        self.labels: dict[str, str] = {}
        self.annotations: dict[str, str] = {}
        self.asking = 0  # templates whose pods belong into the mesh by their own label
        self.pods: dict[str, Pod] = {}
        self.templates: dict[object, Template] = {}
        self.hosts: set[Host] = set()
        self.sources: set[Source] = set()
        self.selectable: Labelled[Template | Source] = Labelled()
        self.selectors: Selectors[Host] = Selectors()

    def is_empty(self) -> bool:
        """Whether nothing is known of it and nothing lives in it."""
        return not (self.labels or self.annotations or self.pods or self.hosts or self.sources)


class Cluster:
    """All of it."""

    def __init__(self, settings: MeshSettings, policies: Holding) -> None:
        self.settings = settings
        self.policies = policies
        self.homes: dict[str, Home] = {}
        self.hosts = Hosts()
        self.waypoints = Waypoints(settings)
        self.nodes: dict[str, dict[Pod, None]] = {}
        self.localities: dict[str, Locality] = {}
        self.slices = Slices()
        # What must be worked out again; dicts, for they keep the order.
        self.stale_templates: dict[Template, None] = {}
        self.stale_pods: dict[Pod, None] = {}
        self.stale_sources: dict[Source, None] = {}
        self.stale_hosts: dict[str, None] = {}
        self.stale_namespaces: dict[str, None] = {}
        # By key of a gateway: what names it.
        self._users: dict[str, set[Template | Source | Host | str]] = {}

    def home(self, namespace: str) -> Home:
        """The namespace."""
        found = self.homes.get(namespace)
        if found is None:
            found = self.homes[namespace] = Home()
        return found

    def forget(self, namespace: str) -> None:
        """Drop a namespace if nothing of it is left."""
        if namespace in self.homes and self.homes[namespace].is_empty():
            del self.homes[namespace]

    def labels(self, namespace: str) -> dict[str, str]:
        """The namespace's labels."""
        found = self.homes.get(namespace)
        return {} if found is None else found.labels

    def add_user(self, user: Template | Source | Host | str, keys: Iterable[str]) -> None:
        """`user` (str: a namespace) depends on these gateways."""
        for key in keys:
            self._users.setdefault(key, set()).add(user)

    def discard_user(self, user: Template | Source | Host | str, keys: Iterable[str]) -> None:
        """It does not any more."""
        for key in keys:
            users = self._users.get(key)
            if users is not None:
                users.discard(user)
                if not users:
                    del self._users[key]

    def touch(self, thing: Template | Source | Host | str) -> None:
        """Something that `thing` (str: a whole namespace) follows from has changed."""
        if isinstance(thing, Template):
            self.stale_templates[thing] = None
        elif isinstance(thing, Source):
            self.stale_sources[thing] = None
        elif isinstance(thing, Host):
            self.stale_hosts[thing.hostname] = None
        else:
            home = self.homes.get(thing)
            if home is not None:
                self.touch_workloads(thing)
                self.stale_hosts.update(dict.fromkeys(host.hostname for host in home.hosts))

    def touch_workloads(self, namespace: str) -> None:
        """All workloads of a namespace ("": of every one)."""
        homes = self.homes.values() if namespace == "" else [self.homes[namespace]] if namespace in self.homes else []
        for home in homes:
            self.stale_templates.update(dict.fromkeys(home.templates.values()))
            self.stale_sources.update(dict.fromkeys(home.sources))

    def touch_users(self, gateway: str) -> None:
        """All that depends on a gateway."""
        for user in list(self._users.get(gateway, ())):
            self.touch(user)

    def locate(self, node: str, locality: Locality) -> None:
        """A node stands there; its pods are concerned if it did not."""
        if locality != self.localities.get(node, NOWHERE):
            if locality == NOWHERE:
                del self.localities[node]
            else:
                self.localities[node] = locality
            self.stale_pods.update(dict.fromkeys(self.nodes.get(node, ())))

    def touch_selected(self, host: Host) -> None:
        """The endpoints that a host's selector finds."""
        home = self.homes.get(host.namespace)
        if home is not None:
            for thing in home.selectable.selected(host.selector):
                self.touch(thing)

    def selecting(self, namespace: str, labels: Mapping[str, str]) -> list[Host]:
        """The hosts that have what has these labels as an endpoint, in the order of their keys."""
        home = self.homes.get(namespace)
        if home is None:
            return []
        found = [host for host in home.selectors.selecting(labels) if self.hosts.counts(host)]
        return sorted(found, key=lambda host: host.hostname)
