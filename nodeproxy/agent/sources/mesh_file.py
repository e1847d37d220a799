"""A mesh file: the whole mesh in one YAML file, the source that needs no control plane.

Invariant: a file is taken whole or refused whole, with FILE:LINE:COLUMN, the reason, and what to do.  What it refers to within
itself must be there: a policy or service whose name is mistyped would silently not hold.  Knows nothing of when to read it
(`mesh_watch`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from nodeproxy.agent.sources import mesh_index
from nodeproxy.agent.sources.mesh_entries import RESOURCES, Entries
from nodeproxy.errors import ConfigError
from nodeproxy.model.delta import Everything, PodSpec
from nodeproxy.state.store import Meta, StateWriter

# A file of 100,000 workloads has some 25 to 40 MiB.  The file is the operator's; the limit is for a mistake such as naming a disk
# image.
MAX_FILE_BYTES = 256 << 20


class Mesh(msgspec.Struct, frozen=True):
    """All that a mesh file says: the state, and the pods of this node to enrol."""

    everything: Everything
    pods: tuple[PodSpec, ...] = ()

    async def write(self, state: StateWriter, meta: Meta) -> None:
        """As `Change`."""
        state.replace(self.everything, {**meta, mesh_index.META: None})  # what is known of a larger file is void


def read_mesh(path: Path | str) -> bytes:
    """The file's content.  Raises ConfigError."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise ConfigError(f"{path}: can't be read: {exc.strerror}; does it exist, and may this user read it?") from exc
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_FILE_BYTES >> 20} MiB; is it a mesh file?")
    return content


def parse_mesh(path: Path | str, content: bytes) -> Mesh:
    """Read a mesh file's content; path: for errors.  Raises ConfigError, "FILE:LINE:COLUMN: reason; what to do"."""
    found: dict[str, list[Any]] = {name: [] for name in RESOURCES}
    entries = Entries(str(path), lambda name, _, resource: found[name].append(resource))
    entries.read(content)
    return Mesh(Everything(**{name: tuple(resources) for name, resources in found.items()}), tuple(entries.pods))
