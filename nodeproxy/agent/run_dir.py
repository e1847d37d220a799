"""An agent's run directory: who holds it, and which of the stores in it is in use.

    lock            held by flock(2), and marked as held by a lock of fcntl(2), which can be asked about without taking it;
                    its first line is the holder's process id, its second the name of the store in use
    state, state-2  the store in use; an agent that takes over has a copy with the next number
    handover.sock   where the holder is asked to hand over

Invariant: one process holds it at a time.  A lock can be passed on: its descriptor is the lock, in whichever process it is.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import struct
from pathlib import Path

from nodeproxy.errors import ConfigError

LOCK_FILE = "lock"
HANDOVER_SOCKET = "handover.sock"
_FIRST_STORE = "state"
_KEPT = "_NODEPROXY_LOCK"  # in the environment over exec: the descriptor; no setting begins so
_FLOCK = struct.Struct("@hhqqi4x")  # struct flock of <fcntl.h>: type, whence, start, length (0: to the end), process
_STORE = re.compile(r"state(?:-([0-9]{1,9}))?")


class RunDir:
    """The run directory of this agent; `held`: its lock is this process's."""

    def __init__(self, path: Path) -> None:
        """Make it.  Raises ConfigError."""
        self.path = path
        self.held = False
        kept = os.environ.pop(_KEPT, "")
        try:
            path.mkdir(parents=True, exist_ok=True)
            path.chmod(0o700)
            self._fd = int(kept) if kept else self._open()
        except OSError as error:
            raise ConfigError(f"--run-dir {path}: {error.strerror}; give a directory that root can write") from error
        self.store = store_of(path)

    def hold(self, store: Path | None = None) -> bool:
        """Hold it, if nobody does: an agent that is dead holds nothing.  Whether this process holds it now.

        store: that this process works with, None: the last one.
        """
        if not self.held:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            _mark(self._fd)
            self.held = True
            self.store = store or store_of(self.path)
            self._sign()
        return True

    def is_free(self) -> bool:
        """Whether nobody holds it.  Only looks: a lock taken for a moment would make another's start fail."""
        fd = self._open()
        try:
            found = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        finally:
            os.close(fd)
        return int(_FLOCK.unpack(found)[0]) == fcntl.F_UNLCK

    def keep_over_exec(self) -> None:
        """The program that this process executes next holds it, too."""
        os.set_inheritable(self._fd, True)
        os.environ[_KEPT] = str(self._fd)

    def take(self, lock: int, store: Path) -> None:
        """Hold it by the lock that its holder has passed on, with that store."""
        os.close(self._fd)
        self._fd, self.held, self.store = lock, True, store
        _mark(lock)  # an older agent passes it on without
        self._sign()

    def sign(self) -> None:
        """Say once more whose it is: whom it was passed to is no more."""
        self._sign()

    def let_go(self) -> None:
        """It is another process's, to whom the lock was passed."""
        if self.held:
            os.close(self._fd)  # not LOCK_UN, which would take it from that one too
            self._fd, self.held = self._open(), False

    @property
    def lock(self) -> int:
        """The descriptor that holds it."""
        return self._fd

    @property
    def holder(self) -> str:
        """Process id of who holds it, as text; in another container it is another one's number."""
        return (_lines(self.path) or ["?"])[0]

    def next_store(self) -> Path:
        """Where a copy of the store may stand."""
        found = _STORE.fullmatch(self.store.name)
        return self.path / f"{_FIRST_STORE}-{int(found[1] or 1) + 1 if found is not None else 2}"

    def remove_other_stores(self) -> None:
        """What agents before worked with: they have ended."""
        for path in self.path.iterdir():
            if _STORE.fullmatch(path.name) and path != self.store:
                shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        """Let go of it, if it is held."""
        os.close(self._fd)
        self.held = False

    def _open(self) -> int:
        return os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _sign(self) -> None:
        content = f"{os.getpid()}\n{self.store.name}\n".encode()
        try:
            os.pwrite(self._fd, content, 0)
            os.ftruncate(self._fd, len(content))
        except OSError as error:
            raise ConfigError(f"{self.path / LOCK_FILE}: {error.strerror}; is the disk full?") from error


def store_of(path: Path) -> Path:
    """The store in use, or that was in use last."""
    lines = _lines(path)
    return path / (lines[1] if len(lines) > 1 and _STORE.fullmatch(lines[1]) else _FIRST_STORE)


def _mark(lock: int) -> None:
    fcntl.fcntl(lock, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))


def _lines(path: Path) -> list[str]:
    try:
        return (path / LOCK_FILE).read_text(encoding="ascii", errors="replace").split("\n")[:2]
    except OSError:
        return []
