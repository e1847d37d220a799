"""Follows one resource of the API server: a paged list, then a watch from there on, for as long as the process lives.

Invariants.  Each object is told once a version, however often connections break and lists are repeated.  What is known is given
up only when the server says that it is gone: an error, garbage, or a server that is away leaves the last state as it is.  Kept
are keys and versions, not objects.  It must not know what the objects mean, nor what is done with them.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

import msgspec

from nodeproxy.errors import ClusterError, OversizedAnswerError
from nodeproxy.kube import answers
from nodeproxy.kube.answers import GarbageError
from nodeproxy.kube.backoff import Backoff
from nodeproxy.kube.client import KubeClient
from nodeproxy.kube.statistics import Trouble, WatchStatistics

log = logging.getLogger(__name__)

PAGE = 500  # objects; client-go's default, 5 MB of pods
TURN = 50  # objects, then others of the loop have theirs: a pod is 0.13 ms, with its translation [measured]
PAGE_TIMEOUT_S = 60.0  # the API server's own --request-timeout
# The server is asked to end a watch after this to twice this, as client-go's are, so that they wander to other replicas of it.
WATCH_S = 300
WATCH_GRACE_S = 30.0  # for a server that does not end it
SHORT_WATCH_S = 5.0  # one that ends sooner, and without a word, is an error and not to be repeated at once
# How soon a definition that is installed later is found: half to all of this.  The question costs the server next to nothing.
ABSENT_POLL_S = 10.0
# A watch that failed is repeated from the version before it, for garbage may have hidden an event and lists are dear.  But what
# comes again and again at one version is led past by a list: after so many, weighed by how likely it is to come again.
MAX_REPEATS = 8
_WEIGHTS = {Trouble.GARBAGE: 4, Trouble.OVERSIZED: 4, Trouble.REFUSED: 4, Trouble.FAILED: 1}
SAY_AGAIN_S = 60.0  # a trouble that goes on is a line a minute and kind, and counted each time
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/"

T = TypeVar("T")


class Reflector(Generic[T]):
    """Follows one resource.  `run` it in a task; it ends by being cancelled.

    paths: of the collection, one for each version that `type_` can be decoded from, best first.
    query: what narrows the collection, as {"fieldSelector": "metadata.name=x"}.
    definition: the name of its CustomResourceDefinition, which a cluster need not have; "" for what every cluster has.
    on_change: called with an object's key ("namespace/name", or "name") and the object, or None once it is gone.
    on_synced: called once, when everything was told for the first time, or there is no such definition.
    lists: how many reflectors may list at once, for that is what costs memory and the server's time.
    first_wait_s: after a failure; it doubles.  absent_poll_s: how often a definition that is not there is looked for.
    """

    def __init__(
        self,
        client: KubeClient,
        paths: Sequence[str],
        type_: type[T],
        *,
        on_change: Callable[[str, T | None], None],
        on_synced: Callable[[], None],
        lists: asyncio.Semaphore,
        query: Mapping[str, str] | None = None,
        definition: str = "",
        randomly: Callable[[], float] = random.random,
        first_wait_s: float = 0.2,
        absent_poll_s: float = ABSENT_POLL_S,
    ) -> None:
        self.statistics = WatchStatistics()
        self._client = client
        self._paths = tuple(paths)
        self._path = self._paths[0]
        self._decoder = msgspec.json.Decoder(type_)
        self._on_change = on_change
        self._on_synced = on_synced
        self._lists = lists
        self._query = dict(query or {})
        self._definition = definition
        self._randomly = randomly
        self._backoff = Backoff(randomly, first_s=first_wait_s)
        self._absent_poll_s = absent_poll_s
        self._known: dict[str, str] = {}  # key → version
        self._version = ""  # from where to watch; "": list first
        self._page = PAGE
        self._repeats = 0
        self._said, self._said_at = "", 0.0  # the trouble that was logged last, until it is over

    @property
    def path(self) -> str:
        """Of the collection, in the version that is read."""
        return self._path

    async def run(self) -> None:
        """Follow the resource; returns never."""
        while True:
            try:
                if not self._version and not await self._list():
                    await asyncio.sleep(self._absent_poll_s * (0.5 + self._randomly() / 2))
                    continue
                await self._watch()
            except ClusterError as exc:
                await self._recover(exc)

    async def _recover(self, exc: ClusterError) -> None:
        trouble = _trouble(exc)
        self.statistics.troubles[trouble] += 1
        self._repeats += _WEIGHTS.get(trouble, 0)
        if exc.status in (404, 410) or self._repeats >= MAX_REPEATS:
            self._version, self._repeats = "", 0
        wait_s = self._backoff.next_s(exc.retry_after_s)
        state = "the last state stays in use" if self.statistics.synced else "nothing is known yet"
        now = time.monotonic()
        if str(exc) != self._said or now >= self._said_at + SAY_AGAIN_S:
            self._said, self._said_at = str(exc), now
            log.log(_LEVELS.get(trouble, logging.WARNING), "%s; %s; next try in %.1f s", exc, state, wait_s)
        await asyncio.sleep(wait_s)

    # ── list ──

    async def _list(self) -> bool:
        """Tell what differs from what is known; False if there is no such resource."""
        async with self._lists:
            for path in dict.fromkeys((self._path, *self._paths)):
                try:
                    self._version = await self._pages(path)
                except ClusterError as exc:
                    if exc.status != 404:
                        raise
                else:
                    self._path = path
                    self._synced(present=True)
                    return True
        await self._confirm_absence()
        for key in list(self._known):
            self._forget(key)
        self._synced(present=False)
        return False

    async def _pages(self, path: str) -> str:
        """All pages of a list; returns the version that they show.  Any error has it begin anew: what was told stays told."""
        self.statistics.lists += 1
        seen: set[str] = set()
        complete, more = True, ""
        while True:
            query = {**self._query, "limit": str(self._page), **({"continue": more} if more else {})}
            try:
                page = answers.page(await self._client.request("GET", path, query=query, timeout_s=PAGE_TIMEOUT_S), path)
            except OversizedAnswerError:
                if self._page == 1:
                    raise
                self._page //= 2
                continue
            self.statistics.heard_at = time.monotonic()
            for number, raw in enumerate(page.items or ()):
                if number % TURN == 0:
                    await asyncio.sleep(0)
                try:
                    head = answers.metadata(raw, path)
                except GarbageError as exc:
                    complete = False
                    self._unusable(exc)
                    continue
                seen.add(head.key)
                self._tell(head, raw)
            more = page.metadata.continue_
            if not more:
                break
        # An object without a readable name may be any of those that are missing: then none of them counts as gone.
        for key in self._known.keys() - seen if complete else ():
            self._forget(key)
        return page.metadata.resource_version

    async def _confirm_absence(self) -> None:
        """A resource is absent if its definition is: 404 on its path alone may mean a server that is just starting."""
        if not self._definition:
            raise ClusterError(f"{self._path}: the API server says 404 to what every cluster has; is it Kubernetes?", 404)
        try:
            await self._client.request("GET", DEFINITIONS + self._definition)
        except ClusterError as exc:
            if exc.status != 404:
                raise
            self.statistics.heard_at = time.monotonic()
        else:
            raise ClusterError(
                f"{self._definition} is defined, but none of {', '.join(self._paths)} is served; wait until it is, or install a "
                f"release of the definition that has one of these versions",
                404,
            )

    def _synced(self, present: bool) -> None:
        if present != self.statistics.present:
            log.info("%s is %s", self._definition or self._path, "defined" if present else "not defined: nothing is read of it")
        self.statistics.present = present
        if not self.statistics.synced:
            self.statistics.synced = True
            self._on_synced()

    # ── watch ──

    async def _watch(self) -> None:
        seconds = int(WATCH_S * (1 + self._randomly()))
        query = {
            **self._query,
            "watch": "1",
            "resourceVersion": self._version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(seconds),
        }
        began, events = time.monotonic(), 0
        async with self._client.stream(self._path, query, timeout_s=seconds + WATCH_GRACE_S) as lines:
            async for line in lines:
                self._event(line)
                events += 1
                if self._said:
                    log.info("watch of %s: it goes on", self._path)
                    self._said = ""
                self._repeats = 0
                self._backoff.reset()
                self.statistics.heard_at = time.monotonic()
        if not events and time.monotonic() - began < SHORT_WATCH_S:
            raise ClusterError(f"watch of {self._path}: it ended at once, and without a word")

    def _event(self, line: bytes) -> None:
        event = answers.event(line, self._path)
        if event.type == "BOOKMARK":
            self._version = answers.bookmark(event.object, self._path)
            return
        if event.type == "ERROR":
            raise answers.failure(event.object, self._path)
        if event.type not in ("ADDED", "MODIFIED", "DELETED"):
            raise GarbageError(f"watch of {self._path}: there is no event {event.type!r}")
        head = answers.metadata(event.object, self._path)
        self.statistics.events += 1
        if event.type == "DELETED":
            self._forget(head.key)
        else:
            self._tell(head, event.object)
        self._version = head.resource_version

    # ── telling ──

    def _tell(self, head: answers.Metadata, raw: msgspec.Raw) -> None:
        key = head.key
        if head.resource_version and self._known.get(key) == head.resource_version:
            return
        try:
            resource = self._decoder.decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            self._known[key] = head.resource_version
            self._unusable(ClusterError(f"{self._path}: {key} can't be read: {exc}"))
            return
        self._known[key] = head.resource_version
        self.statistics.objects = len(self._known)
        self._on_change(key, resource)

    def _forget(self, key: str) -> None:
        if self._known.pop(key, None) is not None:
            self.statistics.objects = len(self._known)
            self._on_change(key, None)

    def _unusable(self, exc: ClusterError) -> None:
        self.statistics.unusable += 1
        log.error("%s; what was known of it before stays in use, mend the object", exc)


_LEVELS = {Trouble.GONE: logging.INFO}  # ordinary life: history is compacted every five minutes


def _trouble(exc: ClusterError) -> Trouble:
    if isinstance(exc, GarbageError):
        return Trouble.GARBAGE
    if isinstance(exc, OversizedAnswerError):
        return Trouble.OVERSIZED
    if not exc.status:
        return Trouble.UNREACHED
    by_status = {401: Trouble.DENIED, 403: Trouble.DENIED, 410: Trouble.GONE, 429: Trouble.THROTTLED}
    return by_status.get(exc.status, Trouble.FAILED if exc.status >= 500 else Trouble.REFUSED)
