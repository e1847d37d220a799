"""Reading a mesh file again when it changes.

Invariants: a broken edit is told once and changes nothing, the last good state stays; a content is handed on once; a file is
read when it has stopped changing, so that an editor's half-written file is not taken for an edit; it is not read again before
what was handed on is done with, for what a larger file changes is told by what was written before.
The standard library has no inotify: the file is looked at every `interval_s`, one stat(2) each time.  That also sees a file
that is replaced by rename, and a Kubernetes ConfigMap's symlink that is turned.  Knows nothing of what is done with a mesh.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import AsyncGenerator
from pathlib import Path

from nodeproxy.agent.sources.change import Change
from nodeproxy.agent.sources.mesh_file import Mesh, parse_mesh, read_mesh
from nodeproxy.agent.sources.mesh_process import LargeMesh
from nodeproxy.errors import ConfigError, SourceError

INTERVAL_S = 0.2  # an edit takes effect within two intervals, which a person takes for at once
# A file of a thousand entries is read in a thread within 50 ms.  To start a process takes longer, what is larger is worth one.
SMALL_BYTES = 256 << 10
_AGAIN_S = 10.0  # after a SourceError: what was the cause, say want of memory, may have passed

_Signature = tuple[int, int, int, int] | None


class MeshFile:
    """A mesh file and what of it was seen last."""

    def __init__(self, path: Path | str, store: Path) -> None:
        """store: the directory of the state, which a large file is written to by another process."""
        self.path = Path(path)
        self._store = store
        self._tried = ""  # digest of the last content that was read, good or bad; or the text of the error that there was none
        self._again_at = math.inf  # in the time of the loop

    async def changes(self, interval_s: float = INTERVAL_S) -> AsyncGenerator[Change | ConfigError | SourceError, None]:
        """Each good content and the error of each bad one, first that of now, without end."""
        loop = asyncio.get_running_loop()
        self._again_at = 0.0
        read, seen = None, self._signature()
        while True:
            if seen != read or loop.time() >= self._again_at:
                read, self._again_at = seen, math.inf
                change = await (self._read_large() if _is_large(seen) else self._read_small())
                try:
                    if change is not None:
                        yield change
                finally:
                    if isinstance(change, LargeMesh):
                        await change.close()
            before = seen
            await asyncio.sleep(interval_s)
            seen = self._signature()
            while seen != before:  # until it is stable
                before = seen
                await asyncio.sleep(interval_s)
                seen = self._signature()

    def read_again(self) -> None:
        """What was handed on could not be used, through no fault of the file: hand it on once more, after a while."""
        self._tried = ""
        self._again_at = asyncio.get_running_loop().time() + _AGAIN_S

    async def _read_small(self) -> Mesh | ConfigError | None:
        try:
            return await asyncio.to_thread(self._load)
        except ConfigError as exc:
            return exc

    async def _read_large(self) -> LargeMesh | ConfigError | SourceError | None:
        try:
            change, self._tried = await LargeMesh.read(self.path, self._store, self._tried)
        except SourceError as exc:
            return exc
        return change

    def _load(self) -> Mesh | None:
        """Read it here; None if its content is what it was.  Raises ConfigError, for each content once."""
        try:
            content = read_mesh(self.path)
        except ConfigError as exc:
            if str(exc) == self._tried:
                return None
            self._tried = str(exc)
            raise
        digest = hashlib.blake2b(content).hexdigest()
        if digest == self._tried:
            return None
        self._tried = digest
        return parse_mesh(self.path, content)

    def _signature(self) -> _Signature:
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size


def _is_large(signature: _Signature) -> bool:
    return signature is not None and signature[3] > SMALL_BYTES
