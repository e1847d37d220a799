"""Compiles the eBPF programs, loads them, pins them with their maps, and ends: a child process, for bcc costs 64 MB and more.

    python -m nodeproxy.kernel.loader DIRECTORY

DIRECTORY is on a BPF file system; `maps/` in it may already hold maps to share.  Nothing is attached here: a loader that is
killed leaves a directory that nobody uses.  What goes wrong is said on stderr, the verifier's log with it; exit status 1,
or 2 for what the platform lacks.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from nodeproxy.errors import NodeproxyError, PrivilegeError
from nodeproxy.kernel import bpf
from nodeproxy.kernel.headers import kernel_headers
from nodeproxy.kernel.programs import PROGRAMS, source_text

EXIT_PLATFORM = 2


def _load(directory: Path) -> None:
    try:
        from bcc import BPF
    except ImportError as error:
        raise PrivilegeError(
            f"bcc is missing ({error}): apt-get install python3-bpfcc, and make the venv with --system-site-packages"
        ) from error
    (directory / "maps").mkdir(exist_ok=True)
    (directory / "programs").mkdir()
    headers = kernel_headers()
    os.environ.update(headers.environment)
    module = BPF(
        text=source_text(),
        # BCC's own headers and the kernel's are full of warnings on a clang newer than they are; an error still is one.
        cflags=[f'-DNP_PINS="{directory / "maps"}"', "-Wno-everything", *headers.compiler_flags],
    )
    for program in PROGRAMS:
        function = module.load_func(program.function, int(program.type), attach_type=int(program.attach_type))
        bpf.obj_pin(function.fd, directory / "programs" / program.name)


def main(arguments: list[str]) -> int:
    """The child's whole life."""
    try:
        _load(Path(arguments[0]))
    except PrivilegeError as error:
        print(error, file=sys.stderr)
        return EXIT_PLATFORM
    except NodeproxyError as error:
        print(error, file=sys.stderr)
        return 1
    except Exception as error:  # bcc raises bare Exceptions
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
