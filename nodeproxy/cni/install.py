"""Our plug-in in a node's CNI directories: into the chain that the runtime uses, and out again.

A runtime takes the first file by name that it can read; ours is one entry in it.  The file from before is kept beside, under a
name that no runtime reads, and comes back as it was, byte for byte, unless somebody has changed the chain since.

Invariant: at every moment a runtime finds a whole configuration; the program is there before a chain names it, and goes after
that.  It must not know agents.
"""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path
from typing import NamedTuple

from nodeproxy.cni.chain import PROGRAM, Chain, PluginSettings
from nodeproxy.cni.files import TEMPORARY, replace, sync_directory
from nodeproxy.errors import ConfigError

# What libcni reads (`ConfFiles`, with the extensions that containerd and CRI-O give).
_EXTENSIONS = (".conf", ".conflist", ".json")
ORIGINAL = ".nodeproxy-original"  # added to the name of a file that is kept
# A configuration has some KB; what is larger is none.
MAX_CONFIGURATION_BYTES = 1 << 20
# Some write in place; that takes no longer.
_UNFINISHED_S = 2.0


class Found(NamedTuple):
    """A file of the directory.  chain: None, and `problem`, if no runtime would take it."""

    path: Path
    chain: Chain | None
    problem: str = ""

    @property
    def is_ours(self) -> bool:
        """Whether our plug-in stands in it."""
        return self.chain is not None and self.chain.ours is not None


class Installation:
    """The plug-in on one node.  Not for two threads at once."""

    def __init__(self, conf_dir: Path, bin_dir: Path) -> None:
        self.conf_dir = conf_dir
        self.bin_dir = bin_dir
        self._copied: tuple[int, ...] = ()  # what the program's two files looked like when they were the same

    # ── in ──

    def install(self, program: Path, settings: PluginSettings) -> tuple[Path, bool]:
        """The file whose chain has the plug-in now, and whether anything had to be done.

        Raises ConfigError when it is not possible, or not yet.
        """
        try:
            copied = self._copy(program)
            files = self.files()
            active = next((each for each in files if each.chain is not None), None)
            _refuse_unfinished(files[: files.index(active)] if active is not None else files)
            if active is None:
                raise ConfigError(self._why_none(files))
            changed = self._enter(active, settings)
            for each in files:
                if each.is_ours and each.path != changed and each.path != active.path:
                    self._restore(each)  # it was the first once
            return changed or active.path, copied or changed is not None
        except OSError as error:
            raise _failed(error) from error

    def files(self) -> list[Found]:
        """The configurations there, in the order in which a runtime looks at them."""
        try:
            names = sorted(name for name in os.listdir(self.conf_dir) if name.endswith(_EXTENSIONS))
        except OSError as error:
            raise ConfigError(
                f"{self.conf_dir}: {error.strerror}; is this where the container runtime reads its network?"
            ) from error
        return [_read(self.conf_dir / name) for name in names]

    def _why_none(self, files: list[Found]) -> str:
        if not files:
            return f"{self.conf_dir} has no network configuration yet: the cluster's own CNI must come first"
        return f"{self.conf_dir} has none that can be used: " + "; ".join(
            f"{each.path.name} {each.problem}" for each in files[:5]
        )

    def _copy(self, program: Path) -> bool:
        target = self.bin_dir / PROGRAM
        if self._copied and self._copied == _look(program) + _look(target):
            return False
        content = program.read_bytes()
        self.bin_dir.mkdir(parents=True, exist_ok=True)
        same = target.exists() and target.read_bytes() == content and target.stat().st_mode & 0o777 == 0o755
        if not same:
            replace(target, content, 0o755)
        self._copied = _look(program) + _look(target)
        return not same

    def _enter(self, active: Found, settings: PluginSettings) -> Path | None:
        """The file that was written, None if all is as it should be."""
        chain, path, entry = active.chain, active.path, settings.entry()
        if chain is None or chain.ours == entry:
            return None
        try:
            content = chain.with_entry(entry)
        except ConfigError as error:
            raise ConfigError(f"{path} {error}") from error
        now = path.lstat()
        mode = stat.S_IMODE(path.stat().st_mode)
        if path.suffix != ".conflist":
            # The list first: until the single one has gone it is the first, then the list is, for it sorts right after.
            target = path.with_name(path.name + ".conflist")
            replace(target, content, mode, now)
            path.rename(path.with_name(path.name + ORIGINAL))
        else:
            target = path
            if chain.ours is None:
                kept, beside = path.with_name(path.name + ORIGINAL), path.with_name(f"{TEMPORARY}{path.name}.tmp")
                beside.unlink(missing_ok=True)
                os.link(path, beside, follow_symlinks=False)
                beside.rename(kept)
            replace(path, content, mode, now)
        sync_directory(self.conf_dir)
        return target

    # ── out ──

    def uninstall(self) -> bool:
        """Whether there was anything of ours.  Raises ConfigError."""
        try:
            found = False
            for file in self.files() if self.conf_dir.exists() else ():
                if file.is_ours:
                    self._restore(file)
                    found = True
            for kept in self.conf_dir.glob(f"*{ORIGINAL}"):
                self._drop(kept)
                found = True
            for each in (self.bin_dir / PROGRAM, *self._left_behind()):
                if each.exists():
                    each.unlink()
                    found = True
            return found
        except OSError as error:
            raise _failed(error) from error

    def _left_behind(self) -> list[Path]:
        """Of a process that was killed as it wrote."""
        return [path for folder in (self.conf_dir, self.bin_dir) for path in folder.glob(f"{TEMPORARY}*.tmp")]

    def _restore(self, each: Found) -> None:
        path, chain = each.path, each.chain
        if chain is None:
            return
        original = path.with_suffix("") if path.with_suffix("").suffix in _EXTENSIONS else path
        kept = original.with_name(original.name + ORIGINAL)
        before = _read(kept, single=original != path).chain if kept.exists() else None
        if original != path and original.exists():
            path.unlink()  # whose it is has written it anew
            kept.unlink(missing_ok=True)
        elif before is not None and chain.says_as(before):
            kept.rename(original)
            if original != path:
                path.unlink()
        else:
            replace(path, chain.without_entry(), stat.S_IMODE(path.stat().st_mode), path.lstat())
            kept.unlink(missing_ok=True)
        sync_directory(self.conf_dir)

    def _drop(self, kept: Path) -> None:
        """A kept file whose list has gone, or was written anew without us."""
        original = kept.with_name(kept.name.removesuffix(ORIGINAL))
        if original.suffix == ".conflist" or original.exists():
            kept.unlink()
        else:
            kept.rename(original)


def _refuse_unfinished(files: list[Found]) -> None:
    """A file that can't be read and was written a moment ago is being written: it may be the first."""
    for each in files:
        if time.time() - each.path.stat().st_mtime < _UNFINISHED_S:
            raise ConfigError(f"{each.path} {each.problem}; it was written just now and is looked at again")


def _read(path: Path, single: bool | None = None) -> Found:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_CONFIGURATION_BYTES + 1)
    except OSError as error:
        return Found(path, None, f"can't be read: {error.strerror}")
    if len(content) > MAX_CONFIGURATION_BYTES:
        return Found(path, None, f"is larger than {MAX_CONFIGURATION_BYTES >> 20} MiB")
    try:
        return Found(path, Chain(content, path.suffix != ".conflist" if single is None else single))
    except ConfigError as error:
        return Found(path, None, str(error))


def _look(path: Path) -> tuple[int, ...]:
    """Whether a file is still the one that was looked at."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return (0,)
    return (found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode)


def _failed(error: OSError) -> ConfigError:
    return ConfigError(f"{error.filename}: the CNI plug-in can't be installed or removed: {error.strerror}; see to the directory")
