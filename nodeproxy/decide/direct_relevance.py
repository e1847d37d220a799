"""Which changes of the state could change what `Direct` says: the kernel's table is closed before one of them takes effect, and
stays as it is for all others.

Invariant: a change that does not touch leaves `Direct`'s answers, for the same pods, as they were.
"""

from __future__ import annotations

from collections.abc import Iterable

from nodeproxy.decide.direct import LocalPod
from nodeproxy.state.changes import Touched
from nodeproxy.state.layout import GLOBAL_SCOPE
from nodeproxy.state.view import View


class Relevance:
    """What the answers for these pods hang on in this state.  Made anew after each change that touches."""

    def __init__(self, view: View, pods: Iterable[LocalPod]) -> None:
        self._uids: set[str] = set()
        self._addresses: set[str] = set()  # the pods' own, and virtual ones of their services; whatever the network
        self._scopes = {GLOBAL_SCOPE}
        self._policies: set[str] = set()
        self._services: set[str] = set()
        for pod in pods:
            self.add(view, pod)

    def add(self, view: View, pod: LocalPod) -> None:
        """One more pod."""
        self._uids.add(pod.uid)
        self._addresses.update(pod.addresses)
        workload = view.workload(pod.uid)
        if workload is None:
            return
        self._scopes.add(workload.namespace)
        self._policies.update(workload.policies)
        for key in workload.services:
            if key not in self._services:
                self._services.add(key)
                service = view.service(key)
                self._addresses.update(map(_ip, service.vips if service is not None else ()))

    def touches(self, touched: Touched) -> bool:
        """Whether a change matters."""
        return (
            touched.everything
            or not self._uids.isdisjoint(touched.workloads)
            or not self._services.isdisjoint(touched.services)
            or not self._services.isdisjoint(touched.endpoints)
            or not self._scopes.isdisjoint(touched.scopes)
            or not self._policies.isdisjoint(touched.policies)
            or not self._addresses.isdisjoint(map(_ip, touched.addresses))
            or not self._addresses.isdisjoint(map(_ip, touched.vips))
        )


def _ip(address: str) -> str:
    """Of "network/ip"."""
    return address.rpartition("/")[2]
