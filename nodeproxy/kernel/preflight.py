"""What this kernel and machine offer of the eBPF that nodeproxy needs.

Loads a program of two instructions of each kind, attaches none.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import struct

from nodeproxy.errors import NodeproxyError
from nodeproxy.kernel import bpf
from nodeproxy.kernel.headers import kernel_headers
from nodeproxy.kernel.programs import PROGRAMS, Program
from nodeproxy.model.requirement import Requirement

# r0 = 1; exit  (struct bpf_insn: code, registers, offset, immediate)
_RETURN_ONE = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 1, 0x95, 0, 0, 0)


def rows() -> list[Requirement]:
    """One row for each requirement."""
    return [_bcc(), _headers(), *(_program(program) for program in PROGRAMS)]


def _bcc() -> Requirement:
    there = importlib.util.find_spec("bcc") is not None
    remedy = "apt-get install python3-bpfcc; a virtual environment must be made with --system-site-packages"
    return Requirement("BCC", there, "there" if there else "missing", "" if there else remedy)


def _headers() -> Requirement:
    try:
        return Requirement("kernel headers (any recent)", True, kernel_headers().origin)
    except NodeproxyError as error:
        return Requirement("kernel headers (any recent)", False, "missing", str(error))


def _program(program: Program) -> Requirement:
    name = f"eBPF program {program.name}"
    try:
        os.close(_load(program))
    except NodeproxyError as error:
        return Requirement(
            name, False, str(error), "run as root, on a kernel ≥ 6.1 with CONFIG_BPF_SYSCALL and CONFIG_CGROUP_BPF"
        )
    return Requirement(name, True, "loads")


def _load(program: Program) -> int:
    code, licence = ctypes.create_string_buffer(_RETURN_ONE), ctypes.create_string_buffer(b"Dual BSD/GPL")
    # union bpf_attr for BPF_PROG_LOAD up to expected_attach_type.
    attribute = struct.pack(
        "=IIQQIIQII16sII",
        program.type,
        len(_RETURN_ONE) // 8,
        ctypes.addressof(code),
        ctypes.addressof(licence),
        0,  # log_level
        0,  # log_size
        0,  # log_buf
        0,  # kern_version
        0,  # prog_flags
        b"np_check",
        0,  # prog_ifindex
        program.attach_type,
    )
    return bpf.call(bpf.Command.PROG_LOAD, attribute, f"loading a {program.name} program", code, licence)
