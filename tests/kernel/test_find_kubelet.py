"""Who is taken for the kubelet: in a /proc and a cgroup hierarchy made up of files, whose namespaces are real."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nodeproxy.config import OFF
from nodeproxy.linux.kubelet import Kubelet, NoKubelet, find_kubelet
from nodeproxy.linux.netns import netns_cookie

pytestmark = pytest.mark.kernel
POD = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod7f2d.slice/cri-containerd-ab.scope"
CONTAINER = "0123456789abcdef" * 4


class Machine:
    """`proc` and `top`: what stands for /proc and /sys/fs/cgroup.  The hierarchy's real top is that of the file system."""

    def __init__(self, directory: Path) -> None:
        self.proc, self.top = directory / "proc", directory / "cgroup"
        self.top.mkdir(parents=True)
        self.prefix = str(self.top.relative_to(self._top_of_file_system()))
        self.process(1, "systemd", "/init.scope")
        (self.proc / "self").symlink_to("/proc/self")

    def _top_of_file_system(self) -> Path:
        at = self.top.resolve()
        while at != at.parent and at.parent.stat().st_dev == at.stat().st_dev:
            at = at.parent
        return at

    def path(self, cgroup: str) -> str:
        return f"/{self.prefix}{cgroup}"

    def process(self, number: int, name: str, cgroup: str, *, up: str = "", v1: str = "", **namespaces: str) -> None:
        """up: steps from the reader's own root.  v1: its path in a hierarchy of version 1.  namespaces: another file for one."""
        directory = self.proc / str(number)
        (directory / "ns").mkdir(parents=True)
        (directory / "comm").write_text(f"{name}\n")
        lines = [f"0::{up}{self.path(cgroup) if cgroup != '/' else '/'}"]
        if v1:
            lines.append(f"4:memory:{v1}")
        (directory / "cgroup").write_text("".join(f"{line}\n" for line in lines))
        for kind in ("net", "pid", "user"):
            (directory / "ns" / kind).symlink_to(namespaces.get(kind, f"/proc/self/ns/{kind}"))
        group = self.top / cgroup.lstrip("/")
        group.mkdir(parents=True, exist_ok=True)
        with (group / "cgroup.procs").open("a") as members:
            members.write(f"{number}\n")

    def find(self, setting: str = "auto", known: Kubelet | None = None) -> Kubelet | NoKubelet:
        return find_kubelet(self.top, setting, known, proc=self.proc)

    def why(self, setting: str = "auto") -> str:
        found = self.find(setting)
        assert isinstance(found, NoKubelet), found
        return found.why


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ("name", "cgroup"),
    [
        ("kubelet", "/system.slice/kubelet.service"),
        ("k3s-server", "/system.slice/k3s.service"),
        ("kubelite", "/system.slice/snap.microk8s.daemon-kubelite.service"),
        ("kubelet", "/podruntime/kubelet"),
    ],
)
def test_it_is_found_by_its_name_in_a_service_s_cgroup(machine: Machine, name: str, cgroup: str) -> None:
    machine.process(812, name, cgroup)
    found = machine.find()
    with open("/proc/self/ns/net") as own:
        cookie = netns_cookie(own.fileno())
    assert found == Kubelet(812, machine.path(cgroup), (machine.top / cgroup[1:]).stat().st_ino, cookie)


@pytest.mark.parametrize(
    "cgroup", [POD, "/kubelet.slice/kubelet-kubepods.slice/x", f"/docker/{CONTAINER}", f"/crio-{CONTAINER}.scope"]
)
def test_a_pod_s_process_of_that_name_is_not_it(machine: Machine, cgroup: str) -> None:
    machine.process(900, "kubelet", cgroup)
    assert "process 900 is in a pod's or container's cgroup" in machine.why()
    machine.process(812, "kubelet", "/system.slice/kubelet.service")
    assert getattr(machine.find(), "pid", 0) == 812


@pytest.mark.parametrize("kind", ["net", "pid", "user"])
def test_who_is_not_in_the_node_s_namespaces_is_not_it(machine: Machine, kind: str, tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    machine.process(812, "kubelet", "/system.slice/kubelet.service", **{kind: str(tmp_path / "other")})
    assert f"is not in the node's own {kind} namespace" in machine.why()


def test_the_root_cgroup_tells_nobody_from_others(machine: Machine) -> None:
    machine.process(812, "kubelet", "/")
    assert "is in the root cgroup" in machine.why()


def test_seen_from_the_agent_s_own_pod(machine: Machine) -> None:
    """Paths begin at the agent's own cgroup: who turns off nearer than the node's first process is below a pod's cgroups."""
    (machine.proc / "1" / "cgroup").write_text("0::/../../../init.scope\n")
    machine.process(900, "kubelet", "/besteffort/x", up="/../..")
    assert "is in a pod's or container's cgroup" in machine.why()
    machine.process(812, "kubelet", "/system.slice/kubelet.service", up="/../../..")
    found = machine.find()
    assert isinstance(found, Kubelet)
    assert (found.pid, found.cgroup) == (812, machine.path("/system.slice/kubelet.service"))


def test_where_version_1_is_in_use_no_pod_may_share_its_cgroup(machine: Machine) -> None:
    (machine.proc / "1" / "cgroup").write_text("0::/init.scope\n4:memory:/\n")
    machine.process(812, "k3s-agent", "/system.slice/k3s.service", v1="/system.slice/k3s.service")
    assert isinstance(machine.find(), Kubelet)
    machine.process(900, "app", "/system.slice/k3s.service", v1=POD)
    assert "shares its cgroup" in machine.why()
    assert "process 900 of a pod" in machine.why()


def test_a_pod_s_process_that_only_version_1_tells_is_not_it(machine: Machine) -> None:
    (machine.proc / "1" / "cgroup").write_text("0::/init.scope\n4:memory:/\n")
    machine.process(900, "kubelet", "/system.slice/containerd.service", v1=POD)
    assert "is in a pod's or container's cgroup" in machine.why()


def test_two_that_could_be_it_are_none_until_an_administrator_says_which(machine: Machine) -> None:
    machine.process(812, "kubelet", "/system.slice/kubelet.service")
    machine.process(813, "kubelet", "/user.slice/session-1.scope")
    assert "several could be it" in machine.why()
    assert getattr(machine.find(machine.path("/user.slice/session-1.scope")), "pid", 0) == 813


def test_by_setting(machine: Machine) -> None:
    machine.process(814, "hyperkube", "/system.slice/hyperkube.service")
    assert machine.why() == "no process that the agent sees is called so (in a pod it needs hostPID)"
    assert getattr(machine.find(machine.path("/system.slice/hyperkube.service")), "pid", 0) == 814
    assert machine.why(OFF) == "kubelet_cgroup is off"
    assert "No such file" in machine.why("/none.slice")
    (machine.top / "empty.slice").mkdir()
    (machine.top / "empty.slice" / "cgroup.procs").touch()
    assert machine.why(machine.path("/empty.slice")).startswith("no process is in the cgroup")


def test_a_number_that_is_another_process_s_now_is_not_it(machine: Machine) -> None:
    machine.process(812, "kubelet", "/system.slice/kubelet.service")
    known = machine.find()
    assert isinstance(known, Kubelet)
    assert machine.find(known=known) == known
    (machine.proc / "812" / "comm").write_text("sshd\n")
    assert isinstance(machine.find(known=known), NoKubelet)


def test_a_cgroup_that_does_not_list_it_is_not_the_node_s(machine: Machine) -> None:
    machine.process(812, "kubelet", "/system.slice/kubelet.service")
    (machine.top / "system.slice/kubelet.service/cgroup.procs").write_text("1\n")
    assert "is that the node's cgroup hierarchy?" in machine.why()


def test_processes_that_end_meanwhile_are_passed_over(machine: Machine) -> None:
    (machine.proc / "77").mkdir()
    machine.process(812, "kubelet", "/system.slice/kubelet.service")
    assert isinstance(machine.find(), Kubelet)
    os.unlink(machine.proc / "812" / "cgroup")
    assert isinstance(machine.find(), NoKubelet)
