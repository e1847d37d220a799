"""Finding the network namespaces of Kubernetes' pods by their uids: through the kubelet's cgroups, and a process in them.

The kubelet names a pod's cgroup by its uid, under both of its drivers and on every version of cgroups; below it the runtime makes
one for each container, whose names say nothing here.  The sandbox's process is the pod's oldest, so the oldest come first.
Invariants: only a cgroup that root made, outside any pod's, names a pod; a process is looked at through a descriptor of its
directory in /proc, and was seen in that cgroup after that was opened, so that a pid which is used again is nobody's; a namespace
is taken only if it is not the node's and has an address that is the pod's.  What a pod has in its cgroups costs a bounded look.
It must not know what a namespace is found for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from nodeproxy.errors import EnrolmentError, KernelError, NodeproxyError
from nodeproxy.linux.addresses import pod_addresses
from nodeproxy.linux.netns import netns_inode, refuse_node_netns

# cgroupfs driver: kubepods/burstable/podUID; systemd driver: kubepods-burstable-podU_I_D.slice, each behind the kubelet's
# --cgroup-root, as of kind (/kubelet).
_KUBEPODS: Final = re.compile(r"kubepods|(?:[^/]+-)?kubepods\.slice")
_CLASS: Final = re.compile(r"burstable|besteffort|[^/]+-(?:burstable|besteffort)\.slice")
_POD: Final = re.compile(r"pod(?P<uid>[0-9A-Za-z][0-9A-Za-z-]{0,62})|[^/]+-pod(?P<escaped>[0-9A-Za-z][0-9A-Za-z_]{0,62})\.slice")
# --cgroup-root is "/kubelet", or a path of two parts at most where it was seen.
_KUBEPODS_DEPTH: Final = 3
# What is looked at of a pod: cgroups (a container each, and those that a container makes below its own), and the first processes
# of each, for in its order the oldest are first.
_MAX_CGROUPS: Final = 64
_MAX_DEPTH: Final = 3
_MAX_PROCESSES: Final = 8
_READ_BYTES: Final = 4096
_STARTED: Final = 19  # the field starttime of /proc/PID/stat (proc(5): the 22nd), counted from what follows the name


class PodNetns(NamedTuple):
    """A pod's network namespace.  netns_fd: the caller's to close.  path: through a process that is in it now."""

    netns_fd: int
    path: str


class _Process(NamedTuple):
    started: int
    pid: int
    cgroup: str


def pod_uid(directory: str) -> str:
    """The uid of the pod whose cgroup has this name, "" if it is no pod's."""
    match = _POD.fullmatch(directory)
    if match is None:
        return ""
    return match["uid"] or match["escaped"].replace("_", "-")


def hierarchies(mountinfo: str) -> list[Path]:
    """Where hierarchies of cgroups are mounted whole, version 2 first.  mountinfo: the text of /proc/self/mountinfo."""
    found: dict[str, list[Path]] = {"cgroup2": [], "cgroup": []}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, fields = after.partition(" ")[0], before.split(" ")
        if kind in found and fields[3] == "/":
            found[kind].append(Path(fields[4].encode().decode("unicode_escape")))
    return [*found["cgroup2"], *found["cgroup"]]


class PodFinder:
    """cgroup_root: where to look, or None: in every hierarchy."""

    def __init__(self, cgroup_root: Path | None = None, *, addresses: Callable[[int], tuple[str, ...]] = pod_addresses) -> None:
        self._cgroup_root = cgroup_root
        self._addresses = addresses
        self._kubepods: list[str] = []

    def find(self, wanted: Mapping[str, frozenset[str]]) -> tuple[dict[str, PodNetns], dict[str, str]]:
        """The namespaces of the pods `wanted`, by uid, and why the others are not found.

        wanted: addresses by uid, one of which the namespace must have.
        """
        found: dict[str, PodNetns] = {}
        missing: dict[str, str] = {}
        directories = self.directories()
        if not directories.keys() >= wanted.keys():
            self._kubepods = []  # another one may be there by now
            directories = self.directories()
        for uid, addresses in wanted.items():
            try:
                found[uid] = self._find_one(directories.get(uid, []), addresses)
            except (NodeproxyError, OSError) as error:
                missing[uid] = str(error)
        return found, missing

    def directories(self) -> dict[str, list[str]]:
        """The cgroups of all pods of the node by uid: one walk, whatever is wanted."""
        found: dict[str, list[str]] = {}
        if not self._kubepods or not all(map(os.path.isdir, self._kubepods)):
            self._kubepods = self._find_kubepods()
        for top in self._kubepods:
            for entry in _subdirectories(top):
                if _CLASS.fullmatch(entry.name):
                    for below in _subdirectories(entry.path):
                        _note(found, below)
                else:
                    _note(found, entry)
        return found

    def _find_kubepods(self) -> list[str]:
        if self._cgroup_root is not None:
            roots = [self._cgroup_root]
        else:
            roots = hierarchies(Path("/proc/self/mountinfo").read_text(encoding="utf-8"))
        for root in roots:
            # What the kubelet has in one hierarchy, it has in all that it uses.
            if found := list(_walk_roots(str(root), _KUBEPODS_DEPTH)):
                return found
        return []

    def _find_one(self, directories: list[str], addresses: frozenset[str]) -> PodNetns:
        if not directories:
            raise EnrolmentError("the kubelet has made no cgroup for it yet")
        processes = sorted(process for directory in directories for process in _processes(directory))
        if not processes:
            raise EnrolmentError("it has no process yet")
        others: dict[int, str] = {}  # namespaces that are not it, and why
        for process in processes:
            netns_fd = _open_netns(process)
            if netns_fd is None:
                continue
            inode = netns_inode(netns_fd)
            try:
                if inode not in others:
                    others[inode] = self._why_not(netns_fd, process, addresses)
                if not others[inode]:
                    return PodNetns(os.dup(netns_fd), f"/proc/{process.pid}/ns/net")
            finally:
                os.close(netns_fd)
        raise EnrolmentError("; ".join(others.values()) or "its processes have ended")

    def _why_not(self, netns_fd: int, process: _Process, addresses: frozenset[str]) -> str:
        """Why this is not the pod's namespace, "" if it is."""
        try:
            refuse_node_netns(netns_fd, f"/proc/{process.pid}/ns/net")
            present = self._addresses(netns_fd)
        except NodeproxyError as error:
            return str(error)
        if addresses.isdisjoint(present):
            return f"process {process.pid} is in a network that has none of its addresses ({', '.join(sorted(addresses))})"
        return ""


def _note(found: dict[str, list[str]], entry: os.DirEntry[str]) -> None:
    uid = pod_uid(entry.name)
    if uid and _is_roots(entry):
        found.setdefault(uid, []).append(entry.path)


def _walk_roots(directory: str, depth: int) -> Iterator[str]:
    """The kubelet's cgroups at or above `depth`; what is within one of them, or was made by somebody else than root, is none."""
    for entry in _subdirectories(directory):
        if not _is_roots(entry):
            continue
        if _KUBEPODS.fullmatch(entry.name):
            yield entry.path
        elif depth > 1:
            yield from _walk_roots(entry.path, depth - 1)


def _subdirectories(directory: str) -> list[os.DirEntry[str]]:
    """None of one that has gone."""
    try:
        with os.scandir(directory) as entries:
            return [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def _is_roots(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.stat(follow_symlinks=False).st_uid == 0
    except OSError:
        return False


def _processes(directory: str) -> Iterator[_Process]:
    """The first processes of a pod's cgroups, the runtime's before those that a container made."""
    todo = [(directory, _MAX_DEPTH)]
    seen = 0
    while todo and seen < _MAX_CGROUPS:
        cgroup, depth = todo.pop(0)
        seen += 1
        for pid in _pids(cgroup):
            started = _started(pid)
            if started is not None:
                yield _Process(started, pid, cgroup)
        if depth:
            todo += [(entry.path, depth - 1) for entry in _subdirectories(cgroup)]


def _pids(cgroup: str) -> list[int]:
    """Processes of a cgroup, the first of them; none of one that has gone, or that has threads only."""
    try:
        with open(f"{cgroup}/cgroup.procs", "rb") as file:
            text = file.read(_READ_BYTES)
    except OSError:
        return []
    pids = [int(line) for line in text.rpartition(b"\n")[0].split()[:_MAX_PROCESSES]]
    if 0 in pids:
        raise KernelError("the node's processes are not seen from here: the agent must be in the node's PID namespace (hostPID)")
    return pids


def _started(pid: int) -> int | None:
    """When a process began, in ticks since the boot; None if it has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read(_READ_BYTES).rpartition(b")")[2].split()[_STARTED])
    except OSError:
        return None


def _open_netns(process: _Process) -> int | None:
    """The namespace that the process is in; None if it has ended, or its pid was used again for one that is not in the cgroup."""
    try:
        directory = os.open(f"/proc/{process.pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if process.pid not in _pids(process.cgroup):
            return None
        return os.open("ns/net", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    except PermissionError as error:
        raise KernelError("a pod's process may not be looked at: CAP_SYS_PTRACE is missing", error.errno or 0) from error
    except OSError:
        return None
    finally:
        os.close(directory)


def places(finder: PodFinder, wanted: Mapping[str, frozenset[str]]) -> tuple[dict[str, tuple[str, int]], dict[str, str]]:
    """Path and inode of these pods' network namespaces, and why others are not found.

    All of it in the caller's thread, so that no namespace stays open for who has been cancelled meanwhile.
    """
    found, missing = finder.find(wanted)
    try:
        return {uid: (namespace.path, netns_inode(namespace.netns_fd)) for uid, namespace in found.items()}, missing
    finally:
        for namespace in found.values():
            os.close(namespace.netns_fd)
