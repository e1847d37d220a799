"""Keeps the kernel told who the kubelet is, so that its probes of enrolled pods pass policies that ask for an identity.

Looks each second whether the one that is known still is it, and for another one when it has gone, ever more seldom while there
is none: not every node is Kubernetes'.  Invariant: a kubelet that has gone is believed for a second at most; a cgroup's number is
never another cgroup's, so nobody can take its place meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from pathlib import Path

import msgspec

from nodeproxy.config import OFF
from nodeproxy.errors import KernelError
from nodeproxy.kernel.probes import NOBODY, KubeletIs, ProbeTable
from nodeproxy.linux.kubelet import Kubelet, NoKubelet, find_kubelet
from nodeproxy.observe.metrics import KubeletStatistics

log = logging.getLogger(__name__)

_WATCH_S = 1.0
# A look at the names of 2,000 processes takes some 30 ms.
_LONGEST_WAIT_S = 30.0


class KubeletStatus(msgspec.Struct, frozen=True):
    """pid, cgroup: of the process that is taken for the kubelet; 0 and empty if nobody is, and `why` says why not."""

    pid: int
    cgroup: str
    why: str


class KubeletWatch:
    """`setting`, `cgroup_root`: as `find_kubelet` takes them."""

    def __init__(self, probes: ProbeTable, setting: str, cgroup_root: Path) -> None:
        self._probes = probes
        self._setting = setting
        self._cgroup_root = cgroup_root
        self._known: Kubelet | None = None
        self._why = "not looked for yet"
        self._told = ""

    async def run(self) -> None:
        """Until cancelled."""
        wait_s = _WATCH_S
        while True:
            await self.look()
            if self._setting == OFF:  # said for good
                await asyncio.Event().wait()
            wait_s = _WATCH_S if self._known is not None else min(wait_s * 2, _LONGEST_WAIT_S)
            await asyncio.sleep(wait_s)

    async def look(self) -> None:
        """Look now, and tell the kernel what was found."""
        found = await asyncio.to_thread(find_kubelet, self._cgroup_root, self._setting, self._known)
        if isinstance(found, NoKubelet):
            self._known, self._why = None, found.why
            self._tell(NOBODY, f"no kubelet is known, so its probes are judged by policy: {found.why}")
        else:
            self._known, self._why = found, ""
            self._tell(
                KubeletIs(found.cgroup_id, found.netns_cookie),
                f"the kubelet is process {found.pid} in {found.cgroup}: its probes of pods in the mesh pass policy",
            )

    def allow(self, uid: str, cookie: int, ports: Collection[int] | None) -> None:
        """Its probes of the enrolled pod `uid` pass policy on the ports that the pod's own probes name; None: on all."""
        try:
            self._probes.allow(cookie, ports)
        except KernelError as error:
            log.error("pod %s: the kubelet's probes are judged by policy, or some of them: %s", uid, error)

    def status(self) -> KubeletStatus:
        """As of the last look."""
        known = self._known
        return KubeletStatus(known.pid if known else 0, known.cgroup if known else "", self._why)

    def statistics(self) -> KubeletStatistics:
        """For metrics."""
        return KubeletStatistics(self._known is not None, self._probes.counters())

    def _tell(self, kubelet: KubeletIs, said: str) -> None:
        if self._probes.kubelet != kubelet:
            self._probes.kubelet = kubelet
        if said != self._told:
            self._told = said
            log.info("%s", said)
