"""Debian's kernels: which there are, and one of them unpacked in a folder of this user's cache.

The suites are read by an apt whose configuration, lists and cache are folders of our own; the machine's are neither asked nor
changed, and no package is installed: its maintainer scripts would touch this machine's boot.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nodeproxy" / "kernels"
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_MIRROR = "http://deb.debian.org"
# Package lists older than this are fetched anew: a kernel that has left the archive cannot be downloaded.
_LISTS_S = 24 * 3600


class Kernel(NamedTuple):
    """name: as this run calls it ("6.1").  package: the metapackage of `suite` that stands for its newest build."""

    name: str
    suite: str
    package: str
    why: str


KERNELS = (
    Kernel("6.1", "bookworm-security", "linux-image-amd64", "Debian 12's own, and the oldest that nodeproxy supports"),
    Kernel("6.12", "bookworm-security", "linux-image-6.12-amd64", "Debian 13's, and the newest that Debian packages for 12"),
    Kernel("newest", "trixie-backports", "linux-image-amd64", "the newest that Debian backports to a stable release"),
    Kernel("5.10", "bullseye-security", "linux-image-amd64", "Debian 11's: too old, and must be refused with a sentence"),
)


class Unpacked(NamedTuple):
    """One kernel in the cache.  release: what `uname -r` says in it.  version: the package's."""

    kernel: Kernel
    release: str
    version: str
    image: Path


class Failure(Exception):
    """What could not be had, and what to look at."""


def _sources(suite: str) -> str:
    folder = "debian-security" if suite.endswith("-security") else "debian"
    return f"deb [signed-by={_KEYRING}] {_MIRROR}/{folder} {suite} main\n"


class _Apt:
    """apt for one suite, in folders of its own."""

    def __init__(self, suite: str) -> None:
        self._root = CACHE / "apt" / suite
        for folder in ("lists/partial", "cache/archives/partial"):
            (self._root / folder).mkdir(parents=True, exist_ok=True)
        sources = self._root / "sources.list"
        sources.write_text(_sources(suite))
        settings = {
            "Dir::Etc::sourcelist": sources,
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::State::lists": self._root / "lists",
            "Dir::Cache": self._root / "cache",
            "APT::Sandbox::User": "root",  # _apt may not enter a home directory
            "Acquire::Languages": "none",
        }
        self._options = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
        updated = self._root / "updated"
        if not updated.exists() or time.time() - updated.stat().st_mtime > _LISTS_S:
            self.run("apt-get", "-q", "update")
            updated.touch()

    def run(self, command: str, *arguments: str, directory: Path | None = None) -> str:
        done = subprocess.run(
            [command, *self._options, *arguments], cwd=directory, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        if done.returncode != 0:
            raise Failure(f"{command} {' '.join(arguments)}: {(done.stderr or done.stdout).strip()[-500:]}")
        return done.stdout

    def depends(self, package: str) -> list[str]:
        # A virtual package is followed by who provides it.
        return re.findall(r"^ +(?:Depends: )?(linux-[\w.+-]+)$", self.run("apt-cache", "depends", package), re.MULTILINE)

    def version(self, package: str) -> str:
        found = re.search(r"^Version: (\S+)$", self.run("apt-cache", "show", "--no-all-versions", package), re.MULTILINE)
        if found is None:
            raise Failure(f"{package} is in no list of {self._root}")
        return found[1]


def fetch(kernel: Kernel) -> Unpacked:
    """The kernel, from the cache or from Debian's archive; some 100 MB, once for each of its versions."""
    apt = _Apt(kernel.suite)
    image = next((name for name in apt.depends(kernel.package) if re.fullmatch(r"linux-image-\d.*", name)), None)
    if image is None:
        raise Failure(f"{kernel.package} of {kernel.suite} depends on no kernel")
    release = image.removeprefix("linux-image-")
    version = apt.version(image)
    folder = CACHE / f"{release}_{version}"
    if not folder.exists():
        _unpack(apt, image, release, folder)
    places = (folder / "boot" / f"vmlinuz-{release}", folder / "lib" / "modules" / release / "vmlinuz")
    return Unpacked(kernel, release, version, next(place for place in places if place.exists()))


def _unpack(apt: _Apt, image: str, release: str, folder: Path) -> None:
    # Newer kernels' images and modules are packages of their own.
    packages = [image, *(name for name in apt.depends(image) if name.endswith(release))]
    unpacking = folder.with_name(f".{folder.name}")
    shutil.rmtree(unpacking, ignore_errors=True)
    unpacking.mkdir(parents=True)
    apt.run("apt-get", "-q", "download", *packages, directory=unpacking)
    for package in unpacking.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, unpacking], check=True)
        package.unlink()
    # virtme-ng looks for modules where the image's folder tells: beside boot/, in lib/.
    if not (unpacking / "lib" / "modules").exists():
        shutil.rmtree(unpacking / "lib", ignore_errors=True)
        (unpacking / "lib").symlink_to("usr/lib")
    subprocess.run(["depmod", "-b", unpacking, release], check=True)
    unpacking.rename(folder)
