"""Where an instance's eBPF objects are pinned, and who may touch them.

    /sys/fs/bpf/nodeproxy/INSTANCE/
        links/connect4 …            the attached programs; links/pod-COOKIE for each enrolled pod
        links/new-connect4 …        what is to take the place of one that is attached elsewhere
        MAPDIGEST-DIGEST/           a generation: maps/ and programs/
        loading/                    a generation that is not whole; nothing uses it
        succeeding/                 the same, made by an agent that is about to take over while another one holds the instance

A generation gets its name by one rename when it is whole, so whoever is killed leaves either all of it or something to
throw away.  One process at a time holds an instance, by a lock on its directory that ends with the process.
"""

from __future__ import annotations

import fcntl
import os
import re
from pathlib import Path

from nodeproxy.errors import ConfigError, KernelError, PrivilegeError

ROOT = Path("/sys/fs/bpf/nodeproxy")
_POD_PREFIX = "pod-"
_GENERATION = re.compile(r"[0-9a-f]{12}-[0-9a-f]{12}")
# A dot is reserved by the BPF file system; 40 letters leave room for what cgroup and run directory add.
_INSTANCE = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")


class Pins:
    """The directory of one instance."""

    def __init__(self, instance: str) -> None:
        if not _INSTANCE.fullmatch(instance):
            raise ConfigError(f"instance name {instance!r}: 1 to 40 of a-z, 0-9 and '-', not '-' first")
        self.instance = instance
        self.directory = ROOT / instance
        self.links = self.directory / "links"
        self.loading = self.directory / "loading"
        self.succeeding = self.directory / "succeeding"

    def lock(self) -> int:
        """Make the directory and take its lock; the descriptor that holds it."""
        try:
            self.links.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except PermissionError as error:
            raise PrivilegeError(
                f"{self.directory}: {error.strerror}; run as root, with a BPF file system on /sys/fs/bpf"
            ) from error
        except OSError as error:
            raise KernelError(f"{self.directory}: {error.strerror}", error.errno or 0) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise KernelError(
                f"instance {self.instance!r} is in use by another nodeproxy on this machine; "
                "stop it, or give this one another --instance",
                error.errno or 0,
            ) from error
        return descriptor

    def generation(self, name: str) -> Path:
        """Where the generation `name` is when it is whole."""
        return self.directory / name

    def generations(self) -> list[Path]:
        """The whole generations that are there."""
        return [path for path in self.directory.iterdir() if _GENERATION.fullmatch(path.name)]

    def pod_link(self, netns_cookie: int) -> Path:
        """The pin of a pod's sk_lookup link."""
        return self.links / f"{_POD_PREFIX}{netns_cookie}"

    def pod_cookies(self) -> list[int]:
        """Cookies of the pods that have a pinned link."""
        return [int(path.name.removeprefix(_POD_PREFIX)) for path in self.links.iterdir() if path.name.startswith(_POD_PREFIX)]


def pin_beside(path: Path) -> Path:
    """Where the link is pinned that is to take the place of the one at `path`."""
    return path.with_name(f"new-{path.name}")


def remove_tree(directory: Path) -> None:
    """Unpin everything below and the directory itself."""
    if not directory.is_dir():
        return
    for path in directory.iterdir():
        if path.is_dir():
            remove_tree(path)
        else:
            path.unlink()
    directory.rmdir()
