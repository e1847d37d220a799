"""Whom the kernel takes for the kubelet, and which ports of a pod it may reach past policy.

Invariant: who is not named here passes nowhere.  What is pinned stays as it is over the agent's restart, so that probes do not
fail meanwhile.  It must not know how the kubelet is found.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

from nodeproxy.kernel import abi
from nodeproxy.kernel.abi import ProbeCount
from nodeproxy.kernel.bpf import Map

_ZERO: Final = struct.pack("=I", 0)
_PRESENT: Final = struct.pack("=I", 1)
_ALL: Final = 0  # instead of a port


class KubeletIs(NamedTuple):
    """The cgroup (v2, by its number) that the kubelet runs in, and the cookie of the node's network namespace.  Zeros: nobody."""

    cgroup_id: int
    netns_cookie: int


NOBODY: Final = KubeletIs(0, 0)


class ProbeTable:
    """The maps of `bpf/kubelet.h`."""

    def __init__(self, maps: Mapping[str, Map]) -> None:
        self._maps = maps
        # netns cookie → ports: so that a pod that leaves costs what it has.
        self._ports: dict[int, set[int]] = {}

    def hold(self) -> None:
        """From now on this agent's word counts; what the one before has said stays."""
        self._ports.clear()
        for key in self._maps["probe_ports"].all_keys():
            cookie, port, _ = abi.PROBE_PORT.unpack(key)
            self._ports.setdefault(cookie, set()).add(port)

    @property
    def kubelet(self) -> KubeletIs:
        """Whom the kernel goes by."""
        return KubeletIs._make(abi.KUBELET.unpack(self._maps["kubelet"].get(_ZERO) or bytes(abi.KUBELET.size)))

    @kubelet.setter
    def kubelet(self, known: KubeletIs) -> None:
        self._maps["kubelet"].put(_ZERO, abi.KUBELET.pack(*known))

    def allow(self, netns_cookie: int, ports: Collection[int] | None) -> None:
        """The kubelet reaches the pod on these ports alone past policy, None: on all; on others it is judged as anybody.

        A pod for which this was not said is open to it on none.  Raises KernelError: then it is open on fewer than these.
        """
        table, known = self._maps["probe_ports"], self._ports.setdefault(netns_cookie, set())
        wanted = {_ALL} if ports is None else set(ports) - {_ALL}
        try:
            for port in sorted(wanted - known):
                table.put(abi.PROBE_PORT.pack(netns_cookie, port, 0), _PRESENT)
                known.add(port)
        finally:
            for port in known - wanted:
                table.delete(abi.PROBE_PORT.pack(netns_cookie, port, 0))
                known.discard(port)

    def forget(self, netns_cookie: int) -> None:
        """The pod has left."""
        for port in self._ports.pop(netns_cookie, set()):
            self._maps["probe_ports"].delete(abi.PROBE_PORT.pack(netns_cookie, port, 0))

    def counters(self) -> dict[str, int]:
        """What became of its connects to enrolled pods since the maps were made: `ProbeCount` in small letters."""
        return {count.name.lower(): self._maps["probe_counts"].per_cpu_sum(count) for count in ProbeCount}
