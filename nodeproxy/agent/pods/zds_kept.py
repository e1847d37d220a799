"""Which namespaces are steered for pods that istio-cni has told of: kept over a restart.

istio-cni may name a pod whose namespace it does not know itself (Keep): then what an agent before has steered stays so, and the
pod is closed rather than open.
Invariant: a namespace stands here before it is steered.  A method returns what is to be written to the store.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from nodeproxy.state.store import Meta, StateWriter

_PREFIX: Final = "node/zds/"  # a pod's uid → the cookie of its namespace


class ZdsKept:
    """All of one node."""

    def __init__(self, store: StateWriter) -> None:
        self._cookies = {uid: msgspec.msgpack.decode(raw, type=int) for uid, raw in store.metas(_PREFIX)}

    @property
    def cookies(self) -> Mapping[str, int]:
        """By the pod's uid."""
        return self._cookies

    def note(self, pod_uid: str, cookie: int) -> Meta:
        """The pod is steered in that namespace from now on."""
        if self._cookies.get(pod_uid) == cookie:
            return {}
        self._cookies[pod_uid] = cookie
        return {_PREFIX + pod_uid: msgspec.msgpack.encode(cookie)}

    def forget(self, pod_uids: Iterable[str]) -> Meta:
        """These are not to be in any more."""
        return {_PREFIX + uid: None for uid in list(pod_uids) if self._cookies.pop(uid, None) is not None}
