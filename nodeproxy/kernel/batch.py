"""Many entries of a hash map in one bpf(2) call: at some 10,000 entries, the calls would cost more than the entries.

Works on maps by descriptor and bytes, like `bpf.Map`; keys and values are packed one behind the other.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final

from nodeproxy.errors import KernelError
from nodeproxy.kernel.bpf import Command, Map, syscall_number

# Few calls, and buffers of some 100 KB.  A look-up takes whole buckets of the hash map, which hold a few entries.
BATCH: Final = 2048


class _Attribute(ctypes.Structure):
    """The part of union bpf_attr that the batch commands use."""

    _fields_ = (
        ("in_batch", ctypes.c_uint64),
        ("out_batch", ctypes.c_uint64),
        ("keys", ctypes.c_uint64),
        ("values", ctypes.c_uint64),
        ("count", ctypes.c_uint32),
        ("map_fd", ctypes.c_uint32),
        ("element_flags", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
    )


_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_long)


def _call(command: Command, attribute: _Attribute) -> int:
    """The error number, or 0; `attribute.count` then says for how many entries it was done."""
    if _syscall(syscall_number(), int(command), ctypes.addressof(attribute), ctypes.sizeof(attribute)) < 0:
        return ctypes.get_errno()
    return 0


def _failed(what: str, opened: Map, number: int) -> KernelError:
    return KernelError(f"{what} map {opened.name}: {os.strerror(number)}", number)


def update(opened: Map, entries: Iterable[tuple[bytes, bytes]]) -> int:
    """Set (key, value) after (key, value).  How many did not find room; once the map is full the others are not tried."""
    source = iter(entries)
    left = 0
    while batch := list(islice(source, BATCH)):
        if left:
            left += len(batch)
            continue
        keys, values = b"".join(key for key, _ in batch), b"".join(value for _, value in batch)
        key_buffer, value_buffer = ctypes.create_string_buffer(keys, len(keys)), ctypes.create_string_buffer(values, len(values))
        attribute = _Attribute(
            keys=ctypes.addressof(key_buffer), values=ctypes.addressof(value_buffer), count=len(batch), map_fd=opened.fd
        )
        number = _call(Command.MAP_UPDATE_BATCH, attribute)
        if number in (errno.E2BIG, errno.ENOMEM):
            left = len(batch) - attribute.count
        elif number:
            raise _failed("writing", opened, number)
    return left


def delete(opened: Map, keys: Iterable[bytes]) -> None:
    """Remove keys; one that is not there is no error."""
    source = iter(keys)
    while batch := list(islice(source, BATCH)):
        while batch:
            packed = b"".join(batch)
            buffer = ctypes.create_string_buffer(packed, len(packed))
            attribute = _Attribute(keys=ctypes.addressof(buffer), count=len(batch), map_fd=opened.fd)
            number = _call(Command.MAP_DELETE_BATCH, attribute)
            if number not in (0, errno.ENOENT):
                raise _failed("deleting from", opened, number)
            batch = batch[attribute.count + 1 :] if number else []


def walk(opened: Map) -> Iterator[tuple[bytes, bytes]]:
    """Some keys and as many values at a time, until all were there.  What changes meanwhile may be missed, or be seen twice."""
    keys = ctypes.create_string_buffer(BATCH * opened.key_bytes)
    values = ctypes.create_string_buffer(BATCH * opened.value_bytes)
    position = ctypes.c_uint64()
    attribute = _Attribute(
        out_batch=ctypes.addressof(position), keys=ctypes.addressof(keys), values=ctypes.addressof(values), map_fd=opened.fd
    )
    number = 0
    while number != errno.ENOENT:
        attribute.count = BATCH
        number = _call(Command.MAP_LOOKUP_BATCH, attribute)
        if number not in (0, errno.ENOENT):
            raise _failed("walking", opened, number)
        attribute.in_batch = attribute.out_batch
        yield keys.raw[: attribute.count * opened.key_bytes], values.raw[: attribute.count * opened.value_bytes]
