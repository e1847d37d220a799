"""Which node a caller may be told the pods of: its own, if it is a node's proxy.

Invariant: a caller's word counts for nothing; its proven account and the pods that the controller has seen decide, as for
certificates.  It must not know streams.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from nodeproxy.controller.ca.identity import POLL_S
from nodeproxy.controller.ca.settings import CaSettings
from nodeproxy.controller.placement import Placement, node_of
from nodeproxy.controller.token_review import Caller
from nodeproxy.controller.xds.limits import StreamEnd, end


class NodeProxies:
    """Asks the placement.  settings: whose accounts are node proxies'.  clock: seconds, monotonic."""

    def __init__(self, placement: Placement, settings: CaSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._placement = placement
        self._settings = settings
        self._clock = clock

    async def node_of(self, caller: Caller) -> str:
        """The caller's node, "" if it is no node's proxy.  CallerError: it is one, and its pod has not been seen."""
        if caller.account not in self._settings.trusted_node_accounts:
            return ""
        deadline = self._clock() + self._settings.placement_wait_s
        while not (node := node_of(self._placement, caller)):
            if self._clock() >= deadline:
                raise end(
                    StreamEnd.UNPLACED,
                    "the caller's pod has not been seen yet, is gone, or is not on the node that its token says",
                )
            await asyncio.sleep(POLL_S)
        return node
