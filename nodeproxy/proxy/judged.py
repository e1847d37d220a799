"""The live connections that this node's policy has let in, found by what may change its mind.

Invariant: a connection is among the `concerned` of every change of the state that could make policy refuse it; of other changes
it hardly ever is, so that a change costs what it concerns, not what lives.  Knows nothing of how a connection is judged.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from nodeproxy.model.connection import Direction
from nodeproxy.state.changes import Touched
from nodeproxy.state.layout import GLOBAL_SCOPE
from nodeproxy.state.view import View

if TYPE_CHECKING:
    from nodeproxy.proxy.session import Session

_Index = dict[str, dict["Session", None]]


class Judged:
    """Sessions that have a subject, by the workloads that they are from and for."""

    def __init__(self) -> None:
        self._towards: _Index = {}
        self._from: _Index = {}  # only those whose source's identity is what the state says: pods of this node

    def add(self, session: Session) -> None:
        """It was let in."""
        self._towards.setdefault(session.destination_uid, {})[session] = None
        if session.record.direction is Direction.OUTBOUND:
            self._from.setdefault(session.pod.uid, {})[session] = None

    def remove(self, session: Session) -> None:
        """It has ended."""
        _remove(self._towards, session.destination_uid, session)
        if session.record.direction is Direction.OUTBOUND:
            _remove(self._from, session.pod.uid, session)

    def is_towards(self, uid: str) -> bool:
        """Whether any is for this workload."""
        return uid in self._towards

    def concerned(self, view: View, touched: Touched) -> list[Session]:
        """Those whose verdict may be another after the changes that touched this."""
        found: dict[Session, None] = {}
        for uid in self._uids(view, touched):
            found.update(self._towards.get(uid, {}))
        for uid in touched.workloads:
            found.update(self._from.get(uid, {}))
        return list(found)

    def _uids(self, view: View, touched: Touched) -> Iterable[str]:
        """The destinations that changes concern: by themselves, or by policies that hold for them."""
        if touched.everything or GLOBAL_SCOPE in touched.scopes:
            return self._towards
        if not touched.policies:
            return touched.workloads
        # A policy of a namespace, or one that workloads list: destinations are pods of this node, so that they are few.
        return touched.workloads.union(uid for uid in self._towards if _is_held(view, uid, touched))


def _is_held(view: View, uid: str, touched: Touched) -> bool:
    workload = view.workload(uid)
    return workload is None or workload.namespace in touched.scopes or not touched.policies.isdisjoint(workload.policies)


def _remove(index: _Index, uid: str, session: Session) -> None:
    sessions = index[uid]
    del sessions[session]
    if not sessions:
        del index[uid]
