"""Connections that pods had before they were enrolled: nobody carries them, and no policy is asked about them.

They are counted once a pod is steered, for only then can no more of them come; what is the proxy's own by then is told by the
cgroup that made it.  They are left alone and counted until they end, or destroyed.
Invariants: a look costs the kernel's walk of its connections, in a thread; what fails is logged, and costs nothing else; nothing
is said of connections that could not be counted, and none is said to have ended that may go on.
It must not know why a pod is enrolled.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
from collections.abc import Callable

from nodeproxy.agent.pod_namespace import EnrolledPod
from nodeproxy.errors import NodeproxyError
from nodeproxy.linux.sock_diag import LiveSocket, TcpSocket, destroy, live

Listener = Callable[[str, int, bool], None]

# How often those that stand are counted again.
_COUNT_S = 10.0

log = logging.getLogger(__name__)


class Standing:
    """`run` serves until cancelled.

    own_cgroup_id: of the agent and its workers.  ends_them: they are destroyed, not kept.
    """

    def __init__(self, own_cgroup_id: int, *, ends_them: bool) -> None:
        self._listener: Listener = lambda uid, standing, ended: None
        self._own_cgroup_id = own_cgroup_id
        self._ends_them = ends_them
        self._pods: dict[str, EnrolledPod] = {}  # that may have some
        self._cookies: dict[str, frozenset[int]] = {}  # of their sockets, by the pod's uid
        self._new: asyncio.Queue[EnrolledPod] = asyncio.Queue()

    def listen(self, listener: Listener) -> None:
        """Have this called of each pod that is steered: with how many it had before and False, or True if all of them were ended.

        Where only some could be ended, the number is of those that may go on.
        """
        self._listener = listener

    def entered(self, pod: EnrolledPod) -> None:
        """A pod is steered that was not before."""
        self._pods[pod.spec.uid] = pod
        self._new.put_nowait(pod)

    def left(self, uid: str) -> None:
        """It is not steered any more."""
        self._pods.pop(uid, None)
        self._cookies.pop(uid, None)

    def count(self, uid: str) -> int:
        """How many a pod has."""
        return len(self._cookies.get(uid, ()))

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        counted = loop.time()
        while True:
            try:
                async with asyncio.timeout_at(counted + _COUNT_S):
                    pod = await self._new.get()
            except TimeoutError:
                counted = loop.time()
                for uid in list(self._cookies):
                    await self._count_again(uid)
            else:
                await self._look(pod)

    async def _look(self, pod: EnrolledPod) -> None:
        uid = pod.spec.uid
        if self._pods.get(uid) is not pod:
            return
        found = await self._ask(pod)
        if found is None:
            return
        mine = {each.socket for each in found if each.cgroup_id == self._own_cgroup_id}
        ends = {(each.local, each.remote) for each in mine}
        standing = [each.socket for each in found if each.socket not in mine and _is_foreign(each.socket, ends)]
        if self._pods.get(uid) is not pod:
            return
        go_on = await self._end(pod, standing) if self._ends_them else standing
        if self._pods.get(uid) is not pod:
            return
        self._listener(uid, len(go_on or standing), self._ends_them and not go_on)
        if go_on:
            self._cookies[uid] = frozenset(each.cookie for each in go_on)
            log.info("pod %s: %d connections from before it was enrolled go on outside the mesh", uid, len(go_on))

    async def _end(self, pod: EnrolledPod, standing: list[TcpSocket]) -> list[TcpSocket]:
        """Those that may go on."""
        if not standing:
            return []
        try:
            go_on, error = await asyncio.to_thread(_destroy_all, os.dup(pod.netns_fd), standing)
        except OSError as failure:
            go_on, error = standing, failure
        uid, ended = pod.spec.uid, len(standing) - len(go_on)
        log.info("pod %s: %d connections from before it was enrolled were ended", uid, ended)
        if error is not None:
            log.error("pod %s: %d connections from before it was enrolled can't be ended: %s", uid, len(go_on), error)
        return go_on

    async def _count_again(self, uid: str) -> None:
        pod, before = self._pods.get(uid), self._cookies.get(uid)
        if pod is None or before is None:
            return  # it has left while another one was counted
        found = await self._ask(pod)
        if found is not None and self._cookies.get(uid) is before:
            now = self._cookies[uid] = before & {each.socket.cookie for each in found}
            if not now:
                del self._cookies[uid]

    async def _ask(self, pod: EnrolledPod) -> list[LiveSocket] | None:
        """None: they can't be counted."""
        try:
            # A descriptor of its own: the pod may leave meanwhile.
            return await asyncio.to_thread(_live, os.dup(pod.netns_fd))
        except (NodeproxyError, OSError) as error:
            log.warning("pod %s: its connections can't be counted: %s", pod.spec.uid, error)
            return None


def _is_foreign(each: TcpSocket, own: set[tuple[tuple[str, int], tuple[str, int]]]) -> bool:
    """Whether it goes out of the pod, and is not the other end of one of the proxy's own."""
    if each.local[0] == each.remote[0] or ipaddress.ip_address(each.local[0]).is_loopback:
        return False
    return (each.remote, each.local) not in own


def _live(netns_fd: int) -> list[LiveSocket]:
    try:
        return live(netns_fd)
    finally:
        os.close(netns_fd)


def _destroy_all(netns_fd: int, connections: list[TcpSocket]) -> tuple[list[TcpSocket], Exception | None]:
    """Those that may go on, and why."""
    go_on: list[TcpSocket] = []
    why: Exception | None = None
    try:
        for each in connections:
            try:
                destroy(netns_fd, each)
            except (NodeproxyError, OSError) as error:
                go_on.append(each)
                why = error
    finally:
        os.close(netns_fd)
    return go_on, why
