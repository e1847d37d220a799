"""Two machines for the lab's script without virtual machines: roots made by debootstrap, each with mounts, processes, a host
name, a cgroup hierarchy and a network of its own.  They share this machine's kernel, and have no systemd: what its units would
run is run here.

The first root is made once, kept outside of the tree by what it is made of, and never written to again: machines have a layer
on top.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

from tests.mesh.cluster import wait_until

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nodeproxy" / "lab"
TREE = "/opt/nodeproxy"  # as in Vagrantfile
SUITE, MIRROR = "bookworm", "http://deb.debian.org/debian"
_PARTS = ("lab/provision.sh", "dev", "requirements/runtime.lock")
# How pip reaches its index is the machine's own affair; the certificates that it trusts for that are copied.
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_PIP = {"PIP_CERT": "/pip-certificates", "PIP_DEFAULT_TIMEOUT": "180"} | {
    name: os.environ[name] for name in ("PIP_INDEX_URL", "http_proxy", "https_proxy", "no_proxy") if name in os.environ
}


def copy_checkout(target: Path) -> None:
    """What git knows of the checkout, and what it does not ignore, as it lies."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True
    ).stdout
    for name in filter(None, listed.decode().split("\0")):
        source = ROOT / name
        if source.is_file() and not source.is_symlink():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)


def base() -> Path:
    """The root with the script's packages in it: from the cache, or made, in minutes."""
    digest = hashlib.sha256(b"".join((ROOT / part).read_bytes() for part in _PARTS)).hexdigest()[:16]
    made = CACHE / f"{SUITE}-{digest}"
    if made.is_dir():
        return made
    making = CACHE / f".{SUITE}-{digest}"
    shutil.rmtree(making, ignore_errors=True)
    CACHE.mkdir(parents=True, exist_ok=True)
    subprocess.run(["nice", "debootstrap", "--variant=minbase", SUITE, making, MIRROR], check=True, stdout=subprocess.DEVNULL)
    copy_checkout(making / TREE[1:])
    shutil.copy(_CERTIFICATES, making / "pip-certificates")
    shutil.copy("/etc/resolv.conf", making / "etc" / "resolv.conf")
    mounts = f"mount --make-rprivate / && mount -t proc proc {making}/proc && mount --rbind /dev {making}/dev"
    inside = shlex.join(["chroot", str(making), f"{TREE}/lab/provision.sh", "packages"])
    subprocess.run(
        ["nice", "unshare", "--mount", "--pid", "--fork", "bash", "-ec", f"{mounts} && {inside}"],
        check=True,
        env=_environment(_PIP),
    )
    making.rename(made)
    return made


def _environment(more: dict[str, str]) -> dict[str, str]:
    return {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"} | more


_SETUP = """
mount --make-rprivate /
mount -t overlay -o lowerdir=$base,upperdir=$layer/upper,workdir=$layer/work lab $root
mount -t proc proc $root/proc
mount -t sysfs sysfs $root/sys
mount -t cgroup2 cgroup2 $root/sys/fs/cgroup
mount -t bpf bpf $root/sys/fs/bpf
mount --rbind /dev $root/dev
mount -t tmpfs run $root/run
ip link set lo up
hostname node-$number
echo ready
exec chroot $root sleep infinity
"""


class Machine:
    """One of the two.  folder: for its layer.  It ends, with all that runs in it, by close()."""

    def __init__(self, number: int, folder: Path, base_root: Path, group: Path) -> None:
        self.number = number
        self.root = folder / "root"
        for name in ("root", "layer/upper", "layer/work"):
            (folder / name).mkdir(parents=True)
        variables = {"base": base_root, "layer": folder / "layer", "root": self.root, "number": number}
        self._group = group / f"node-{number}"
        self._group.mkdir(parents=True)
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--net", "--uts", "--cgroup", "--fork", "--kill-child", "bash", "-ec", _SETUP],
            env=_environment({name: str(value) for name, value in variables.items()}),
            stdout=subprocess.PIPE,
            preexec_fn=self._enter_group,  # noqa: PLW1509
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n", f"node-{number} did not start"
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text().split()
        self.pid = int(children[0])

    def _enter_group(self) -> None:
        (self._group / "cgroup.procs").write_text(str(os.getpid()))

    def command(self, *words: str) -> list[str]:
        """The command line that runs `words` in the machine."""
        return ["nsenter", "--target", str(self.pid), "--all", f"--root=/proc/{self.pid}/root", "--wd", *words]

    def popen(self, *words: str, **options: object) -> subprocess.Popen[str]:
        """A program that goes on, in the machine's cgroup."""
        return subprocess.Popen(
            self.command(*words),
            env=_environment({}),
            text=True,
            preexec_fn=self._enter_group,  # noqa: PLW1509
            **options,  # type: ignore[call-overload]
        )

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A program that ends."""
        process = self.popen(*words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        out, _ = process.communicate(timeout=300)
        return subprocess.CompletedProcess(words, process.returncode, out)

    def unit(self, name: str) -> tuple[list[list[str]], list[str]]:
        """What systemd would run of a unit in its place: the commands before it, and its own."""
        template, _, instance = name.partition("@")
        file = self.root_seen / "etc/systemd/system" / (f"{template}@.service" if instance else f"{template}.service")
        text = file.read_text().replace("%i", instance)
        before = [shlex.split(line) for line in re.findall(r"^ExecStartPre=(.*)$", text, re.MULTILINE)]
        (own,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
        return before, shlex.split(own)

    @property
    def root_seen(self) -> Path:
        """Its root, seen from outside."""
        return Path(f"/proc/{self.pid}/root")

    def close(self) -> None:
        """End it: with its first process go all others, and with them mounts and network."""
        self._holder.send_signal(signal.SIGKILL)
        self._holder.wait()
        assert self._holder.stdout is not None
        self._holder.stdout.close()
        wait_until(self._cgroup_is_removed, f"the processes of node-{self.number} have ended")

    def _cgroup_is_removed(self) -> bool:
        """The kernel takes processes out of it in its own time."""
        try:
            for folder in sorted(self._group.rglob("*/"), reverse=True):
                folder.rmdir()
            self._group.rmdir()
        except OSError:
            return False
        return True
