from __future__ import annotations

import random
from pathlib import Path

import pytest

from nodeproxy.linux import kubepods
from nodeproxy.linux.kubepods import PodFinder, hierarchies, pod_uid

UID = "0a1b2c3d-0000-4444-8888-0123456789ab"
ESCAPED = UID.replace("-", "_")


@pytest.fixture
def _whoever_made_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that is not root's makes no directories of root's."""
    monkeypatch.setattr(kubepods, "_is_roots", lambda entry: True)


@pytest.mark.parametrize(
    ("name", "uid"),
    [
        (f"pod{UID}", UID),
        ("pod0123456789abcdef0123456789abcdef", "0123456789abcdef0123456789abcdef"),  # a static pod's hash
        (f"kubepods-burstable-pod{ESCAPED}.slice", UID),
        (f"kubepods-pod{ESCAPED}.slice", UID),
        (f"kubelet-kubepods-besteffort-pod{ESCAPED}.slice", UID),
        ("pod", ""),
        ("pod-x", ""),
        (f"pod{UID}.slice", ""),
        (f"pod{UID}_", ""),
        (f"cri-containerd-{UID}.scope", ""),
        (f"-pod{ESCAPED}.slice", ""),
        ("podman", "man"),  # a directory of kubepods that only root makes
        ("pod" + "x" * 64, ""),
    ],
)
def test_a_pods_uid_from_its_cgroups_name(name: str, uid: str) -> None:
    assert pod_uid(name) == uid


def test_any_name_is_a_uid_or_none() -> None:
    chance = random.Random(7)
    for _ in range(20_000):
        name = "".join(chance.choice(["pod", "-", "_", ".slice", "kubepods", "a", "0", "/", "..", "\n", "é"]) for _ in range(6))
        uid = pod_uid(name)
        assert not set(uid) & set("/._\n")
        assert uid.isascii()


@pytest.mark.parametrize(
    "path",
    [
        f"kubepods/pod{UID}",
        f"kubepods/burstable/pod{UID}",
        f"kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{ESCAPED}.slice",
        f"kubepods.slice/kubepods-pod{ESCAPED}.slice",
        f"kubelet/kubepods/burstable/pod{UID}",
        f"kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{ESCAPED}.slice",
        f"a/b/kubepods/besteffort/pod{UID}",
    ],
)
@pytest.mark.usefixtures("_whoever_made_it")
def test_pods_of_every_driver(tmp_path: Path, path: str) -> None:
    (tmp_path / path / "container").mkdir(parents=True)
    assert PodFinder(tmp_path).directories() == {UID: [str(tmp_path / path)]}


@pytest.mark.parametrize(
    "path",
    [
        f"a/b/c/kubepods/pod{UID}",  # deeper than any kubelet has it
        f"kubepods/burstable/pod1/kubepods/pod{UID}",  # within a pod's
        f"kubepods/pod1/pod{UID}",
        f"kubepods/other/pod{UID}",
        f"pod{UID}",
        f"system.slice/pod{UID}",
    ],
)
@pytest.mark.usefixtures("_whoever_made_it")
def test_what_is_no_pods_cgroup(tmp_path: Path, path: str) -> None:
    (tmp_path / path).mkdir(parents=True)
    assert UID not in PodFinder(tmp_path).directories()


def test_what_root_did_not_make_is_no_pods_cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubepods, "_is_roots", lambda entry: entry.name != "user@1000.service")
    (tmp_path / f"user@1000.service/kubepods/pod{UID}").mkdir(parents=True)
    assert PodFinder(tmp_path).directories() == {}


@pytest.mark.usefixtures("_whoever_made_it")
def test_a_kubelet_that_comes_later_is_found(tmp_path: Path) -> None:
    finder = PodFinder(tmp_path)
    assert finder.directories() == {}
    assert finder.find({UID: frozenset()}) == ({}, {UID: "the kubelet has made no cgroup for it yet"})
    (tmp_path / "kubepods" / f"pod{UID}").mkdir(parents=True)
    assert set(finder.directories()) == {UID}
    assert finder.find({UID: frozenset()}) == ({}, {UID: "it has no process yet"})


@pytest.mark.usefixtures("_whoever_made_it")
def test_processes_of_another_pid_namespace_are_told(tmp_path: Path) -> None:
    pod = tmp_path / "kubepods" / f"pod{UID}"
    pod.mkdir(parents=True)
    (pod / "cgroup.procs").write_text("0\n0\n")
    found, missing = PodFinder(tmp_path).find({UID: frozenset()})
    assert not found
    assert "hostPID" in missing[UID]


def test_hierarchies_of_hybrid_hosts_and_parts_of_them() -> None:
    mountinfo = """\
30 24 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
31 24 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
32 24 0:27 /system.slice /somewhere rw - cgroup2 cgroup2 rw
33 24 0:28 / /with\\040space rw - cgroup cgroup rw,pids
34 24 0:29 / /proc rw - proc proc rw
"""
    assert hierarchies(mountinfo) == [
        Path("/sys/fs/cgroup/unified"),
        Path("/sys/fs/cgroup/memory"),
        Path("/with space"),
    ]
