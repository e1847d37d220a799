"""Notices that a pod has other addresses than when it was enrolled: connections to an address that is not known are dropped.

The kernel tells of changes; then the pod is looked at, a second after its last look at the earliest, so that one that changes its
addresses without end costs its node no more than that.  Pods that lack an address because it was another workload's are looked at
each second, for nothing tells when it is theirs.  It must not know what follows from an address.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from dataclasses import dataclass

from nodeproxy.agent.enrolment import EnrolledPod, Enrolment
from nodeproxy.errors import NodeproxyError
from nodeproxy.linux.addresses import address_events, forget_events

log = logging.getLogger(__name__)

_PACE_S = 1.0
# How long changes are gathered that come together: an interface gets its addresses one by one.
_TICK_S = 0.1


@dataclass(slots=True)
class _Watched:
    cookie: int
    events: socket.socket
    not_before: float  # on the monotonic clock


class AddressWatch:
    """`entered` and `left` say which pods there are."""

    def __init__(self, enrolment: Enrolment) -> None:
        self._enrolment = enrolment
        self._watched: dict[str, _Watched] = {}
        self._changed: set[str] = set()
        self._wake = asyncio.Event()

    def entered(self, pod: EnrolledPod) -> None:
        """A pod came, or has other addresses."""
        uid = pod.spec.uid
        known = self._watched.get(uid)
        if known is not None and known.cookie == pod.cookie:
            return
        self.left(uid)
        try:
            events = address_events(pod.netns_fd)
        except (NodeproxyError, OSError) as error:
            log.error("pod %s: addresses that it gets from now on are not served: %s", uid, error)
            return
        self._watched[uid] = _Watched(pod.cookie, events, time.monotonic() + _PACE_S)
        self._changed_now(uid)  # since its addresses were asked for

    def left(self, uid: str) -> None:
        """A pod went."""
        known = self._watched.pop(uid, None)
        self._changed.discard(uid)
        if known is not None:
            asyncio.get_running_loop().remove_reader(known.events.fileno())
            known.events.close()

    def close(self) -> None:
        """Watch none any more."""
        for uid in list(self._watched):
            self.left(uid)

    async def run(self) -> None:
        """Until cancelled; what changed while nobody ran it is looked at first."""
        self._changed.update(self._watched)
        self._wake.set()
        while True:
            try:
                async with asyncio.timeout(_PACE_S):  # wait_for loses a cancellation that comes as the event does
                    await self._wake.wait()
            except TimeoutError:
                self._changed.update(uid for uid, pod in self._enrolment.pods.items() if pod.lacking and uid in self._watched)
            self._wake.clear()
            for uid in [uid for uid in self._changed if self._watched[uid].not_before <= time.monotonic()]:
                await self._look(uid)
            if self._changed:
                await asyncio.sleep(_TICK_S)
                self._wake.set()

    async def _look(self, uid: str) -> None:
        known = self._watched.get(uid)
        if known is None:  # it left while others were looked at
            return
        self._changed.discard(uid)
        forget_events(known.events)
        known.not_before = time.monotonic() + _PACE_S
        asyncio.get_running_loop().add_reader(known.events.fileno(), self._changed_now, uid)
        try:
            await self._enrolment.refresh(uid)
        except (NodeproxyError, OSError) as error:
            log.warning("pod %s keeps the addresses that it was enrolled with: %s", uid, error)

    def _changed_now(self, uid: str) -> None:
        """Not listened to until it is looked at: events that come meanwhile say nothing new."""
        asyncio.get_running_loop().remove_reader(self._watched[uid].events.fileno())
        self._changed.add(uid)
        self._wake.set()
