"""One emulated machine: a kernel of Debian's under QEMU without KVM, on this machine's own root, that runs one script and
ends.

The machine writes to its folder alone; what else it writes is in its own memory.  It has no network but the namespaces that it
makes.
"""

from __future__ import annotations

import contextlib
import os
import pty
import shlex
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.kernels.debian import Unpacked

CPUS = 2
MEMORY = "4G"
ENTER = Path(__file__).with_name("guest") / "enter.sh"
# Emulated mitigations and page-table isolation flush the translated code at each system call, and protect nobody here.
_KERNEL_ARGUMENTS = "mitigations=off"
_QEMU = (
    "-accel tcg,thread=multi,tb-size=1024 -cpu max,la57=off "
    "-fsdev local,id=npfs,path=/,security_model=none,readonly=on,multidevs=remap "
    "-device virtio-9p-pci,fsdev=npfs,mount_tag=nodeproxy-root"
)


def command(virtme: Path, kernel: Unpacked, folder: Path) -> list[str]:
    """vng's command line that boots the kernel, runs folder/run.sh in it, and ends with it."""
    options = ["--disable-kvm", "--disable-microvm", "--force-9p", "--user", "root", "--cpus", str(CPUS), "--memory", MEMORY]
    inside = f"sh {shlex.quote(str(ENTER))} {shlex.quote(str(folder))} >{shlex.quote(str(folder / 'guest.log'))} 2>&1"
    return [
        *("nice", "-n", "2", str(virtme / "vng"), *options),
        *("--rwdir", str(folder), "--append", _KERNEL_ARGUMENTS, f"--qemu-opts={_QEMU}"),
        *("--run", str(kernel.image), "--", inside),
    ]


@contextlib.contextmanager
def booted(virtme: Path, kernel: Unpacked, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The machine while it runs; it is killed when the block is left.  virtme: where vng is installed.

    virtme-ng shows what the machine prints only on a terminal, so it gets one, whose text goes to folder/console.log.
    """
    master, slave = pty.openpty()
    try:
        process = subprocess.Popen(
            command(virtme, kernel, folder),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=os.environ | {"PATH": f"{virtme}:{os.environ['PATH']}"},
            start_new_session=True,
        )
    finally:
        os.close(slave)
    copier = threading.Thread(target=_copy, args=(master, folder / "console.log"))
    copier.start()
    try:
        yield process
    finally:
        # The whole session, that is vng, virtme-run and QEMU.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        copier.join()
        os.close(master)


def _copy(master: int, path: Path) -> None:
    with path.open("wb") as file:
        while True:
            try:
                data = os.read(master, 65536)
            except OSError:  # EIO: the other end is closed by all
                return
            if not data:
                return
            file.write(data)
            file.flush()
