"""Mesh files and YAML read at once, for tests: the product reads them entry by entry."""

from __future__ import annotations

from pathlib import Path

from nodeproxy.agent.sources.mesh_file import Mesh, parse_mesh, read_mesh
from nodeproxy.agent.sources.yaml_nodes import Node
from nodeproxy.agent.sources.yaml_stream import Stream


def load_mesh(path: Path) -> Mesh:
    return parse_mesh(path, read_mesh(path))


def read_yaml(path: str, content: bytes) -> Node:
    """The root of the only document in `content`."""
    return Node(path, Stream(path, content).read(), "the file")
