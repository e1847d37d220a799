"""Where a steered connection wanted to go: read by a worker from the accepted socket's BPF storage, once a connection.

One bpf(2) call over buffers made once.  Imports only what a worker has anyway.
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import NamedTuple

from nodeproxy.errors import KernelError
from nodeproxy.kernel import abi
from nodeproxy.kernel.abi import Kind
from nodeproxy.kernel.bpf import Command, syscall_number


class _Lookup(ctypes.Structure):
    """The part of union bpf_attr that BPF_MAP_LOOKUP_ELEM uses."""

    _fields_ = (
        ("map_fd", ctypes.c_uint32),
        ("_", ctypes.c_uint32),
        ("key", ctypes.c_uint64),
        ("value", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
    )


class DirectArrival(NamedTuple):
    """A connection that began as a direct one and was handed to a worker: the verdict no longer held when its SYN came.

    source_cookie: of the client's network namespace, which the kernel vouches for.  ip, port: what the client asked for.
    """

    source_cookie: int
    ip: str
    port: int


class OriginalDestination:
    """The map `original_destination`, by the descriptor that the agent gave."""

    def __init__(self, map_fd: int) -> None:
        self._key = ctypes.c_uint32()
        self._value = (ctypes.c_ubyte * abi.DESTINATION.size)()
        self._attribute = _Lookup(map_fd, 0, ctypes.addressof(self._key), ctypes.addressof(self._value), 0)
        call = ctypes.CDLL(None, use_errno=True).syscall
        call.restype = ctypes.c_long
        call.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_long)
        self._call = call
        self._fixed = (
            syscall_number(),
            int(Command.MAP_LOOKUP),
            ctypes.addressof(self._attribute),
            ctypes.sizeof(self._attribute),
        )

    def get(self, sock_fd: int) -> tuple[str, int] | None:
        """(address, port) that the application connected to; None if the connection was not steered here."""
        found = self._look_up(sock_fd)
        return (abi.unpack_ip(found[0]), found[1]) if found else None

    def direct(self, sock_fd: int) -> DirectArrival | None:
        """Who a connection on a plaintext listener is from, if it began as a direct one; None for any other."""
        found = self._look_up(sock_fd)
        if found is None:
            return None
        ip, port, kind, source_cookie = found
        return DirectArrival(source_cookie, abi.unpack_ip(ip), port) if kind == Kind.DIRECT else None

    def _look_up(self, sock_fd: int) -> tuple[bytes, int, int, int] | None:
        self._key.value = sock_fd
        if self._call(*self._fixed) < 0:
            number = ctypes.get_errno()
            if number == errno.ENOENT:
                return None
            raise KernelError(f"reading a connection's original destination: {os.strerror(number)}", number)
        ip, port, kind, source_cookie = abi.DESTINATION.unpack(self._value)
        return ip, port, kind, source_cookie
