"""Network namespaces: open, tell apart, enter and come back.

Entering is for the calling thread and ends with the `with` block.  A thread that cannot come back would go on in a pod's
network with the node's privileges, so that is fatal to the process.  A worker, which does nothing but to make sockets in pods,
may stay where it made the last one (`Visitor`).  Workers import this module: ctypes, os and socket only.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import struct
from types import TracebackType
from typing import Final

from nodeproxy.errors import EnrolmentError, KernelError, PrivilegeError

_CLONE_NEWNET: Final = 0x40000000  # <linux/sched.h>
_NS_GET_NSTYPE: Final = 0xB703  # <linux/nsfs.h>
_SO_NETNS_COOKIE: Final = 71  # <asm-generic/socket.h>, since Linux 5.14

_setns = ctypes.CDLL(None, use_errno=True).setns
_home_fd = -1


def _home() -> int:
    """The namespace of this process; opened once, by whoever first leaves it."""
    global _home_fd
    if _home_fd < 0:
        _home_fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    return _home_fd


class inside:  # noqa: N801 - reads as the statement that it is: `with inside(pod):`
    """Run the block in a network namespace.  Not re-entrant: the way back is always home."""

    __slots__ = ("_home", "_netns_fd")

    def __init__(self, netns_fd: int) -> None:
        self._netns_fd = netns_fd
        self._home = _home()

    def __enter__(self) -> None:
        if _setns(self._netns_fd, _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            if number == errno.EPERM:
                raise PrivilegeError("entering a pod's network namespace: not permitted; CAP_SYS_ADMIN is missing")
            raise KernelError(f"entering a pod's network namespace: {os.strerror(number)}", number)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if _setns(self._home, _CLONE_NEWNET) != 0:
            os.write(
                2, f"nodeproxy: cannot leave a pod's network namespace: {os.strerror(ctypes.get_errno())}; ending\n".encode()
            )
            os.abort()


class Visitor:
    """The one thread of a process that goes from pod to pod, and stays in a pod until it is wanted in another.

    A worker makes a socket for each connection, mostly in the pod of the one before: going there and back took 6 µs.  It holds
    the pod's namespace anyway, by descriptor.  Call `leave` before that descriptor is closed.
    """

    __slots__ = ("_where",)

    def __init__(self) -> None:
        self._where = -1  # the descriptor of where it is, -1 at home

    def go(self, netns_fd: int) -> None:
        """Be in that namespace from now on."""
        if netns_fd != self._where:
            inside(netns_fd).__enter__()
            self._where = netns_fd

    def leave(self, netns_fd: int) -> None:
        """Be at home, if this is where it is."""
        if netns_fd == self._where:
            self._where = -1
            inside(netns_fd).__exit__(None, None, None)


def open_netns(path: str) -> int:
    """A descriptor of the network namespace at `path`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise EnrolmentError(f"network namespace {path} does not exist; has the pod gone?") from error
    except OSError as error:
        raise EnrolmentError(f"network namespace {path}: {error.strerror}") from error
    try:
        refuse_other_kinds(descriptor, path)
    except EnrolmentError:
        os.close(descriptor)
        raise
    return descriptor


def refuse_other_kinds(descriptor: int, path: str) -> None:
    """Only of a network namespace; path: what it is called in the error."""
    try:
        kind = fcntl.ioctl(descriptor, _NS_GET_NSTYPE)
    except OSError:
        kind = 0
    if kind != _CLONE_NEWNET:
        raise EnrolmentError(f"{path} is not a network namespace (a file that is left when its mount has gone looks like this)")


def netns_inode(netns_fd: int) -> int:
    """The number in "net:[…]"; reused by the kernel after the namespace's end."""
    return os.fstat(netns_fd).st_ino


def netns_cookie(netns_fd: int) -> int:
    """The kernel's number of a network namespace; never reused while the machine is up."""
    with inside(netns_fd), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        return int(struct.unpack("=Q", probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8))[0])


def node_netns_inodes() -> frozenset[int]:
    """The node's own network: this process's and, as an agent in a pod may have a network of its own, that of the first process.

    Where the latter may not be looked at (without CAP_SYS_PTRACE, or hostPID) it is this process's alone.
    """
    found = {netns_inode(_home())}
    with contextlib.suppress(OSError):
        found.add(os.stat("/proc/1/ns/net").st_ino)
    return frozenset(found)


def refuse_node_netns(netns_fd: int, path: str) -> None:
    """A pod in the host's network cannot be told from the node itself, so it is never enrolled."""
    if netns_inode(netns_fd) in node_netns_inodes():
        raise EnrolmentError(f"{path} is the node's own network (a pod with hostNetwork?): it cannot be enrolled")
