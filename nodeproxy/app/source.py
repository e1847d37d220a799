"""Where an agent's state comes from: a mesh file, or a control plane."""

from __future__ import annotations

import contextlib
from pathlib import Path

from nodeproxy.agent.node import Node
from nodeproxy.agent.sources.mesh_watch import MeshFile
from nodeproxy.config import RunConfig
from nodeproxy.errors import ConfigError, NodeproxyError, SourceError, StateError


def source_name(config: RunConfig) -> str:
    """What the source of the state is called, for people."""
    return f"file {config.mesh}" if config.mesh is not None else f"xds {','.join(map(str, config.xds_address))}"


async def follow(config: RunConfig, node: Node, store: Path) -> None:
    """Follow the source without end.  store: directory of the node's state."""
    if config.mesh is not None:
        await _follow_file(node, MeshFile(config.mesh, store))
    else:
        from nodeproxy.app.control_plane import xds_source

        source = xds_source(config, node)
        if node.on_demand is not None:
            await node.on_demand.start(source)
        await source.run()


async def _follow_file(node: Node, file: MeshFile) -> None:
    """The first reading decides whether there is anything to serve; after that, what can't be used changes nothing."""
    async with contextlib.aclosing(file.changes()) as changes:
        async for change in changes:
            try:
                if isinstance(change, NodeproxyError):
                    raise change
                await node.apply(change)
            except (ConfigError, SourceError, StateError) as exc:
                if isinstance(exc, SourceError):
                    file.read_again()
                if not node.state.received:
                    if not node.has_last_state:
                        raise
                    await node.go_on_with_last_state()
                node.refuse(exc)
