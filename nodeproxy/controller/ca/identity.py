"""Whose certificate a caller gets: its own pod's, or, if it is a node's proxy, that of a pod on its node.

Invariant: what a caller asks for is never believed; only its proven account and the pods that the controller has seen decide.
So a token that outlives its pod, or an answer about it that is still kept, is of no use.  It must not know requests, keys or
gRPC.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable

from nodeproxy.controller.ca.settings import CaSettings
from nodeproxy.controller.placement import Placement, node_of
from nodeproxy.controller.refusals import Refused, refuse
from nodeproxy.controller.token_review import Caller
from nodeproxy.errors import IdentityError
from nodeproxy.identity.spiffe import Spiffe

# The placement has no event of its own for the CA: a look costs a microsecond, and a new pod has seconds ahead of it anyway.
POLL_S = 0.05
# Of one caller at a time.  ztunnel and nodeproxy ask for 8 certificates at once.
MAX_WAITING = 32


class Authorizer:
    """Decides on identities.  clock: seconds, monotonic."""

    def __init__(self, placement: Placement, settings: CaSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._placement = placement
        self._settings = settings
        self._clock = clock
        self._waiting: Counter[str] = Counter()

    async def identity(self, caller: Caller, impersonated: str) -> Spiffe:
        """What to sign for `caller`, which asks for `impersonated` ("": its own); CallerError if it may not have it."""
        own = Spiffe(self._settings.trust_domain, caller.namespace, caller.service_account)
        try:
            asked = Spiffe.parse(impersonated) if impersonated else own
        except IdentityError as exc:
            raise refuse(Refused.BAD_IDENTITY, f"ImpersonatedIdentity: {exc}") from exc
        if asked != own and caller.account not in self._settings.trusted_node_accounts:
            raise refuse(Refused.NOT_TRUSTED, f"{caller.account} may ask for no identity but its own")
        if asked.trust_domain != self._settings.trust_domain:
            raise refuse(Refused.FOREIGN_TRUST_DOMAIN, f"this CA signs for the trust domain {self._settings.trust_domain} only")
        if not self._placement.synced():
            raise refuse(Refused.NOT_SYNCED, "the controller has not seen all pods yet: try again")
        await self._check_placement(caller, asked)
        return asked

    async def _check_placement(self, caller: Caller, asked: Spiffe) -> None:
        if self._runs_beside(caller, asked):
            return
        if self._waiting[caller.pod_uid] >= MAX_WAITING:
            raise refuse(Refused.BUSY, f"{MAX_WAITING} of this caller's requests wait for pods already: try again")
        self._waiting[caller.pod_uid] += 1
        try:
            deadline = self._clock() + self._settings.placement_wait_s
            while self._clock() < deadline:
                await asyncio.sleep(POLL_S)
                if self._runs_beside(caller, asked):
                    return
        finally:
            self._waiting -= Counter([caller.pod_uid])
        node = node_of(self._placement, caller)
        if not node:
            raise refuse(Refused.NODE_UNKNOWN, "the caller's pod is gone, or not on the node that its token says")
        raise refuse(
            Refused.NOT_ON_NODE, f"no pod of service account {asked.namespace}/{asked.service_account} runs on node {node}"
        )

    def _runs_beside(self, caller: Caller, asked: Spiffe) -> bool:
        node = node_of(self._placement, caller)
        return bool(node) and self._placement.runs_on(node, asked.namespace, asked.service_account)
