"""Publishes the CA's roots: a ConfigMap in each namespace that needs it, repaired when somebody edits or deletes it.

It is written by server-side apply, so that the controller's role can name the one ConfigMap that it may create.  Other keys of it
are left alone, and nothing is removed when a namespace needs it no more: pods may still have it mounted.  Invariants: only the
leader writes, only what differs, and at a bounded rate, also where somebody else writes the same ConfigMap without end.  It must
not know which namespaces need it, nor how ConfigMaps are watched.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping

import msgspec

from nodeproxy.controller.api import Api
from nodeproxy.controller.bucket import Bucket
from nodeproxy.errors import ClusterError

log = logging.getLogger(__name__)

DEFAULT_NAME = "nodeproxy-ca-root-cert"
KEY = "root-cert.pem"
FIELD_MANAGER = "nodeproxy-controller"
# A new root in 1,000 namespaces takes 50 s; each write is some 2 ms of the API server.
WRITES_PER_S = 20.0
BURST = 50.0
# How often what failed is looked at again, and that we have become the leader is noticed.
LOOK_S = 1.0
# Between two writes in one namespace; it doubles while they follow one another, and begins anew after a calm.
FIRST_PAUSE_S, MAX_PAUSE_S = 1.0, 300.0
CALM_S = 60.0


class RootConfigMap(msgspec.Struct, frozen=True):
    """What is read of the ConfigMap."""

    data: dict[str, str] | None = None


class PublisherStatistics(msgspec.Struct, frozen=True):
    """writes: by what came of them ("written", "failed").  namespaces: that need the roots.  stale: of them, those without."""

    writes: Mapping[str, int]
    namespaces: int
    stale: int


class _Pause(msgspec.Struct, frozen=True):
    until: float
    length_s: float


class RootPublisher:
    """Keeps the ConfigMaps as they must be.  roots: the bundle in PEM, None before there is one.  clock: seconds, monotonic."""

    def __init__(
        self,
        api: Api,
        roots: Callable[[], bytes | None],
        *,
        name: str = DEFAULT_NAME,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._roots = roots
        self._name = name
        self._clock = clock
        self._bucket = Bucket(WRITES_PER_S, BURST, clock)
        self._needed: set[str] = set()
        self._present: dict[str, int] = {}  # namespace → hash of what the ConfigMap holds; a bundle for each would be megabytes
        self._pauses: dict[str, _Pause] = {}
        self._writes: Counter[str] = Counter()
        self._synced = False
        self._changed = asyncio.Event()

    def query(self) -> dict[str, str]:
        """What the watch of `/api/v1/configmaps` asks for: it tells `observe` and `observed_all`."""
        return {"fieldSelector": f"metadata.name={self._name}"}

    def need(self, namespace: str, needed: bool) -> None:
        """Say whether a namespace needs the roots; saying it twice is saying it once."""
        if needed:
            self._needed.add(namespace)
        else:
            self._needed.discard(namespace)
            self._pauses.pop(namespace, None)
        self._changed.set()

    def observe(self, key: str, found: RootConfigMap | None) -> None:
        """A ConfigMap ("namespace/name") as it is, None if it is gone."""
        namespace, _, name = key.partition("/")
        if name != self._name:
            return
        if found is None:
            self._present.pop(namespace, None)
        else:
            self._present[namespace] = hash((found.data or {}).get(KEY, ""))
        self._changed.set()

    def observed_all(self) -> None:
        """All ConfigMaps that there were have been told; before that nothing is written."""
        self._synced = True
        self._changed.set()

    def changed(self) -> None:
        """The roots are others now."""
        self._pauses.clear()
        self._changed.set()

    def statistics(self) -> PublisherStatistics:
        """For metrics."""
        return PublisherStatistics(dict(self._writes), len(self._needed), len(self._stale()))

    async def run(self, is_leader: Callable[[], bool]) -> None:
        """Write what differs, while we are the leader; returns never."""
        while True:
            self._changed.clear()
            if self._synced and is_leader():
                await self.publish(is_leader)
            try:
                # Not wait_for: Python 3.11's loses a cancellation that comes as the event is set.
                async with asyncio.timeout(LOOK_S):
                    await self._changed.wait()
            except TimeoutError:
                pass  # what failed may be due again

    async def publish(self, is_leader: Callable[[], bool] = lambda: True) -> None:
        """Write once what differs and is due."""
        for namespace in sorted(self._stale()):
            pause = self._pauses.get(namespace)
            if pause is not None and self._clock() < pause.until:
                continue
            while not self._bucket.take():
                await asyncio.sleep(self._bucket.wait_s())
            roots = self._roots()
            if not is_leader() or roots is None:
                return
            if namespace in self._needed:
                await self._write(namespace, roots.decode())

    def _stale(self) -> list[str]:
        roots = self._roots()
        if roots is None:
            return list(self._needed)
        wanted = hash(roots.decode())
        return [namespace for namespace in self._needed if self._present.get(namespace) != wanted]

    async def _write(self, namespace: str, roots: str) -> None:
        body = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": self._name,
                "namespace": namespace,
                "labels": {"app.kubernetes.io/managed-by": FIELD_MANAGER},
            },
            "data": {KEY: roots},
        }
        # Before it is sent, for the watch may tell of what comes after it, a deletion for instance, before the answer is here.
        self._present[namespace] = hash(roots)
        try:
            await self._api.request(
                "PATCH",
                f"/api/v1/namespaces/{namespace}/configmaps/{self._name}",
                query={"fieldManager": FIELD_MANAGER, "force": "true"},
                body=msgspec.json.encode(body),
                content_type="application/apply-patch+yaml",
            )
        except ClusterError as exc:  # a namespace that is ending, for instance, which its watch tells of sooner or later
            self._writes["failed"] += 1
            self._present.pop(namespace, None)
            if self._pause(namespace, exc.retry_after_s or 0.0):
                log.warning("the roots can't be published in namespace %s: %s; it is tried again", namespace, exc)
            return
        self._writes["written"] += 1
        if not self._pause(namespace):
            log.warning("the roots in namespace %s are written again: who else writes ConfigMap %s?", namespace, self._name)

    def _pause(self, namespace: str, at_least_s: float = 0.0) -> bool:
        """Leave the namespace alone for a while; whether it is the first time."""
        now, before = self._clock(), self._pauses.get(namespace)
        first = before is None or now >= before.until + CALM_S
        length_s = FIRST_PAUSE_S if before is None or first else min(2 * before.length_s, MAX_PAUSE_S)
        self._pauses[namespace] = _Pause(now + max(length_s, at_least_s), length_s)
        return first
