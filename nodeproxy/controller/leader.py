"""Which replica does what only one may do: a Lease of coordination.k8s.io, held as Kubernetes' own components hold theirs.

Invariants: whoever believes to lead has renewed the Lease within `RENEW_DEADLINE_S`, which is less than others wait; how long a
holder has been silent is measured by our own clock, from when we saw the Lease change, so that clocks may differ.  It must not
know what leaders do.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from nodeproxy.controller.api import Api
from nodeproxy.errors import ClusterError

log = logging.getLogger(__name__)

NAME = "nodeproxy-controller"
# client-go's, for the control plane's own components.
LEASE_S = 15
RENEW_DEADLINE_S = 10.0
RETRY_S = 2.0
REQUEST_S = 5.0
GROUP = "/apis/coordination.k8s.io/v1"


def _boot_time() -> float:
    """Unlike `time.monotonic` it goes on while a machine is suspended: one that wakes up must not believe that it leads."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class _Metadata(msgspec.Struct, rename="camel"):
    resource_version: str = ""


class _Spec(msgspec.Struct, rename="camel"):
    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int | None = None


class _Lease(msgspec.Struct):
    metadata: _Metadata
    spec: _Spec = msgspec.field(default_factory=_Spec)


class Leader:
    """One candidate.

    identity: no other process has it, this one's former life neither.  clock: seconds, monotonic.  now: the time of day, which is
    only written for people.
    """

    def __init__(
        self,
        api: Api,
        namespace: str,
        identity: str,
        *,
        name: str = NAME,
        clock: Callable[[], float] = _boot_time,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        randomly: Callable[[], float] = random.random,
    ) -> None:
        self.terms = 0  # how often it began to lead
        self._api = api
        self._collection = f"{GROUP}/namespaces/{namespace}/leases"
        self._name = name
        self._identity = identity
        self._clock = clock
        self._now = now
        self._randomly = randomly
        self._leads_until = float("-inf")
        self._seen: _Lease | None = None
        self._seen_at = 0.0
        self._said = ""

    def leads(self) -> bool:
        """Whether this is the leader, now."""
        return self._clock() < self._leads_until

    async def run(self) -> None:
        """Get the Lease, and keep it; returns never."""
        while True:
            await self.try_once()
            await asyncio.sleep(RETRY_S * (1 + 0.2 * self._randomly()))

    async def try_once(self) -> None:
        """Renew it, or get it if it is free; a failure is logged."""
        led = self.leads()
        try:
            await self._acquire_or_renew()
        except (ClusterError, msgspec.MsgspecError) as exc:
            if self._clock() >= self._leads_until:
                self._say(f"the leader can't be found out: {exc}", logging.WARNING)
        if led and not self.leads():
            log.warning("leads no more: the Lease could not be renewed within %.0f s, or another took it", RENEW_DEADLINE_S)

    async def release(self) -> None:
        """Let the Lease go, so that the next one need not wait; leads no more from now on."""
        if not self.leads() or self._seen is None:
            return
        self._leads_until = float("-inf")
        spec = {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": self._time()}
        try:
            await self._patch(self._seen.metadata.resource_version, spec)
        except (ClusterError, msgspec.MsgspecError) as exc:
            log.warning("the Lease is not released, the next leader waits %d s: %s", LEASE_S, exc)

    async def _acquire_or_renew(self) -> None:
        began = self._clock()
        lease = await self._read()
        if lease is None:
            await self._create(began)
            return
        spec = lease.spec
        if spec.holder_identity and spec.holder_identity != self._identity:
            self._leads_until = float("-inf")
            self._say(f"{spec.holder_identity} leads", logging.INFO)
            if began < self._seen_at + (spec.lease_duration_seconds or LEASE_S):
                return
        changes: dict[str, object] = {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": LEASE_S,
            "renewTime": self._time(),
        }
        if spec.holder_identity != self._identity:
            changes |= {"acquireTime": changes["renewTime"], "leaseTransitions": (spec.lease_transitions or 0) + 1}
        try:
            self._take(await self._patch(lease.metadata.resource_version, changes), began)
        except ClusterError as exc:
            if exc.status != 409:  # somebody else was faster
                raise

    async def _read(self) -> _Lease | None:
        try:
            body = await self._api.request("GET", f"{self._collection}/{self._name}", timeout_s=REQUEST_S)
        except ClusterError as exc:
            if exc.status != 404:
                raise
            return None
        lease = msgspec.json.decode(body, type=_Lease)
        if lease != self._seen:
            self._seen, self._seen_at = lease, self._clock()
        return lease

    async def _create(self, began: float) -> None:
        time_of_day = self._time()
        body = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._name},
            "spec": {
                "holderIdentity": self._identity,
                "leaseDurationSeconds": LEASE_S,
                "acquireTime": time_of_day,
                "renewTime": time_of_day,
                "leaseTransitions": 0,
            },
        }
        try:
            self._take(
                await self._api.request("POST", self._collection, body=msgspec.json.encode(body), timeout_s=REQUEST_S), began
            )
        except ClusterError as exc:
            if exc.status != 409:
                raise

    async def _patch(self, version: str, spec: dict[str, object]) -> bytes:
        """On top of the version that was read: 409 if it is another one by now."""
        body = msgspec.json.encode({"metadata": {"resourceVersion": version}, "spec": spec})
        return await self._api.request(
            "PATCH",
            f"{self._collection}/{self._name}",
            body=body,
            content_type="application/merge-patch+json",
            timeout_s=REQUEST_S,
        )

    def _take(self, body: bytes, began: float) -> None:
        """It is ours, from when it was asked for."""
        self._seen, self._seen_at = msgspec.json.decode(body, type=_Lease), self._clock()
        if not self.leads():
            self.terms += 1
        self._leads_until = began + RENEW_DEADLINE_S
        self._say("leads: writes statuses, publishes roots, changes the CA's key", logging.INFO)

    def _time(self) -> str:
        """As Kubernetes' MicroTime."""
        return self._now().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    def _say(self, text: str, level: int) -> None:
        if text != self._said:
            self._said = text
            log.log(level, "%s", text)
