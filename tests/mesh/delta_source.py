"""An agent whose source sends deltas, as a control plane does: started in place of `nodeproxy run`, else the whole of it.

First it reads the mesh file, once.  Then it takes deltas from a Unix socket in the run directory and answers each with the time
(CLOCK_MONOTONIC) at which it began to apply it.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from pathlib import Path

import msgspec

from nodeproxy.__main__ import main
from nodeproxy.agent.node import Node
from nodeproxy.agent.sources.mesh_watch import MeshFile
from nodeproxy.app import source
from nodeproxy.model.delta import Delta
from tests.mesh_files import load_mesh

SOCKET = "deltas.sock"
_LENGTH = struct.Struct("=I")
_TIME = struct.Struct("=d")


class Control:
    """The other end: says what has changed."""

    def __init__(self, run_dir: Path) -> None:
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.settimeout(30.0)
        self._sock.connect(str(run_dir / SOCKET))

    def apply(self, delta: Delta) -> float:
        """When the agent began; it is done, and its workers are told, when this returns."""
        raw = msgspec.msgpack.encode(delta)
        self._sock.sendall(_LENGTH.pack(len(raw)) + raw)
        answer = self._sock.recv(_TIME.size, socket.MSG_WAITALL)
        return float(_TIME.unpack(answer)[0])

    def close(self) -> None:
        self._sock.close()


async def _follow(node: Node, file: MeshFile) -> None:
    await node.apply(load_mesh(file.path))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while length := await reader.read(_LENGTH.size):
            delta = msgspec.msgpack.decode(await reader.readexactly(_LENGTH.unpack(length)[0]), type=Delta)
            began = time.monotonic()
            before = node.state.epoch
            if node.state.store.apply(delta) != before:
                node.state_changed()
            writer.write(_TIME.pack(began))

    server = await asyncio.start_unix_server(serve, node.state.store.path.parent / SOCKET)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    source._follow_file = _follow
    main()
