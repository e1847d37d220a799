"""Lists of pods and nodes, of an API server that says odd things; that a real one is read, says tests/cluster."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from nodeproxy.errors import ClusterError
from nodeproxy.fleet.pods import list_nodes
from nodeproxy.kube.client import KubeClient
from tests.unit.kube.playing_server import PlayingServer, page, thing


def nodes(folder: Path, *things: Any) -> list[str]:
    server = PlayingServer(folder)
    server.others["/api/v1/nodes"] = page(1, *things)

    async def main() -> list[str]:
        async with server.serving():
            client = await KubeClient.connect(server.kubeconfig)
            try:
                return await list_nodes(client)
            finally:
                await client.close()

    return asyncio.run(main())


def test_nodes_by_name(tmp_path: Path) -> None:
    assert nodes(tmp_path, thing("a", 1), thing("b", 1)) == ["a", "b"]


@pytest.mark.parametrize("odd", [7, {}, {"metadata": {"name": None, "resourceVersion": "1"}}])
def test_a_node_that_is_none_is_the_api_servers_error(tmp_path: Path, odd: Any) -> None:
    with pytest.raises(ClusterError, match="/api/v1/nodes: what came from the API server is no object with a name"):
        nodes(tmp_path, odd)
