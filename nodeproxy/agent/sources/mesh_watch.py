"""Reading a mesh file again when it changes.

Invariants: a broken edit is told once and changes nothing, the last good state stays; a content is handed on once; a file is
read when it has stopped changing, so that an editor's half-written file is not taken for an edit.
The standard library has no inotify: the file is looked at every `interval_s`, one stat(2) each time.  That also sees a file
that is replaced by rename, and a Kubernetes ConfigMap's symlink that is turned.  Knows nothing of what is done with a mesh.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path

from nodeproxy.agent.sources.mesh_file import Mesh, parse_mesh, read_mesh
from nodeproxy.errors import ConfigError

INTERVAL_S = 0.2  # an edit takes effect within two intervals, which a person takes for at once

_Signature = tuple[int, int, int, int] | None


class MeshFile:
    """A mesh file and what of it was seen last."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._tried = ""  # digest of the last content that was read, good or bad; or the text of the error that there was none

    def load(self) -> Mesh | None:
        """Read it; None if its content is what it was.  Raises ConfigError, for each content once."""
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

    async def watch(
        self, on_mesh: Callable[[Mesh], None], on_error: Callable[[ConfigError], None], interval_s: float = INTERVAL_S
    ) -> None:
        """Hand on each good content and the error of each bad one, first the one that is there now, until cancelled."""
        read, seen = None, self._signature()
        first = True
        while True:
            if first or seen != read:
                first, read = False, seen
                await self._try(on_mesh, on_error)
            before = seen
            await asyncio.sleep(interval_s)
            seen = self._signature()
            while seen != before:  # until it is stable
                before = seen
                await asyncio.sleep(interval_s)
                seen = self._signature()

    async def _try(self, on_mesh: Callable[[Mesh], None], on_error: Callable[[ConfigError], None]) -> None:
        try:
            mesh = await asyncio.to_thread(self.load)  # a large file takes seconds to parse
        except ConfigError as exc:
            on_error(exc)
        else:
            if mesh is not None:
                on_mesh(mesh)

    def _signature(self) -> _Signature:
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size


async def watch(
    path: Path | str,
    on_mesh: Callable[[Mesh], None],
    on_error: Callable[[ConfigError], None],
    interval_s: float = INTERVAL_S,
) -> None:
    """`MeshFile(path).watch(…)`."""
    await MeshFile(path).watch(on_mesh, on_error, interval_s)
