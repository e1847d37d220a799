"""Where BCC finds kernel headers.

Our programs use only what the kernel promises to user space, so any recent headers do (Debian's 6.1 serve a 6.18 kernel).
The running kernel's own are taken when they are there, else the newest of /usr/src.
"""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import NamedTuple

from nodeproxy.errors import PrivilegeError

_ARCHITECTURES = {"x86_64": ("x86", "amd64"), "aarch64": ("arm64", "arm64")}


class Headers(NamedTuple):
    """What BCC must be told: environment variables and further compiler flags.  origin: for people."""

    environment: dict[str, str]
    compiler_flags: list[str]
    origin: str


def _version(path: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", path.name))


def kernel_headers() -> Headers:
    """The headers to compile with, or `PrivilegeError` with the package to install."""
    release = platform.release()
    own = Path("/lib/modules") / release
    if (own / "build" / "include").is_dir() or Path("/sys/kernel/kheaders.tar.xz").exists():
        return Headers({}, [], str(own / "build"))
    kernel_name, debian_name = _ARCHITECTURES.get(platform.machine(), ("x86", "amd64"))
    for built in sorted(Path("/usr/src").glob(f"linux-headers-*-{debian_name}"), key=_version, reverse=True):
        common = built.with_name(built.name.removesuffix(debian_name) + "common")
        if not (common / "include" / "linux" / "kconfig.h").is_file():
            continue
        generated = [
            f"arch/{kernel_name}/include/generated",
            f"arch/{kernel_name}/include/generated/uapi",
            "include",
            "include/generated/uapi",
        ]
        flags = [f"-I{built / directory}" for directory in generated if (built / directory).is_dir()]
        return Headers({"BCC_KERNEL_SOURCE": os.fspath(common)}, flags, str(built))
    raise PrivilegeError(f"no kernel headers for {release} and none in /usr/src: apt-get install linux-headers-{debian_name}")
