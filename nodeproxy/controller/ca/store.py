"""The Secret that the CA's keys stand in: made once by whoever is first, and followed by all replicas.

Invariants: keys are used only if they were read from the Secret as it is, or as it was last when it was of use; the Secret is
never overwritten but on top of the version that was read; a Secret that is no CA's is left to its operator and costs no key that
is in use.  It must not know what is signed, nor when keys change.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping

import msgspec

from nodeproxy.controller.api import Api
from nodeproxy.controller.ca import keys as ca_keys
from nodeproxy.controller.ca.keys import CaKeys
from nodeproxy.controller.ca.rotation import ASKED, FOLLOW_S
from nodeproxy.errors import ClusterError, IdentityError

log = logging.getLogger(__name__)

# One GET of some 4 KB: a watch would be another connection, for what changes once in years.
POLL_S = 5.0
FIRST_RETRY_S, MAX_RETRY_S = 0.5, 15.0


class StoreStatistics(msgspec.Struct, frozen=True):
    """reads: by what came of them ("read", "missing", "failed", "invalid").

    valid: whether the Secret as it is can be used.  keys: what is used.
    """

    reads: Mapping[str, int]
    valid: bool
    keys: CaKeys | None


class _Metadata(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    annotations: dict[str, str] | None = None


class _Secret(msgspec.Struct):
    metadata: _Metadata
    data: dict[str, bytes] | None = None  # base64 in JSON, which msgspec undoes


class CaStore:
    """The keys of one Secret.

    own: it is ours to make and to change; otherwise somebody else's, such as cert-manager's, and only read.
    clock: seconds since the epoch.  monotonic: seconds.
    """

    def __init__(
        self,
        api: Api,
        namespace: str,
        name: str,
        trust_domain: str,
        *,
        own: bool = True,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.on_change: list[Callable[[CaKeys], None]] = []
        self._api = api
        self._collection = f"/api/v1/namespaces/{namespace}/secrets"
        self._path = f"{self._collection}/{name}"
        self._namespace, self._name = namespace, name
        self._trust_domain = trust_domain
        self._own = own
        self._clock = clock
        self._monotonic = monotonic
        self._keys: CaKeys | None = None
        self._version = ""
        self._asked = False
        self._fault = "it was not read yet"
        self._read_at = float("-inf")
        self._reads: Counter[str] = Counter()

    @property
    def keys(self) -> CaKeys | None:
        """The last keys that were of use, None before there are any."""
        return self._keys

    def signing_keys(self) -> CaKeys | None:
        """The keys, if the API server was reached within `FOLLOW_S`: who is cut off must not sign with what is replaced."""
        return self._keys if self._monotonic() - self._read_at < FOLLOW_S else None

    def confirmed(self) -> CaKeys | None:
        """See `rotation.Store`."""
        return None if self._fault else self._keys

    def asked(self) -> bool:
        """See `rotation.Store`."""
        return self._asked

    def statistics(self) -> StoreStatistics:
        """For metrics."""
        return StoreStatistics(dict(self._reads), not self._fault, self._keys)

    async def load(self) -> CaKeys:
        """Wait until there are keys, however long; why there are none is logged."""
        wait_s = FIRST_RETRY_S
        while True:
            await self._refresh_or_log()
            if self._keys is not None:
                return self._keys
            await asyncio.sleep(wait_s * (0.5 + random.random() / 2))
            wait_s = min(2 * wait_s, MAX_RETRY_S)

    async def run(
        self, is_leader: Callable[[], bool], rotate: Callable[[], Awaitable[object]], *, poll_s: float = POLL_S
    ) -> None:
        """Follow the Secret, and, if it is ours and we are the leader, change what is due; returns never."""
        while True:
            await asyncio.sleep(poll_s * (0.75 + random.random() / 2))
            await self._refresh_or_log()
            if self._own and is_leader():
                try:
                    await rotate()
                except ClusterError as exc:
                    log.warning("a change of root waits: %s", exc)

    async def refresh(self) -> None:
        """Read the Secret; make it if it is ours and there is none.  ClusterError: the API server fails; what was read stays."""
        try:
            body = await self._api.request("GET", self._path)
        except ClusterError as exc:
            if exc.status != 404:
                self._reads["failed"] += 1
                raise
            self._reads["missing"] += 1
            self._read_at = self._monotonic()
            if not self._own:
                self._find_fault("", "it is not there: make it, or let cert-manager do it")
                return
            body = await self._create()
        self._take(body)

    async def replace(self, keys: CaKeys) -> bool:
        """See `rotation.Store`."""
        data: dict[str, str | None] = dict.fromkeys(ca_keys.OPTIONAL)
        metadata = {"resourceVersion": self._version, "annotations": {ASKED: None}}
        body = msgspec.json.encode({"metadata": metadata, "data": data | _base64(ca_keys.encode(keys))})
        try:
            answer = await self._api.request("PATCH", self._path, body=body, content_type="application/merge-patch+json")
        except ClusterError as exc:
            if exc.status == 409:
                return False
            raise
        self._take(answer)
        return True

    async def _refresh_or_log(self) -> None:
        try:
            await self.refresh()
        except ClusterError as exc:
            state = "the last keys stay in use" if self._keys is not None else "the CA waits"
            log.warning("the CA's Secret %s/%s: %s; %s", self._namespace, self._name, exc, state)

    async def _create(self) -> bytes:
        """The Secret as whoever was first has made it: with the keys in use if somebody deleted it, else with new ones."""
        lost = self._keys is not None
        keys = self._keys or ca_keys.create(self._trust_domain, self._clock())
        body = msgspec.json.encode(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "type": "Opaque",
                "metadata": {"name": self._name, "namespace": self._namespace},
                "data": _base64(ca_keys.encode(keys)),
            }
        )
        try:
            answer = await self._api.request("POST", self._collection, body=body)
        except ClusterError as exc:
            if exc.status != 409:
                raise
            return await self._api.request("GET", self._path)
        what = "was deleted: it is written again, with the keys in use" if lost else "is made, with a new root"
        log.warning("the CA's Secret %s/%s %s", self._namespace, self._name, what)
        return answer

    def _take(self, body: bytes) -> None:
        try:
            secret = msgspec.json.decode(body, type=_Secret)
        except msgspec.DecodeError as exc:
            raise ClusterError(f"GET {self._path}: the API server's answer is no Secret: {exc}") from exc
        self._read_at = self._monotonic()
        self._reads["read"] += 1
        self._asked = ASKED in (secret.metadata.annotations or {})
        version = secret.metadata.resource_version
        if version == self._version and not self._fault:
            return
        try:
            keys = ca_keys.decode(secret.data or {}, self._clock())
        except IdentityError as exc:
            self._find_fault(version, str(exc))
            return
        self._version, self._fault, self._keys = version, "", keys
        log.info("the CA's keys are %r", keys)
        for tell in self.on_change:
            tell(keys)

    def _find_fault(self, version: str, fault: str) -> None:
        self._reads["invalid"] += 1
        if (version, fault) != (self._version, self._fault):
            state = "the keys from before stay in use" if self._keys is not None else "the CA has none"
            log.error("the CA's Secret %s/%s can't be used: %s; %s", self._namespace, self._name, fault, state)
        self._version, self._fault = version, fault


def _base64(data: Mapping[str, bytes]) -> dict[str, str | None]:
    return {name: b64encode(content).decode() for name, content in data.items()}
