from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from nodeproxy.agent.kubelet import KubeletWatch
from nodeproxy.config import OFF
from nodeproxy.kernel.probes import NOBODY, KubeletIs
from nodeproxy.linux.kubelet import Kubelet, NoKubelet

pytestmark = pytest.mark.unit


class Table:
    """As `ProbeTable`, and what was written to it."""

    def __init__(self, kubelet: KubeletIs = NOBODY) -> None:
        self.written: list[KubeletIs] = []
        self._kubelet = kubelet

    @property
    def kubelet(self) -> KubeletIs:
        return self._kubelet

    @kubelet.setter
    def kubelet(self, known: KubeletIs) -> None:
        self._kubelet = known
        self.written.append(known)

    def counters(self) -> dict[str, int]:
        return {"passed": 3, "full": 0, "other": 1}


def test_the_kernel_is_told_when_it_changes_and_not_oftener(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Kubelet | NoKubelet] = [
        Kubelet(812, "/system.slice/kubelet.service", 41, 7),
        Kubelet(812, "/system.slice/kubelet.service", 41, 7),
        NoKubelet("it is not there"),
        Kubelet(900, "/system.slice/kubelet.service", 43, 7),
    ]
    monkeypatch.setattr("nodeproxy.agent.kubelet.find_kubelet", lambda *_: found.pop(0))
    table = Table()
    watch = KubeletWatch(table, "auto", Path("/sys/fs/cgroup"))  # type: ignore[arg-type]
    assert (watch.status().pid, watch.status().why) == (0, "not looked for yet")
    asyncio.run(watch.look())
    assert (watch.status().pid, watch.statistics().is_known) == (812, True)
    asyncio.run(watch.look())
    asyncio.run(watch.look())
    assert (watch.status().pid, watch.status().why, watch.statistics().is_known) == (0, "it is not there", False)
    asyncio.run(watch.look())
    assert table.written == [KubeletIs(41, 7), NOBODY, KubeletIs(43, 7)]
    assert watch.statistics().probes == {"passed": 3, "full": 0, "other": 1}


def test_off_tells_the_kernel_that_nobody_is() -> None:
    table = Table(KubeletIs(41, 7))  # of an agent before this one
    watch = KubeletWatch(table, OFF, Path("/sys/fs/cgroup"))  # type: ignore[arg-type]
    asyncio.run(watch.look())
    assert table.written == [NOBODY]
    assert watch.status().why == "kubelet_cgroup is off"
