"""No mesh: what the machine and its virtual network can do.  Everything else is measured against this, on the same way."""

from __future__ import annotations

from nodeproxy.lab.topology import Host
from tests.bench.contestant import Contestant
from tests.bench.world import World


class Direct:
    """Two pods and nothing between them but the network."""

    twin = None

    def __init__(self, world: World, name: str, title: str, client: Host, server: Host) -> None:
        self.name = self.baseline = name
        self.title, self.client, self.server, self.tools_cgroup = title, client, server, world.home

    def start(self) -> None:
        """There is nothing to do, here and below."""

    def restart(self) -> None: ...

    def chill(self) -> None: ...

    def stop(self) -> None: ...

    def address(self, port: int) -> tuple[str, int]:
        return self.server.address4, port

    def pids(self) -> list[int]:
        return []


def contestants(world: World) -> list[Contestant]:
    client = world.pod(0, "d-client")
    return [
        Direct(world, "direct-node", "direct, same node", client, world.pod(0, "d-near")),
        Direct(world, "direct", "direct, between nodes", client, world.pod(1, "d-far")),
    ]
