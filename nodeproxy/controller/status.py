"""Tells an operator, in a resource's own status, whether it is enforced as it is written.

The condition `nodeproxy.io/Accepted` is True, or False with what is done instead; istiod's own condition (`ZtunnelAccepted`) and
all others are left alone.  Invariants: only the leader writes, only what differs, on top of the version that was read, and at a
bounded rate.  It must not know how a resource is translated.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from nodeproxy.controller.api import Api
from nodeproxy.controller.bucket import Bucket
from nodeproxy.errors import ClusterError
from nodeproxy.translate.notes import Note

log = logging.getLogger(__name__)

TYPE = "nodeproxy.io/Accepted"
KINDS = ("AuthorizationPolicy", "PeerAuthentication", "ServiceEntry")
WRITES_PER_S = 20.0  # a read and a write each, some 5 ms of the API server
BURST = 50.0
# Changes of many resources are looked at together, for each look is at all of them [10,000: some 50 ms].
SETTLE_S = 1.0
LOOK_S = 5.0  # when what failed is looked at again
# Of a resource whose status can't be written, or that somebody else writes as well.
FIRST_PAUSE_S, MAX_PAUSE_S = 5.0, 300.0
# A condition's message may have 32,768 characters (meta/v1 Condition); nobody reads as many.
MAX_MESSAGE = 4096


class Verdict(NamedTuple):
    """What a condition says."""

    status: str
    reason: str
    message: str
    generation: int


class StatusWriter:
    """Writes the conditions.

    notes: all that there are, as the translator says.  path: where a resource of a kind is.  clock: seconds, monotonic.
    """

    def __init__(
        self,
        api: Api,
        notes: Callable[[], Sequence[Note]],
        path: Callable[[str, str], str],
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.writes: Counter[str] = Counter({"written": 0, "unchanged": 0, "failed": 0})
        self._api = api
        self._notes = notes
        self._path = path
        self._clock = clock
        self._now = now
        self._bucket = Bucket(WRITES_PER_S, BURST, clock)
        self._generations: dict[tuple[str, str], int] = {}
        self._written: dict[tuple[str, str], int] = {}  # hash of the verdict that stands there
        self._pauses: dict[tuple[str, str], tuple[float, float]] = {}  # until when, and how long it is
        self._changed = asyncio.Event()

    def observe(self, kind: str, key: str, resource: Any) -> None:
        """A resource of one of `KINDS` is as it is now, or gone (None)."""
        if resource is None:
            for table in (self._generations, self._written, self._pauses):
                table.pop((kind, key), None)
        else:
            if self._generations.get((kind, key)) == resource.metadata.generation:
                return  # a status, ours among them
            self._generations[kind, key] = resource.metadata.generation
        self._changed.set()

    async def run(self, is_leader: Callable[[], bool]) -> None:
        """Write what differs, while we are the leader; returns never."""
        while True:
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._changed.wait()
            except TimeoutError:
                pass  # what failed may be due again
            await asyncio.sleep(SETTLE_S)
            self._changed.clear()
            if is_leader():
                await self.write(is_leader)
            else:
                self._written.clear()  # what the leader writes meanwhile is not known here

    async def write(self, is_leader: Callable[[], bool] = lambda: True) -> None:
        """Write once what differs and is due."""
        for (kind, key), verdict in self._due():
            while not self._bucket.take():
                await asyncio.sleep(self._bucket.wait_s())
            if not is_leader():
                return
            if (kind, key) in self._generations:
                await self._write(kind, key, verdict)

    def _due(self) -> list[tuple[tuple[str, str], Verdict]]:
        notes: defaultdict[tuple[str, str], list[Note]] = defaultdict(list)
        for note in self._notes():
            notes[note.kind, note.key].append(note)
        due = []
        for place, generation in self._generations.items():
            verdict = _verdict(notes.get(place, ()), generation)
            if self._written.get(place) != hash(verdict) and self._clock() >= self._pauses.get(place, (0.0, 0.0))[0]:
                due.append((place, verdict))
        return due

    async def _write(self, kind: str, key: str, verdict: Verdict) -> None:
        path = self._path(kind, key)
        try:
            body = _patch(await self._api.request("GET", path), verdict, self._now())
            if body is not None:
                await self._api.request("PATCH", f"{path}/status", body=body, content_type="application/merge-patch+json")
        except (ClusterError, msgspec.MsgspecError) as exc:
            if isinstance(exc, ClusterError) and exc.status == 404:
                return  # it has gone, as its watch will tell
            self._failed((kind, key), exc)
            return
        self._pauses.pop((kind, key), None)
        self._written[kind, key] = hash(verdict)
        self.writes["unchanged" if body is None else "written"] += 1

    def _failed(self, place: tuple[str, str], exc: Exception) -> None:
        self.writes["failed"] += 1
        _, before = self._pauses.get(place, (0.0, 0.0))
        length_s = min(2 * before, MAX_PAUSE_S) if before else FIRST_PAUSE_S
        self._pauses[place] = (self._clock() + length_s, length_s)
        if not before:
            log.warning("the status of %s %s can't be written: %s; it is tried again", *place, exc)


class _Metadata(msgspec.Struct, rename="camel"):
    resource_version: str


class _Status(msgspec.Struct):
    conditions: list[dict[str, Any]] | None = None


class _Resource(msgspec.Struct):
    metadata: _Metadata
    status: _Status | None = None


def _verdict(notes: Sequence[Note], generation: int) -> Verdict:
    if not notes:
        return Verdict("True", "Accepted", "enforced as it is written", generation)
    message = "; ".join(f"{note.field} {note.message}: {note.consequence}" for note in notes)
    if len(message) > MAX_MESSAGE:
        message = message[: MAX_MESSAGE - 1] + "…"
    return Verdict("False", "NotAsWritten", message, generation)


def _patch(content: bytes, verdict: Verdict, now: datetime) -> bytes | None:
    """The merge patch that has the resource say so, None if it does.  Of a list, a merge patch needs all."""
    resource = msgspec.json.decode(content, type=_Resource)
    conditions = list((resource.status.conditions if resource.status else None) or ())
    former = next((each for each in conditions if each.get("type") == TYPE), None)
    new = {
        "type": TYPE,
        "status": verdict.status,
        "reason": verdict.reason,
        "message": verdict.message,
        "observedGeneration": verdict.generation,
        "lastTransitionTime": now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    if former is not None:
        if former.get("status") == verdict.status and former.get("lastTransitionTime"):
            new["lastTransitionTime"] = former["lastTransitionTime"]
        # Istio's definitions let the generation be a text, too.
        if {**former, "observedGeneration": str(former.get("observedGeneration"))} == {
            **new,
            "observedGeneration": str(verdict.generation),
        }:
            return None
        conditions[conditions.index(former)] = new
    else:
        conditions.append(new)
    return msgspec.json.encode(
        {"metadata": {"resourceVersion": resource.metadata.resource_version}, "status": {"conditions": conditions}}
    )
