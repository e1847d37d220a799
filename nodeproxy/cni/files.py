"""Files that others read at any moment: replaced whole, or not at all, also when the machine stops."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from nodeproxy.errors import ConfigError

# In a node's directory (setting node_dir): the namespaces whose pods wait while the agent is away.
NAMESPACES_FILE = "cni/namespaces"
# Begins the names of files that are not finished: no runtime reads such.
TEMPORARY = ".nodeproxy-"


def replace(path: Path, content: bytes, mode: int, like: os.stat_result | None = None) -> None:
    """Write beside it and rename over it.  like: whose owner it gets, if it may.  Raises OSError: nothing has changed."""
    descriptor, beside = tempfile.mkstemp(prefix=f"{TEMPORARY}{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), mode)
            if like is not None:
                with contextlib.suppress(PermissionError):  # without CAP_CHOWN it is root's, and as readable as it was
                    os.fchown(file.fileno(), like.st_uid, like.st_gid)
            file.flush()
            os.fsync(file.fileno())
        os.rename(beside, path)
    except BaseException:
        os.unlink(beside)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Have what was renamed there be so after a power cut as well."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_namespaces(node_dir: Path, names: Iterable[str]) -> None:
    """Leave the list of the mesh's namespaces for the plug-in, a name a line.  Raises ConfigError if it can't be written."""
    path = node_dir / NAMESPACES_FILE
    content = "".join(f"{name}\n" for name in sorted(set(names))).encode()
    try:
        if path.exists() and path.read_bytes() == content:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, content, 0o644)
    except OSError as error:
        raise ConfigError(
            f"{path}: the list of the mesh's namespaces can't be written: {error.strerror}; see to the directory, --node-dir"
        ) from error
