"""The pods that direct flows are between, as the kernel tells them: by the cookies of their network namespaces.

Invariant: a pod stays known, with a way into its namespace, from the moment that it is enrolled until it has left *and* its last
direct flow has ended.  It must not know what policy says.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

from nodeproxy.agent.pod_namespace import EnrolledPod
from nodeproxy.decide.direct import LocalPod
from nodeproxy.errors import NodeproxyError
from nodeproxy.kernel.direct import DirectFlow
from nodeproxy.linux.sock_diag import TcpBytes, TcpSocket, bytes_of
from nodeproxy.model.workload import Workload
from nodeproxy.state.view import View

log = logging.getLogger(__name__)


class Membership(Enum):
    """Whether a pod is in the mesh.  LEFT: its connections go on, as those that the proxy carries do; GONE: they must end."""

    IN = 1
    LEFT = 2
    GONE = 3


@dataclass(slots=True)
class DirectPod:
    """A pod.  netns_fd: our own.  workload: as the state last had it, for what is told of its flows."""

    netns_fd: int
    local: LocalPod
    membership: Membership = Membership.IN
    workload: Workload | None = None


class DirectPods:
    """By cookie."""

    def __init__(self) -> None:
        self._pods: dict[int, DirectPod] = {}
        self._users = 0

    def get(self, cookie: int) -> DirectPod | None:
        """The pod of that namespace, if it is known."""
        return self._pods.get(cookie)

    def enter(self, pod: EnrolledPod, view: View) -> LocalPod:
        """A pod came; or is back, under another name perhaps."""
        local = LocalPod(pod.spec.uid, pod.cookie, pod.addresses)
        known = self._pods.get(pod.cookie)
        netns_fd = known.netns_fd if known is not None else os.dup(pod.netns_fd)
        self._pods[pod.cookie] = DirectPod(netns_fd, local, workload=view.workload(local.uid))
        return local

    def refresh(self, view: View) -> None:
        """The state has changed."""
        for pod in self._pods.values():
            pod.workload = view.workload(pod.local.uid) or pod.workload

    def leave(self, cookie: int, *, gone: bool) -> None:
        """The pod has left."""
        pod = self._pods.get(cookie)
        if pod is not None:
            pod.membership = Membership.GONE if gone else Membership.LEFT

    def members(self) -> list[LocalPod]:
        """Those in the mesh."""
        return [pod.local for pod in self._pods.values() if pod.membership is Membership.IN]

    def known(self) -> list[LocalPod]:
        """Those too that left and whose connections go on."""
        return [pod.local for pod in self._pods.values() if pod.membership is not Membership.GONE]

    @property
    def any_left(self) -> bool:
        """Whether pods are kept for their last flows."""
        return any(pod.membership is not Membership.IN for pod in self._pods.values())

    def forget_left(self, in_use: Collection[int]) -> None:
        """Forget those that left and whose cookie is not `in_use`; later, if somebody works with the namespaces now."""
        for cookie, pod in list(self._pods.items()) if not self._users else ():
            if pod.membership is not Membership.IN and cookie not in in_use:
                os.close(pod.netns_fd)
                del self._pods[cookie]

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """While a thread works with the namespaces, their descriptors stay open."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1

    async def bytes_of(self, flows: Iterable[DirectFlow]) -> dict[int, TcpBytes]:
        """What live flows have carried so far, by socket cookie; without those whose source is not known."""
        by_source: dict[int, list[TcpSocket]] = {}
        for flow in flows:
            if flow.source_cookie in self._pods:
                connection = TcpSocket(flow.source, flow.destination, flow.socket_cookie)
                by_source.setdefault(flow.source_cookie, []).append(connection)
        with self.in_use():
            return await asyncio.to_thread(self._ask, by_source) if by_source else {}

    def _ask(self, by_source: dict[int, list[TcpSocket]]) -> dict[int, TcpBytes]:
        found: dict[int, TcpBytes] = {}
        for cookie, connections in by_source.items():
            pod = self._pods[cookie]
            try:
                found.update(bytes_of(pod.netns_fd, connections))
            except (NodeproxyError, OSError) as error:
                log.warning("pod %s: its direct connections' bytes are not known: %s", pod.local.uid, error)
        return found
