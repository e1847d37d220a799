"""Envoy between two nodes: HBONE on both sides, in each pod an Envoy that tunnels over HTTP/2 CONNECT in mutual TLS 1.3.

As nodeproxy, it writes a line for each connection on each side.  Its limits are raised to what the rows need; windows, buffers
and pools are its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.bench.contestant import PORTS, Contestant
from tests.bench.world import World
from tests.peers.envoy import Config, Credentials, Envoy, tunnel_client, tunnel_server

_CLIENT = "spiffe://cluster.local/ns/bench/sa/client"
_SERVER = "spiffe://cluster.local/ns/bench/sa/server"
# Envoy's default is 1,024 of each, which is less than the connections that rows open at once.
_NO_BREAKER = {"max_connections": 100_000, "max_pending_requests": 100_000, "max_requests": 100_000}


def _unlimited(config: Config) -> Config:
    for cluster in config["static_resources"]["clusters"]:
        cluster["circuit_breakers"] = {"thresholds": [_NO_BREAKER]}
    return config


def _balanced(config: Config) -> Config:
    """Connections shared out to threads evenly: left to the kernel's hash, four streams are often on one of two threads."""
    for listener in config["static_resources"]["listeners"]:
        listener["connection_balance_config"] = {"exact_balance": {}}
    return config


class EnvoyWay:
    """Two Envoys and the way between them."""

    name, title, baseline = "envoy", "Envoy, between nodes", "direct"
    twin = None

    def __init__(self, world: World) -> None:
        self.client, self.server = world.pod(0, "e-client"), world.pod(1, "e-server")
        self.tools_cgroup = world.home
        ca, directory = world.ca, world.directory
        client, server = (Credentials.issue(ca, directory, identity) for identity in (_CLIENT, _SERVER))
        targets = {port: f"{self.server.address4}:{port}" for port in PORTS}
        outbound = tunnel_client(client, self.server.address4, targets, _SERVER)
        options: dict[str, Any] = {"concurrency": world.options.envoy_threads, "flush_ms": None}
        self.far = Envoy(self.server, _balanced(_unlimited(tunnel_server(server))), directory, "envoy-server", **options)
        self.near = Envoy(self.client, _balanced(_unlimited(outbound)), directory, "envoy-client", **options)
        world.closing.callback(self.stop)

    def start(self) -> None:
        for envoy in self._both():
            envoy.start()

    def restart(self) -> None:
        self.stop()
        self.start()

    def chill(self) -> None:
        self.near.stop()
        self.near.start()

    def address(self, port: int) -> tuple[str, int]:
        return "127.0.0.1", port

    def pids(self) -> list[int]:
        return [envoy.process.pid for envoy in self._both() if envoy.process is not None]

    def stop(self) -> None:
        for envoy in self._both():
            envoy.stop()

    def _both(self) -> Iterator[Envoy]:
        yield self.far
        yield self.near


def contestants(world: World) -> list[Contestant]:
    return [EnvoyWay(world)]
