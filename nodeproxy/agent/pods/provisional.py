"""Workloads of this node's pods that stand in the state before the control plane tells of them.

The kubelet reports a pod's addresses after its network is made, and the pod may send before that.  So a pod that the CNI plug-in
has brought is in the state as the controller told the node of it, with the addresses of its network.
Invariants: what the control plane tells of a workload replaces a provisional one in the transaction that writes it; what it has
told is never overridden; where it takes the workload of a pod away that is here, a provisional one takes its place at once.
It must not know pods' namespaces.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from nodeproxy.model.delta import Delta
from nodeproxy.model.workload import Workload
from nodeproxy.policy.address import canonical_ip
from nodeproxy.state.store import Meta, StateWriter

# A prefix of keys of the store's meta table; what follows is a workload's uid.
PREFIX = "node/provisional/"


class Provisional:
    """Which workloads of the state are provisional, and what stands in for a pod that is here."""

    def __init__(self, store: StateWriter) -> None:
        self._standing = {uid for uid, _ in store.metas(PREFIX)}
        self._admitted: dict[str, Workload] = {}

    @property
    def uids(self) -> frozenset[str]:
        """The workloads that stand in the state and are not the control plane's."""
        return frozenset(self._standing)

    def admit(self, workload: Workload, addresses: Iterable[str]) -> Workload:
        """A pod is here that has these addresses: how it stands in the state as long as nobody tells of it."""
        every = dict.fromkeys([*workload.addresses, *map(canonical_ip, addresses)])
        made = self._admitted[workload.uid] = msgspec.structs.replace(workload, addresses=tuple(every))
        return made

    def forget(self, uid: str) -> None:
        """The pod is not here any more."""
        self._admitted.pop(uid, None)

    def put(self, workload: Workload) -> tuple[Delta, Meta]:
        """What is to be written for it to stand; `written` follows."""
        return Delta(workloads=(workload,)), {PREFIX + workload.uid: b"1"}

    def take_back(self, uids: Iterable[str]) -> tuple[Delta, Meta]:
        """What is to be written for provisional ones to go; `written` follows."""
        gone = tuple(uid for uid in uids if uid in self._standing)
        return Delta(removed_workloads=gone), {PREFIX + uid: None for uid in gone}

    def correct(self, delta: Delta) -> tuple[Delta, Meta]:
        """What the control plane says, as it is to be written; `written` follows."""
        if not self._standing and not self._admitted:
            return delta, {}
        meta: dict[str, bytes | None] = {
            PREFIX + workload.uid: None for workload in delta.workloads if workload.uid in self._standing
        }
        given = {workload.uid for workload in delta.workloads}
        gone = [uid for uid in delta.removed_workloads if uid not in given]
        standing = [self._admitted[uid] for uid in gone if uid in self._admitted]
        meta |= {PREFIX + workload.uid: b"1" for workload in standing}
        if standing:
            delta = msgspec.structs.replace(delta, workloads=(*delta.workloads, *standing))
        return delta, meta

    def written(self, meta: Meta) -> None:
        """This is in the store now."""
        for key, value in meta.items():
            if key.startswith(PREFIX):
                uid = key.removeprefix(PREFIX)
                if value is None:
                    self._standing.discard(uid)
                else:
                    self._standing.add(uid)
