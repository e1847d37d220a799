"""Workloads of this node's pods that stand in the state before the control plane tells of them.

The kubelet reports a pod's addresses after its network is made, and the pod may send before that.  So a pod that the CNI plug-in
has brought is in the state as the controller told the node of it, with the addresses of its network.
Invariants: what the control plane tells of a workload replaces a provisional one in the transaction that writes it; what it has
told is never overridden; where it takes the workload of a pod away that is here, a provisional one takes its place at once; an
address that another workload has by the state is not a provisional one's.  All of that is worked out when what follows is
written, for a change may wait for its turn.
It must not know pods' namespaces.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Set
from functools import partial

import msgspec

from nodeproxy.model.delta import Delta
from nodeproxy.model.workload import Workload
from nodeproxy.policy.address import canonical_ip
from nodeproxy.state.store import Meta, StateWriter
from nodeproxy.state.view import View

# A prefix of keys of the store's meta table; what follows is a workload's uid.
PREFIX = "node/provisional/"

_Written = tuple[Delta, Meta]
_Claims = Set[tuple[str, str]]  # networks and addresses


class ProvisionalChange:
    """As `sources.change.Change`: what is to be written is asked for when nobody else writes any more."""

    pods = None

    def __init__(self, provisional: Provisional, work: Callable[[], _Written]) -> None:
        self._provisional = provisional
        self._work = work

    async def write(self, state: StateWriter, meta: Meta) -> None:
        """As `Change`."""
        delta, more = self._work()
        if meta or more:
            state.apply(delta, {**meta, **more})
            self._provisional.written(more)


class Provisional:
    """Which workloads of the state are provisional, and what stands in for a pod that is here.  view: the state as it is now."""

    def __init__(self, store: StateWriter, view: Callable[[], View]) -> None:
        self._view = view
        self._standing = {uid for uid, _ in store.metas(PREFIX)}
        self._admitted: dict[str, Workload] = {}

    @property
    def uids(self) -> frozenset[str]:
        """The workloads that stand in the state and are not the control plane's."""
        return frozenset(self._standing)

    def admit(self, workload: Workload, addresses: Iterable[str]) -> ProvisionalChange:
        """A pod is here that has these addresses, too: how it stands in the state as long as nobody tells of it."""
        every = dict.fromkeys([*workload.addresses, *map(canonical_ip, addresses)])
        self._admitted[workload.uid] = msgspec.structs.replace(workload, addresses=tuple(every))
        return ProvisionalChange(self, partial(self._put, workload.uid))

    def forget(self, uid: str) -> None:
        """The pod is not here any more."""
        self._admitted.pop(uid, None)

    def take_back(self, uids: Iterable[str]) -> ProvisionalChange:
        """Those of these that are provisional go."""
        return ProvisionalChange(self, partial(self._take_back, tuple(uids)))

    def correct(self, delta: Delta) -> _Written:
        """What the control plane says, as it is to be written at once; `written` follows."""
        if not self._standing and not self._admitted:
            return delta, {}
        given = {workload.uid for workload in delta.workloads}
        gone = frozenset(delta.removed_workloads) - given
        claimed = {(each.network, address) for each in delta.workloads for address in each.addresses}
        instead = [self._own(self._admitted[uid], claimed, given | gone) for uid in gone if uid in self._admitted]
        standing = [*instead, *self._giving_up(claimed, self._standing - given - gone)]
        meta: dict[str, bytes | None] = {PREFIX + uid: None for uid in (given | gone) & self._standing}
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

    # ── inside ──

    def _put(self, uid: str) -> _Written:
        workload = self._admitted.get(uid)
        if workload is None or (uid not in self._standing and self._view().workload(uid) is not None):
            return Delta(), {}
        own = self._own(workload)
        if not own.addresses and uid not in self._standing:
            return Delta(), {}
        return Delta(workloads=(own,)), {PREFIX + uid: b"1"}

    def _take_back(self, uids: Iterable[str]) -> _Written:
        gone = tuple(uid for uid in uids if uid in self._standing)
        return Delta(removed_workloads=gone), {PREFIX + uid: None for uid in gone}

    def _own(self, workload: Workload, claimed: _Claims = frozenset(), changing: Collection[str] = ()) -> Workload:
        """With those addresses that are nobody else's.  claimed: by who is told of; changing: whom the state has as they were."""
        network, addresses = workload.network, workload.addresses
        owners = [(address, self._view().workload_at(network, address)) for address in addresses]
        foreign = {
            (network, address)
            for address, owner in owners
            if owner is not None and owner.uid != workload.uid and owner.uid not in changing
        }
        return _without(workload, foreign | claimed)

    def _giving_up(self, claimed: _Claims, uids: Iterable[str]) -> Iterable[Workload]:
        """Those of these that have an address which is another's."""
        for uid in uids:
            workload = self._view().workload(uid)
            if workload is not None and (own := _without(workload, claimed)) != workload:
                yield own


def _without(workload: Workload, claimed: _Claims) -> Workload:
    kept = tuple(address for address in workload.addresses if (workload.network, address) not in claimed)
    return msgspec.structs.replace(workload, addresses=kept)
