"""The few bpf(2) calls that pinned objects need, through ctypes, so that the agent never imports bcc (64 MB).

Every function either does what it says or raises `KernelError` with the errno.  Knows nothing of nodeproxy's maps and programs.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from nodeproxy.errors import KernelError, PrivilegeError

# Number of bpf(2): <asm/unistd_64.h> on x86, <asm-generic/unistd.h> on the others.
_SYSCALL = {"x86_64": 321}.get(platform.machine(), 280)
# sizeof(union bpf_attr) is more on any kernel ≥ 6.1; what a command does not use must be zero, and short attributes are allowed.
_ATTRIBUTE_BYTES = 72

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


def syscall_number() -> int:
    """The number of bpf(2) on this machine, for callers that cannot afford `call`."""
    return _SYSCALL


class Command(IntEnum):
    """enum bpf_cmd of <linux/bpf.h>."""

    MAP_LOOKUP = 1
    MAP_UPDATE = 2
    MAP_DELETE = 3
    MAP_GET_NEXT_KEY = 4
    PROG_LOAD = 5
    OBJ_PIN = 6
    OBJ_GET = 7
    OBJ_GET_INFO = 15
    PROG_QUERY = 16
    MAP_LOOKUP_BATCH = 24
    MAP_UPDATE_BATCH = 26
    MAP_DELETE_BATCH = 27
    LINK_CREATE = 28
    LINK_UPDATE = 29
    LINK_DETACH = 34


class AttachType(IntEnum):
    """enum bpf_attach_type of <linux/bpf.h>."""

    SOCK_OPS = 3
    CONNECT4 = 10
    CONNECT6 = 11
    GETPEERNAME4 = 29
    GETPEERNAME6 = 30
    SK_LOOKUP = 36


class ProgramType(IntEnum):
    """enum bpf_prog_type of <linux/bpf.h>."""

    SOCK_OPS = 13
    SOCK_ADDR = 18
    SK_LOOKUP = 30


def call(command: Command, attribute: bytes, what: str, *buffers: object) -> int:
    """bpf(command, attribute); `what` opens the error's text, `buffers` are kept alive meanwhile."""
    block = ctypes.create_string_buffer(attribute, _ATTRIBUTE_BYTES)
    result = int(_syscall(_SYSCALL, int(command), block, _ATTRIBUTE_BYTES))
    if result >= 0:
        return result
    number = ctypes.get_errno()
    if number == errno.EPERM:
        raise PrivilegeError(f"{what}: not permitted; nodeproxy needs CAP_NET_ADMIN and CAP_SYS_ADMIN (run it as root)")
    raise KernelError(f"{what}: {os.strerror(number)}", number)


def _text(path: Path) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(os.fsencode(path))


def obj_get(path: Path) -> int:
    """A descriptor of the object pinned at `path`."""
    text = _text(path)
    return call(Command.OBJ_GET, struct.pack("=QII", ctypes.addressof(text), 0, 0), f"opening the pin {path}", text)


def obj_pin(descriptor: int, path: Path) -> None:
    """Pin a program, map or link at `path`, which must not be there."""
    text = _text(path)
    call(Command.OBJ_PIN, struct.pack("=QII", ctypes.addressof(text), descriptor, 0), f"pinning {path}", text)


def link_create(program: int, target: int, attach_type: AttachType) -> int:
    """Attach a program to a cgroup (directory's descriptor) or network namespace; the link's descriptor."""
    return call(
        Command.LINK_CREATE, struct.pack("=IIII", program, target, attach_type, 0), f"attaching {attach_type.name.lower()}"
    )


def link_update(link: int, program: int) -> None:
    """Replace the program behind a link in one step."""
    call(Command.LINK_UPDATE, struct.pack("=IIII", link, program, 0, 0), "replacing a link's program")


def link_detach(link: int) -> None:
    """Detach now; closing the last descriptor of a link would do it too, but some time later."""
    call(Command.LINK_DETACH, struct.pack("=I", link), "detaching a program")


class LinkInfo(NamedTuple):
    """program_id: what the link runs.  target: cgroup id or netns inode; 0 when that has gone."""

    program_id: int
    target: int


def _info(descriptor: int, what: str) -> bytes:
    data = ctypes.create_string_buffer(256)
    call(Command.OBJ_GET_INFO, struct.pack("=IIQ", descriptor, len(data), ctypes.addressof(data)), what, data)
    return data.raw


def link_info(link: int) -> LinkInfo:
    """What a cgroup's or netns's link connects.

    Struct bpf_link_info: type, id, prog_id, padding, then u64 cgroup_id or u32 netns_ino.
    """
    kind, _, program_id, target64 = struct.unpack_from("=IIIxxxxQ", data := _info(link, "asking about a link"))
    is_netns = kind == 5  # BPF_LINK_TYPE_NETNS
    return LinkInfo(program_id, struct.unpack_from("=I", data, 16)[0] if is_netns else target64)


def program_id(program: int) -> int:
    """The kernel's number of a program.  struct bpf_prog_info: type, id, …"""
    return int(struct.unpack_from("=II", _info(program, "asking about a program"))[1])


def attached_programs(target: int, attach_type: AttachType) -> list[int]:
    """The numbers of the programs attached to this very cgroup or network namespace."""
    most = 64
    numbers = (ctypes.c_uint32 * most)()
    attribute = ctypes.create_string_buffer(
        struct.pack("=IIIIQI", target, attach_type, 0, 0, ctypes.addressof(numbers), most), _ATTRIBUTE_BYTES
    )
    if _syscall(_SYSCALL, int(Command.PROG_QUERY), attribute, _ATTRIBUTE_BYTES) < 0:
        number = ctypes.get_errno()
        raise KernelError(f"asking what is attached as {attach_type.name.lower()}: {os.strerror(number)}", number)
    count = struct.unpack_from("=I", attribute.raw, 24)[0]
    return list(numbers[:count])


def _possible_cpus() -> int:
    """How many values a per-CPU map has: one for each CPU that may ever be there, "0-3" or "0,2-5"."""
    last = Path("/sys/devices/system/cpu/possible").read_text(encoding="ascii").strip().split(",")[-1]
    return int(last.split("-")[-1]) + 1


class Map:
    """One pinned map, by descriptor; keys and values are bytes."""

    def __init__(self, descriptor: int, name: str) -> None:
        self.fd = descriptor
        self.name = name
        # struct bpf_map_info: type, id, key_size, value_size, max_entries, …
        self.type, _, self.key_bytes, self.value_bytes, self.max_entries = struct.unpack_from(
            "=5I", _info(descriptor, f"map {name}")
        )
        self._key = ctypes.create_string_buffer(self.key_bytes)
        self._value = ctypes.create_string_buffer(self.value_bytes)

    @classmethod
    def open(cls, path: Path) -> Map:
        """The map pinned at `path`."""
        return cls(obj_get(path), path.name)

    def close(self) -> None:
        """Give the descriptor back; the pin keeps the map."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _attribute(self, value: int, flags: int = 0) -> bytes:
        return struct.pack("=IxxxxQQQ", self.fd, ctypes.addressof(self._key), value, flags)

    def get(self, key: bytes) -> bytes | None:
        """The value, or None."""
        self._key.raw = key
        try:
            call(Command.MAP_LOOKUP, self._attribute(ctypes.addressof(self._value)), f"reading map {self.name}")
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return self._value.raw

    def put(self, key: bytes, value: bytes) -> None:
        """Set a value, whether or not there was one."""
        self._key.raw, self._value.raw = key, value
        try:
            call(Command.MAP_UPDATE, self._attribute(ctypes.addressof(self._value)), f"writing map {self.name}")
        except KernelError as error:
            if error.errno == errno.E2BIG:
                raise KernelError(f"map {self.name} is full ({self.max_entries} entries)", errno.E2BIG) from error
            raise

    def delete(self, key: bytes) -> bool:
        """Remove a key; whether it was there."""
        self._key.raw = key
        try:
            call(Command.MAP_DELETE, self._attribute(0), f"deleting from map {self.name}")
        except KernelError as error:
            if error.errno in (errno.ENOENT, errno.EINVAL):  # a sockhash says EINVAL
                return False
            raise
        return True

    def all_keys(self) -> Iterator[bytes]:
        """The keys, as a walk of the kernel gives them; collected first, so that the caller may delete."""
        found: list[bytes] = []
        following = ctypes.create_string_buffer(self.key_bytes)
        address = 0
        while len(found) <= self.max_entries:
            attribute = struct.pack("=IxxxxQQQ", self.fd, address, ctypes.addressof(following), 0)
            try:
                call(Command.MAP_GET_NEXT_KEY, attribute, f"walking map {self.name}", following)
            except KernelError as error:
                if error.errno == errno.ENOENT:
                    break
                raise
            found.append(following.raw)
            self._key.raw = following.raw
            address = ctypes.addressof(self._key)
        return iter(found)

    def per_cpu_sum(self, index: int) -> int:
        """The sum over CPUs of a per-CPU array of u64."""
        values = (ctypes.c_uint64 * _possible_cpus())()
        self._key.raw = struct.pack("=I", index)
        call(Command.MAP_LOOKUP, self._attribute(ctypes.addressof(values)), f"reading map {self.name}", values)
        return sum(values)
