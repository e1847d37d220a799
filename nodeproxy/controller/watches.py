"""The cluster's resources, from the API server into the translator, and what comes of them into the publisher.

Invariants: nothing is published before every kind has been told once, for a mesh without its policies is an open one; what one
resource does to the translation stays with that resource.  It must not know what a kind means, nor how it is served.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from nodeproxy.kube.client import KubeClient
from nodeproxy.kube.reflector import Reflector
from nodeproxy.kube.statistics import WatchStatistics
from nodeproxy.model.delta import Delta
from nodeproxy.translate.objects import KINDS, Kind, Resource

log = logging.getLogger(__name__)

# A page of pods takes some 100 MB while it is read; the lists of small kinds need not wait for the pods'.
MAX_LISTS = 2
# Changes that come together are told together: a rollout's pod and its endpoint are some milliseconds apart.
COLLECT_S = 0.01
# Workloads at a time, so that the loop gets its turn in between: some 10 ms.
CHUNK = 500

Observer = Callable[[str, Any], None]
_NOTHING = Delta()


class Translation(Protocol):
    """`translate.translator.Translator`, as far as it is used here."""

    def apply(self, kind: str, key: str, resource: Resource | None) -> None:
        """A resource is new, changed or gone."""

    def take(self, limit: int | None = None) -> Delta:
        """What changed since the last call."""


class Output(Protocol):
    """`publisher.Publisher`, as far as it is used here."""

    def publish(self, delta: Delta) -> None:
        """Take over what has changed."""

    def start(self) -> None:
        """What was published is the whole state."""


class Watches:
    """Follows all kinds.

    observers: who else is told of a kind's resources, by its name.  synced: who is told that all of a kind's have been told.
    """

    def __init__(
        self,
        client: KubeClient,
        translation: Translation,
        output: Output,
        *,
        observers: Mapping[str, Iterable[Observer]],
        synced: Mapping[str, Callable[[], None]],
        kinds: Mapping[str, Kind] = KINDS,
    ) -> None:
        self.failures: Counter[str] = Counter()  # resources that the translation failed on, by kind
        self.started = False
        self._translation = translation
        self._output = output
        self._observers = {kind: tuple(several) for kind, several in observers.items()}
        self._synced = synced
        self._changed = asyncio.Event()
        lists = asyncio.Semaphore(MAX_LISTS)
        self._reflectors = {name: self._reflector(client, kind, lists) for name, kind in kinds.items()}

    async def run(self) -> None:
        """Follow and publish; returns never.  What is raised here is a mistake of this program."""
        async with asyncio.TaskGroup() as group:
            for name, reflector in self._reflectors.items():
                group.create_task(reflector.run(), name=f"watch {name}")
            group.create_task(self._publish(), name="publish")

    def unsynced(self) -> list[str]:
        """The kinds that have not been told of yet."""
        return [name for name, reflector in self._reflectors.items() if not reflector.statistics.synced]

    def statistics(self) -> dict[str, WatchStatistics]:
        """By kind."""
        return {name: reflector.statistics for name, reflector in self._reflectors.items()}

    def path(self, kind: str, key: str) -> str:
        """Where the API server has a resource, in the version that is read."""
        namespace, slash, name = key.rpartition("/")
        base, _, plural = self._reflectors[kind].path.rpartition("/")
        return f"{base}/namespaces/{namespace}/{plural}/{name}" if slash else f"{base}/{plural}/{name}"

    def _reflector(self, client: KubeClient, kind: Kind, lists: asyncio.Semaphore) -> Reflector[Any]:
        def on_synced() -> None:
            log.info("%s: all %d are known", kind.name, self._reflectors[kind.name].statistics.objects)
            if kind.name in self._synced:
                self._synced[kind.name]()
            self._changed.set()

        return Reflector(
            client,
            [kind.path(version) for version in kind.versions],
            kind.type,
            on_change=lambda key, resource: self._apply(kind.name, key, resource),
            on_synced=on_synced,
            lists=lists,
            definition=f"{kind.plural}.{kind.group}" if kind.optional else "",
        )

    def _apply(self, kind: str, key: str, resource: Resource | None) -> None:
        try:
            self._translation.apply(kind, key, resource)
        except (
            Exception
        ):  # whatever it is, thousands of other resources do not stop for it: it is counted, and told with its trace
            self.failures[kind] += 1
            log.exception("%s %s: the translation failed on it; please report this, with the resource", kind, key)
        for observer in self._observers.get(kind, ()):
            observer(key, resource)
        self._changed.set()

    async def _publish(self) -> None:
        while True:
            await self._changed.wait()
            await asyncio.sleep(COLLECT_S)
            self._changed.clear()
            if not self.started and self.unsynced():
                continue
            while (delta := self._translation.take(CHUNK)) != _NOTHING:
                self._output.publish(delta)
                await asyncio.sleep(0)
            if not self.started:
                self.started = True
                self._output.start()
                log.info("the whole cluster is known: the state is served from now on")
