"""What this machine offers of what nodeproxy needs, eBPF apart (`kernel.preflight`).  Changes nothing that is not its own."""

from __future__ import annotations

import os
import platform
import re
import resource
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

from nodeproxy.errors import NodeproxyError
from nodeproxy.linux.bpffs import BPFFS, is_bpffs
from nodeproxy.linux.cgroup import cgroup2_mount
from nodeproxy.linux.kubelet import NoKubelet, find_kubelet
from nodeproxy.linux.sock_diag import can_destroy
from nodeproxy.model.requirement import Requirement

# The oldest kernel that the steering was tried on; bpf_set_retval in connect hooks came with 6.0.
_OLDEST_KERNEL: Final = (6, 1)
# <linux/capability.h>: number, name, what for
_CAPABILITIES: Final = (
    (1, "CAP_DAC_OVERRIDE", "make a cgroup in the root's directory, whose mode is 0555"),
    (12, "CAP_NET_ADMIN", "attach eBPF programs, set marks and routes"),
    (21, "CAP_SYS_ADMIN", "enter network namespaces, load eBPF programs, mount the BPF file system"),
)
# Each pod takes one descriptor and three for each worker, each relayed connection two: 100 pods and 7,000 connections a
# worker fit.
_WANTED_DESCRIPTORS: Final = 16_384
# <linux/rtnetlink.h>, <linux/netlink.h>
_RTM_GETRULE: Final = 34
_NLM_F_REQUEST: Final = 0x01
_NLM_F_DUMP: Final = 0x300
_NLMSG_ERROR: Final = 2
_WANTED_SYSCTLS: Final = ("net/ipv4/tcp_fwmark_accept", "net/ipv4/fwmark_reflect", "net/ipv4/tcp_tw_reuse")


def rows() -> list[Requirement]:
    """One row for each requirement."""
    checks: tuple[Callable[[], Requirement], ...] = (
        kernel,
        _cgroup2,
        _bpffs,
        _sysctls,
        _policy_routing,
        _ipv6,
        _mptcp,
        _destroy,
        _kubelet,
        _descriptors,
    )
    return [*(check() for check in checks), *capabilities()]


def kernel() -> Requirement:
    """Whether this kernel is recent enough: what `run` asks before it begins."""
    release = platform.release()
    version = tuple(int(part) for part in re.findall(r"\d+", release)[:2])
    wanted = ".".join(map(str, _OLDEST_KERNEL))
    return Requirement(
        f"Linux {wanted} or later",
        version >= _OLDEST_KERNEL,
        release,
        "" if version >= _OLDEST_KERNEL else f"boot a kernel ≥ {wanted}",
    )


def _cgroup2() -> Requirement:
    name = "cgroup v2 hierarchy, writable"
    try:
        mount = cgroup2_mount()
    except NodeproxyError as error:
        return Requirement(name, False, "none", str(error))
    writable = os.access(mount, os.W_OK)
    return Requirement(name, writable, str(mount), "" if writable else f"run as root, with {mount} mounted read-write")


def _bpffs() -> Requirement:
    if is_bpffs():
        return Requirement("BPF file system", True, str(BPFFS))
    possible = BPFFS.is_dir() and os.geteuid() == 0
    return Requirement(
        "BPF file system", possible, "not mounted yet: `run` does it", "" if possible else f"as root: mount -t bpf bpf {BPFFS}"
    )


def _sysctls() -> Requirement:
    missing = [name for name in _WANTED_SYSCTLS if not os.access(Path("/proc/sys") / name, os.W_OK)]
    remedy = "run as root; in a container /proc/sys must be writable (privileged)" if missing else ""
    return Requirement(
        "network sysctls, writable", not missing, f"not writable: {', '.join(missing)}" if missing else "writable", remedy
    )


def _policy_routing() -> Requirement:
    """A dump of the rules (<linux/rtnetlink.h>), which a kernel without CONFIG_IP_MULTIPLE_TABLES answers with an error."""
    header = struct.pack("=IHHII", 28, _RTM_GETRULE, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as netlink:
        netlink.send(header + struct.pack("=B11x", socket.AF_INET))
        there = struct.unpack_from("=IH", netlink.recv(65536))[1] != _NLMSG_ERROR
    remedy = "" if there else "boot a kernel with CONFIG_IP_MULTIPLE_TABLES"
    return Requirement("policy routing (brings applications' answers back)", there, "there" if there else "missing", remedy)


def _mptcp() -> Requirement:
    """No requirement: what asks for MPTCP is steered as the TCP that it falls back to."""
    there = Path("/proc/sys/net/mptcp/enabled").exists()
    return Requirement("MPTCP", True, "there: steered as TCP" if there else "no: pods cannot ask for it")


def _ipv6() -> Requirement:
    """No requirement in truth: pods without IPv6 are steered by IPv4 alone."""
    there = Path("/proc/net/if_inet6").exists()
    return Requirement("IPv6", True, "there" if there else "off: IPv4 only")


def _destroy() -> Requirement:
    """No requirement in truth either: without it pods of a node talk through the proxy."""
    missing = can_destroy()
    found = f"no: pods of this node talk through the proxy ({missing})" if missing else "there"
    return Requirement("SOCK_DESTROY (ends direct connections that policy no longer allows)", True, found)


def _kubelet() -> Requirement:
    """Nor is this one: without it the kubelet's probes are judged by policy."""
    name = "kubelet (its probes pass policies that ask for an identity)"
    try:
        found = find_kubelet(cgroup2_mount())
    except NodeproxyError as error:
        return Requirement(name, True, f"no: {error}")
    if isinstance(found, NoKubelet):
        return Requirement(name, True, f"none that is told from others: {found.why}")
    return Requirement(name, True, f"process {found.pid} in {found.cgroup}")


def _descriptors() -> Requirement:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = hard == resource.RLIM_INFINITY or hard >= _WANTED_DESCRIPTORS
    return Requirement(
        f"{_WANTED_DESCRIPTORS:,} file descriptors",
        enough,
        f"{hard:,} at most",
        "" if enough else "raise LimitNOFILE (systemd) or `ulimit -Hn`",
    )


def capabilities() -> list[Requirement]:
    """The rows of the capabilities alone: what `run` asks before it begins."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    effective = int(re.findall(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)[0], 16)
    found = []
    for number, name, purpose in _CAPABILITIES:
        has = bool(effective >> number & 1)
        found.append(
            Requirement(
                f"{name} ({purpose})", has, "there" if has else "missing", "" if has else "run as root, or add the capability"
            )
        )
    return found
