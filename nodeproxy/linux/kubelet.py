"""Which process of this node is the kubelet: so that the kernel can tell its probes from whatever else connects to a pod.

A pod can call its process what it likes.  Invariant: who is found is in the node's own namespaces (network, processes, users)
and in a cgroup that is no pod's in any hierarchy, is not the root, and has no pod's process in it: a runtime puts no pod there.
Everything is read through one descriptor of the process's directory, so that a number that is used again is not taken for it.
It must not know what follows from it.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from nodeproxy.config import AUTO, OFF
from nodeproxy.errors import NodeproxyError
from nodeproxy.linux.netns import netns_cookie, node_netns_inodes

# What distributions call the process that has the kubelet in it: kubeadm's and most others', k3s's, MicroK8s's.
_NAMES: Final = frozenset({b"kubelet", b"k3s-server", b"k3s-agent", b"kubelite"})
# Cgroups of containers and pods: "kubepods.slice", kind's "kubelet-kubepods.slice", a pod's uid with either separator, a
# container's name as CRI runtimes and docker make it.
_CONTAINER: Final = re.compile(r"kubepods|pod[0-9a-f]{8}[-_][0-9a-f]{4}[-_]|[0-9a-f]{64}")
# A kubelet starts mount helpers and the like; k3s has a shim for each pod beside it.
_MAX_MEMBERS: Final = 4096
_PROC: Final = Path("/proc")
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Kubelet(NamedTuple):
    """The kubelet's process, its cgroup as the version 2 hierarchy names it, and both numbers that the kernel knows it by."""

    pid: int
    cgroup: str
    cgroup_id: int
    netns_cookie: int


class NoKubelet(NamedTuple):
    """Why nobody is taken for the kubelet."""

    why: str


class _UnsuitableError(Exception):
    """This process is not the kubelet, or can't be told from others; the text says why."""


def find_kubelet(cgroup_root: Path, setting: str = AUTO, known: Kubelet | None = None, proc: Path = _PROC) -> Kubelet | NoKubelet:
    """The one process that can be nothing else.

    cgroup_root: a directory of the version 2 hierarchy.  setting: `AUTO`, `OFF`, or the path of its cgroup from the hierarchy's
    top, which an administrator vouches for.  known: who it was at the last look; while that holds nobody else is looked for.
    """
    if setting == OFF:
        return NoKubelet("kubelet_cgroup is off")
    top = _hierarchy_top(cgroup_root)
    try:
        node = _Node.look(proc)
        if known is not None:
            with contextlib.suppress(_UnsuitableError, OSError):  # it has gone, or its number is another one's: looked for anew
                if _judge(known.pid, node, top, setting, proc) == known:
                    return known
        numbers = _members(top / setting.lstrip("/")) if setting != AUTO else _all_numbers(proc)
    except OSError as error:
        return NoKubelet(f"{error.filename or 'the processes of the node'}: {error.strerror}")
    return _choose(numbers, node, top, setting, proc)


def _choose(numbers: Iterator[int], node: _Node, top: Path, setting: str, proc: Path) -> Kubelet | NoKubelet:
    found: list[Kubelet] = []
    unsuitable: list[str] = []
    for number in numbers:
        try:
            if setting == AUTO and (proc / str(number) / "comm").read_bytes().strip() not in _NAMES:
                continue  # nearly all: what follows costs more
            found.append(_judge(number, node, top, setting, proc))
        except _UnsuitableError as error:
            unsuitable.append(f"process {number} {error}")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
        except (OSError, NodeproxyError) as error:
            unsuitable.append(f"process {number} can't be looked at: {error}")
    if len({each.cgroup_id for each in found}) == 1:
        return found[0]
    if found:
        where = ", ".join(sorted(each.cgroup for each in found)[:3])
        return NoKubelet(f"several could be it ({where}): name its cgroup by --kubelet-cgroup")
    if unsuitable:
        return NoKubelet("; ".join(unsuitable[:3]))
    if setting != AUTO:
        return NoKubelet(f"no process is in the cgroup {setting}")
    return NoKubelet("no process that the agent sees is called so (in a pod it needs hostPID)")


class _Node(NamedTuple):
    """The node's own namespaces, by their numbers, and how many steps up its cgroups are from where this process sees them."""

    networks: frozenset[int]
    processes: int
    users: int
    steps: dict[str, int]

    @classmethod
    def look(cls, proc: Path) -> _Node:
        """As this process sees them: who is in its own namespace of processes is the node's, or a pod's with hostPID."""
        return cls(
            node_netns_inodes(),
            os.stat(proc / "self/ns/pid").st_ino,
            os.stat(proc / "self/ns/user").st_ino,
            {hierarchy: _steps_up(path) for hierarchy, path in _cgroups((proc / "1/cgroup").read_text(encoding="utf-8"))},
        )


def _judge(number: int, node: _Node, top: Path, setting: str, proc: Path) -> Kubelet:
    """Raises _UnsuitableError, OSError."""
    directory = os.open(proc / str(number), _DIRECTORY)
    try:
        if setting == AUTO and _read(directory, "comm").encode().strip() not in _NAMES:
            raise _UnsuitableError("is not called so")
        for name, expected in (("net", node.networks), ("pid", {node.processes}), ("user", {node.users})):
            if os.stat(f"ns/{name}", dir_fd=directory).st_ino not in expected:
                raise _UnsuitableError(f"is not in the node's own {name} namespace")
        path = _own_cgroup(_read(directory, "cgroup"), node, vouched_for=setting != AUTO)
        cgroup = top / path.lstrip("/")
        group_id = cgroup.stat().st_ino
        if number not in set(_members(cgroup)):
            raise _UnsuitableError(f"is not listed by {cgroup}; is that the node's cgroup hierarchy?")
        if len(node.steps) > 1 and setting == AUTO:
            _refuse_company(cgroup, path, node, proc)
        netns_fd = os.open("ns/net", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
        try:
            return Kubelet(number, path, group_id, netns_cookie(netns_fd))
        finally:
            os.close(netns_fd)
    finally:
        os.close(directory)


def _own_cgroup(text: str, node: _Node, *, vouched_for: bool) -> str:
    """Its path in the version 2 hierarchy, from the top.  Raises _UnsuitableError if it is a pod's, or everybody's."""
    paths = _cgroups(text)
    if not vouched_for:
        _refuse_pod(paths, node)
    path = dict(paths).get("0", "")
    if _below_us(path, node.steps.get("0", 0)):
        raise _UnsuitableError("is in the agent's own pod, or one beside it")
    path = _without_steps(path)
    if path in ("", "/"):
        raise _UnsuitableError("is in the root cgroup (v2), as anything else may be")
    return path


def _refuse_pod(paths: list[tuple[str, str]], node: _Node) -> None:
    for hierarchy, path in paths:
        if _below_us(path, node.steps.get(hierarchy, 0)) or _CONTAINER.search(path):
            raise _UnsuitableError(f"is in a pod's or container's cgroup, {path}")


def _refuse_company(cgroup: Path, path: str, node: _Node, proc: Path) -> None:
    """Where version 1 is in use, a runtime may put pods in its cgroups and leave them in the kubelet's of version 2."""
    for number in _members(cgroup):
        try:
            _refuse_pod(_cgroups((proc / str(number) / "cgroup").read_text(encoding="utf-8")), node)
        except _UnsuitableError:
            raise _UnsuitableError(f"shares its cgroup {path} with process {number} of a pod") from None
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile


def _cgroups(text: str) -> list[tuple[str, str]]:
    """(hierarchy, path) of each line; version 2 is hierarchy "0" (cgroups(7), "/proc/[pid]/cgroup")."""
    return [(hierarchy, path) for hierarchy, _, path in (line.split(":", 2) for line in text.splitlines())]


def _steps_up(path: str) -> int:
    """cgroup_namespaces(7): what is outside of the reader's own root begins with "/.."."""
    return path.split("/").count("..")


def _below_us(path: str, steps: int) -> bool:
    """Whether a path turns off nearer to this process's root than the node's first process: then it is below a pod's cgroups."""
    return _steps_up(path) < steps


def _without_steps(path: str) -> str:
    return "/" + "/".join(part for part in path.split("/") if part not in ("", ".."))


def _hierarchy_top(cgroup_root: Path) -> Path:
    """Where the hierarchy that this directory is in is mounted."""
    at = cgroup_root.resolve()
    while at != at.parent and at.parent.stat().st_dev == at.stat().st_dev:
        at = at.parent
    return at


def _members(cgroup: Path) -> Iterator[int]:
    with (cgroup / "cgroup.procs").open(encoding="ascii") as lines:
        numbers = [int(line) for _, line in zip(range(_MAX_MEMBERS), lines, strict=False)]
    return (number for number in numbers if number)  # 0: one that this process's namespace has no number for


def _all_numbers(proc: Path) -> Iterator[int]:
    return (int(name) for name in os.listdir(proc) if name.isdecimal())


def _read(directory: int, name: str) -> str:
    with open(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory), encoding="utf-8", errors="replace") as file:
        return file.read()
