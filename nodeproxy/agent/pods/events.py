"""Tells people of pods by Kubernetes' Events: `kubectl describe pod` shows them.

To tell costs an entry of a dictionary and waits for nothing.  What is told again is counted in the Event that there is, once a
minute.  Invariants: nothing here can fail or hold up whoever tells; what is kept is bounded in all and for each pod, so that a
pod that fails again and again crowds out nobody; the API server gets ten requests a second from a node at most, and fewer the
longer it does not take them; warnings go first.  It must not know why something is told.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from nodeproxy.agent.pods.event_api import Answer, Outcome
from nodeproxy.observe.event_metrics import EventStatistics

log = logging.getLogger(__name__)

CONTROLLER, ACTION = "nodeproxy.io/agent", "Steer"
# Two a pod on a node with as many pods as a node may have, and some kilobytes each.
MAX_EVENTS = 1000
MAX_OF_A_POD = 10
# A repeated Event is written so often at most, and after so long a new one is made of it, as client-go's recorder does.  What
# could not be written by then tells of something that is over.
REPEAT_S = 60.0
FORGET_S = 600.0
PACE_S = 0.1
FIRST_PAUSE_S, MAX_PAUSE_S = 1.0, 60.0
# Kubernetes' own limits (k8s.io/kubernetes/pkg/apis/core/validation/events.go).
MAX_NOTE_BYTES = 1024
MAX_REASON = MAX_INSTANCE = 128
# A name has 253 characters, behind the pod's stand a dot and 16 digits.
_MAX_POD_NAME = 230
_RESULTS = ("written", "refused", "failed", "stale", "dropped_full", "dropped_pod")


class Api(Protocol):
    """`event_api.EventApi`."""

    async def create(self, namespace: str, event: dict[str, Any]) -> Answer:
        """A new Event."""
        ...

    async def change(self, namespace: str, name: str, fields: dict[str, Any]) -> Answer:
        """Other values for some of an Event's fields."""
        ...

    async def close(self) -> None:
        """No more requests for now."""
        ...


class _Told(msgspec.Struct, frozen=True):
    """What is the same Event when it is told again."""

    namespace: str
    name: str
    pod_uid: str
    reason: str
    message: str
    warning: bool


class _Event(msgspec.Struct):
    """times: when it was told first and last, seconds since the epoch.  event: its name in the API server, "" before it is there.

    due: when it may be written next, of the monotonic clock, as is `last`.
    """

    first_time: float
    last_time: float
    last: float
    count: int = 0
    written: int = 0
    event: str = ""
    due: float = 0.0


class Events:
    """The Events of one node.  api: None, nobody is told.  clock: seconds, monotonic; wall: since the epoch."""

    def __init__(
        self, node: str, api: Api | None, *, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time
    ) -> None:
        self._node = node
        self._api = api
        self._clock, self._wall = clock, wall
        self._events: OrderedDict[_Told, _Event] = OrderedDict()  # least recently told first
        self._waiting: dict[_Told, None] = {}
        self._of_pod: Counter[tuple[str, str]] = Counter()
        self._results: Counter[str] = Counter(dict.fromkeys(_RESULTS, 0))
        self._woken = asyncio.Event()
        self._pause_s = 0.0

    @property
    def on(self) -> bool:
        """Whether anybody is told."""
        return self._api is not None

    def tell(self, namespace: str, name: str, pod_uid: str, reason: str, message: str, warning: bool) -> None:
        """Something that whoever looks at this pod must know.

        pod_uid: as the kubelet calls the pod.  reason: in CamelCase, one of few.  message: a sentence for people, the same when
        the same happens again.  warning: something is not as it should be.
        """
        if self._api is None:
            return
        told = _Told(namespace, name, pod_uid, reason[:MAX_REASON], _cut(message), warning)
        now, wall = self._clock(), self._wall()
        self._forget(now)
        found = self._events.get(told)
        if found is None:
            if not self._has_room(told):
                return
            found = self._events[told] = _Event(wall, wall, now, due=now)
            self._of_pod[namespace, name] += 1
        self._events.move_to_end(told)
        found.count += 1
        found.last_time, found.last = wall, now
        self._waiting[told] = None
        self._woken.set()

    def statistics(self) -> EventStatistics:
        """For metrics."""
        return EventStatistics(results=dict(self._results), waiting=len(self._waiting))

    async def run(self) -> None:
        """Write what is told; returns never."""
        api = self._api
        if api is None:
            await asyncio.Event().wait()
            return
        try:
            while True:
                told, found = await self._next(api)
                answer = await self._write(api, told, found)
                await asyncio.sleep(self._settle(told, found, answer))
        finally:
            await api.close()

    async def _next(self, api: Api) -> tuple[_Told, _Event]:
        """One that is due: warnings first, and else in the order in which they were told."""
        while True:
            now = self._clock()
            self._forget(now)
            due = [told for told in self._waiting if self._events[told].due <= now]
            if due:
                told = next((each for each in due if each.warning), due[0])
                return told, self._events[told]
            self._woken.clear()
            wait_s = min((self._events[told].due - now for told in self._waiting), default=None)
            try:
                async with asyncio.timeout(wait_s):
                    # Nothing to write for longer than a connection is worth keeping.
                    if wait_s is None or wait_s > PACE_S:
                        await api.close()
                    await self._woken.wait()
            except TimeoutError:
                pass  # it is due

    async def _write(self, api: Api, told: _Told, found: _Event) -> Answer:
        count = found.count
        # "series.count: should be at least 2"
        series = {"series": {"count": count, "lastObservedTime": _micro_time(found.last_time)}} if count > 1 else {}
        answer = Answer(Outcome.GONE)
        if found.event:
            answer = await api.change(told.namespace, found.event, series)
        if answer.outcome is Outcome.GONE:  # Events end after an hour
            event = f"{told.name[:_MAX_POD_NAME].rstrip('.-')}.{secrets.token_hex(8)}"
            answer = await api.create(told.namespace, self._body(told, event, _micro_time(found.first_time)) | series)
            if answer.outcome is Outcome.DONE:
                found.event = event
        if answer.outcome is Outcome.DONE:
            found.written = count
        return answer

    def _body(self, told: _Told, event: str, first_time: str) -> dict[str, Any]:
        """As the recorders of Kubernetes' own components write it."""
        pod = {"apiVersion": "v1", "kind": "Pod", "namespace": told.namespace, "name": told.name, "uid": told.pod_uid}
        return {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": event, "namespace": told.namespace},
            "regarding": pod,
            "action": ACTION,
            "reason": told.reason,
            "note": told.message,
            "type": "Warning" if told.warning else "Normal",
            "eventTime": first_time,
            "reportingController": CONTROLLER,
            "reportingInstance": self._node[:MAX_INSTANCE],
        }

    def _settle(self, told: _Told, found: _Event, answer: Answer) -> float:
        """What follows from an answer; how long to wait before the next request, in seconds."""
        known = self._events.get(told) is found  # it may have been forgotten meanwhile
        if answer.outcome is Outcome.LATER:
            self._results["failed"] += 1
            if known:
                del self._waiting[told]
                self._waiting[told] = None  # others first: it may be this one that the server does not get along with
            if not self._pause_s:
                log.warning("Events on pods can't be written, and wait: %s", answer.why)
            self._pause_s = min(max(self._pause_s * 2, FIRST_PAUSE_S), MAX_PAUSE_S)
            return min(max(self._pause_s * random.uniform(0.5, 1.0), answer.retry_after_s), MAX_PAUSE_S)
        if self._pause_s:
            self._pause_s = 0.0
            log.info("Events on pods can be written again")
        found.due = self._clock() + REPEAT_S
        if answer.outcome is Outcome.DONE:
            self._results["written"] += 1
        else:
            self._results["refused"] += 1
            log.warning("no Event %s on pod %s/%s: %s", told.reason, told.namespace, told.name, answer.why)
        if known and (answer.outcome is not Outcome.DONE or found.written == found.count):  # else it was told again meanwhile
            del self._waiting[told]
        return PACE_S

    def _has_room(self, told: _Told) -> bool:
        if self._of_pod[told.namespace, told.name] >= MAX_OF_A_POD:
            self._results["dropped_pod"] += 1
            return False
        if len(self._events) >= MAX_EVENTS:
            known = next((each for each in self._events if each not in self._waiting), None)
            if known is None:
                self._results["dropped_full"] += 1
                known = next((each for each in self._events if not each.warning), None) if told.warning else None
            if known is None:
                return False
            self._drop(known)
        return True

    def _forget(self, now: float) -> None:
        """What was told long ago: a repetition is a new Event, and what could not be written by now tells of what is over."""
        while self._events:
            told, found = next(iter(self._events.items()))
            if found.last > now - FORGET_S:
                break
            if told in self._waiting:
                self._results["stale"] += 1
            self._drop(told)

    def _drop(self, told: _Told) -> None:
        del self._events[told]
        self._waiting.pop(told, None)
        pod = (told.namespace, told.name)
        self._of_pod[pod] -= 1
        if not self._of_pod[pod]:
            del self._of_pod[pod]


def _cut(message: str) -> str:
    raw = message.encode(errors="replace")
    end = "…"
    return raw[: MAX_NOTE_BYTES - len(end.encode())].decode(errors="ignore") + end if len(raw) > MAX_NOTE_BYTES else message


def _micro_time(seconds: float) -> str:
    """RFC 3339 with six digits, Kubernetes' MicroTime."""
    whole, fraction = divmod(seconds, 1.0)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{int(fraction * 1e6):06d}Z"
