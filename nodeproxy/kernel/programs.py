"""Which eBPF programs there are, where their sources stand, and the digest that tells two builds apart."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Final, NamedTuple

from nodeproxy.errors import ConfigError
from nodeproxy.kernel.bpf import AttachType, ProgramType


class Program(NamedTuple):
    """name: of pin and link.  function: in the C source."""

    name: str
    type: ProgramType
    attach_type: AttachType

    @property
    def function(self) -> str:
        """The C function; with 15 letters it is also the program's whole name for the kernel (BPF_OBJ_NAME_LEN)."""
        return f"np_{self.name}"


SK_LOOKUP: Final = Program("sk_lookup", ProgramType.SK_LOOKUP, AttachType.SK_LOOKUP)
# In the order of attaching: what must be known of a connection (sockops) before what leads it (connect).
CGROUP_PROGRAMS: Final = (
    Program("sockops", ProgramType.SOCK_OPS, AttachType.SOCK_OPS),
    Program("getpeername4", ProgramType.SOCK_ADDR, AttachType.GETPEERNAME4),
    Program("getpeername6", ProgramType.SOCK_ADDR, AttachType.GETPEERNAME6),
    Program("connect4", ProgramType.SOCK_ADDR, AttachType.CONNECT4),
    Program("connect6", ProgramType.SOCK_ADDR, AttachType.CONNECT6),
)
PROGRAMS: Final = (*CGROUP_PROGRAMS, SK_LOOKUP)

_HEADER: Final = "nodeproxy.h"
# What maps look like, and then what programs share.
_MAP_HEADERS: Final = (_HEADER, "maps.h")
_SOURCES: Final = (
    *_MAP_HEADERS,
    "direct.h",
    "kubelet.h",
    "sockops_maps.h",
    "sockops_direct.h",
    "connect.c",
    "getpeername.c",
    "sockops.c",
    "sk_lookup.c",
)
_PACKAGE: Final = Path(__file__).resolve().parent.parent


def source_directory() -> Path:
    """In a wheel the sources are in the package, in a checkout beside it."""
    for directory in (_PACKAGE / "bpf", _PACKAGE.parent / "bpf"):
        if (directory / _HEADER).is_file():
            return directory
    raise ConfigError(
        f"the eBPF sources are missing: neither {_PACKAGE / 'bpf'} nor {_PACKAGE.parent / 'bpf'} has {_HEADER}; install again"
    )


def source_text() -> str:
    """All sources as one: BCC rewrites map operations only in its main file, and one compilation is faster than four."""
    directory = source_directory()
    parts = ["#include <uapi/linux/bpf.h>\n#include <uapi/linux/in.h>\n#include <uapi/asm-generic/errno.h>\n", _NUMBERS]
    for name in _SOURCES:
        text = _OUR_INCLUDE.sub("", (directory / name).read_text(encoding="utf-8"))
        parts.append(f'#line 1 "{name}"\n{text}')
    return "\n".join(parts)


_OUR_INCLUDE: Final = re.compile(r'^#include ".*\n', re.MULTILINE)
# <linux/socket.h> has these, but pulls in half of the kernel.
_NUMBERS: Final = "#define AF_INET 2\n#define AF_INET6 10\n"


def map_digest() -> str:
    """Changes when a map's layout may have: maps of the same digest are shared between generations."""
    return hashlib.sha256(b"".join((source_directory() / name).read_bytes() for name in _MAP_HEADERS)).hexdigest()[:12]


def digest() -> str:
    """Changes when any source does."""
    return hashlib.sha256(source_text().encode()).hexdigest()[:12]
