"""Pods' namespaces are found through real cgroups and processes, and through no others."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeproxy.lab.topology import Host, Lab
from nodeproxy.linux import cgroup, kubepods
from nodeproxy.linux.kubepods import PodFinder, PodNetns, hierarchies
from nodeproxy.linux.netns import netns_inode
from tests.kernel.conftest import unique
from tests.pace import PACE

pytestmark = pytest.mark.kernel
UID = "0a1b2c3d-0000-4444-8888-0123456789ab"
FOREIGN = "10.250.0.99"


class Node:
    """A kubelet's cgroups, and pods of a network."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.root.mkdir()
        self.lab = Lab(unique("k"), 1)
        self._processes: list[subprocess.Popen[bytes]] = []
        self.made: list[Path] = [self.root]

    def cgroup(self, path: str) -> Path:
        at = self.root
        for part in path.split("/"):
            at /= part
            if not at.exists():
                at.mkdir()
                self.made.append(at)
        return at

    def process(self, group: Path, host: Host | None, argv: tuple[str, ...] = ("sleep", "1000")) -> subprocess.Popen[bytes]:
        """One that is in the cgroup, and in the pod's network (or the node's), when this returns."""
        ready, told = os.pipe()
        script = f"import os; os.write({told}, b'x'); os.execvp({argv[0]!r}, {argv!r})"

        def enter() -> None:
            (group / "cgroup.procs").write_text(str(os.getpid()))
            if host is not None:
                host._entering(None)()

        started = subprocess.Popen([sys.executable, "-I", "-S", "-c", script], preexec_fn=enter, pass_fds=(told,))  # noqa: PLW1509
        self._processes.append(started)
        os.close(told)
        assert os.read(ready, 1) == b"x"
        os.close(ready)
        time.sleep(0.011)  # a tick of /proc/PID/stat's clock, so that ages differ
        return started

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        self.lab.close()
        for path in sorted(self.made, reverse=True):
            for _ in range(100):
                with contextlib.suppress(OSError):
                    path.rmdir()
                    break
                time.sleep(0.01)


def roots() -> list[Path]:
    """A hierarchy of each version that is here and takes processes."""
    found = hierarchies(Path("/proc/self/mountinfo").read_text())
    v2 = cgroup.cgroup2_mount()
    v1 = [path for path in found if path != v2 and path.name in ("pids", "systemd", "memory")]
    return [v2, *v1[:1]]


@pytest.fixture(params=range(2), ids=["v2", "v1"])
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    available = roots()
    if request.param >= len(available):
        pytest.skip("kernel lacks: cgroups of version 1 beside version 2")
    made = Node(available[request.param] / unique("kubelet"))
    try:
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def finding(node: Node, *addresses: str) -> Iterator[tuple[PodNetns | None, str]]:
    found, missing = PodFinder(node.root).find({UID: frozenset(addresses)})
    try:
        yield found.get(UID), missing.get(UID, "")
    finally:
        for each in found.values():
            os.close(each.netns_fd)


def test_the_oldest_process_of_a_pod_says_its_network(node: Node) -> None:
    pod, other = node.lab.pod(0, "a"), node.lab.pod(0, "b")
    pause = node.process(node.cgroup(f"kubepods/burstable/pod{UID}/pause"), pod)
    node.process(node.cgroup(f"kubepods/burstable/pod{UID}/app"), other)
    with finding(node, pod.address4, FOREIGN) as (found, why):
        assert found is not None, why
        assert netns_inode(found.netns_fd) == netns_inode(pod.netns_fd)
        assert found.path == f"/proc/{pause.pid}/ns/net"


def test_containers_restart_and_the_pod_stays_where_it_is(node: Node) -> None:
    pod = node.lab.pod(0, "a")
    first = node.process(node.cgroup(f"kubepods/pod{UID}/one"), pod)
    first.kill()
    first.wait()
    with finding(node, pod.address4) as (found, why):
        assert (found, why) == (None, "it has no process yet")
    node.process(node.cgroup(f"kubepods/pod{UID}/two"), pod)
    with finding(node, pod.address4) as (found, why):
        assert found is not None, why
        assert netns_inode(found.netns_fd) == netns_inode(pod.netns_fd)


def test_nobody_enters_another_pods_network_in_its_name(node: Node) -> None:
    """A process that got into another's network, by whatever means, is no way to have that enrolled."""
    victim = node.lab.pod(0, "victim")
    node.process(node.cgroup(f"kubepods/besteffort/pod{UID}/app"), victim)
    with finding(node, FOREIGN) as (found, why):
        assert found is None
        assert "in a network that has none of its addresses (10.250.0.99)" in why


def test_a_pod_that_hides_behind_another_network_is_found_in_its_own(node: Node) -> None:
    pod, hidden = node.lab.pod(0, "a"), node.lab.pod(0, "hidden")
    group = node.cgroup(f"kubepods/burstable/pod{UID}/app")
    node.process(group, hidden)
    node.process(group, pod)
    with finding(node, pod.address4) as (found, why):
        assert found is not None, why
        assert netns_inode(found.netns_fd) == netns_inode(pod.netns_fd)


def test_the_nodes_own_network_is_nobodys(node: Node) -> None:
    node.process(node.cgroup(f"kubepods/burstable/pod{UID}/app"), None)
    with finding(node, "127.0.0.1") as (found, why):
        assert found is None
        assert "the node's own network" in why


def test_a_pid_that_is_used_again_is_nobodys(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process has ended between the two looks, and its pid is another's, outside the cgroup."""
    victim = node.lab.pod(0, "victim")
    group = node.cgroup(f"kubepods/pod{UID}/app")
    elsewhere = node.process(node.cgroup("elsewhere"), victim)
    seen = iter([[elsewhere.pid], [], []])
    asked = kubepods._pids
    monkeypatch.setattr(kubepods, "_pids", lambda at: next(seen) if at == str(group) else asked(at))
    with finding(node, victim.address4) as (found, why):
        assert (found, why) == (None, "its processes have ended")


def test_what_a_pod_has_in_its_cgroup_costs_a_bounded_look(node: Node) -> None:
    pod = node.lab.pod(0, "a")
    for number in range(100):
        node.cgroup(f"kubepods/pod{UID}/app/{number}")
    node.process(node.cgroup(f"kubepods/pod{UID}/pause"), pod)
    before = time.thread_time()
    with finding(node, pod.address4) as (found, why):
        assert found is not None, why
    assert time.thread_time() - before < 0.1 * PACE


def test_without_the_right_to_look_it_says_so(node: Node) -> None:
    pod = node.lab.pod(0, "a")
    node.process(node.cgroup(f"kubepods/pod{UID}/app"), pod)
    program = f"from nodeproxy.linux.kubepods import *; print(PodFinder(Path({str(node.root)!r})).find({{{UID!r}: frozenset()}}))"
    less = ["setpriv", "--bounding-set", "-sys_ptrace", "--inh-caps", "-sys_ptrace"]
    done = subprocess.run([*less, sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "CAP_SYS_PTRACE is missing" in done.stdout
