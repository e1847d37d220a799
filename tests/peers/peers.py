"""One mesh for all tests of this folder: two nodes of nodeproxy, and pods beside them in which an Envoy speaks HBONE itself."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from tests.mesh.cluster import Agent, Cluster, MeshPod, wait_until
from tests.peers.envoy import Config, Credentials, Envoy

VIP = "10.96.0.1"  # through `waypoint`, named by its address
VIP_6 = "fd00:96::1"
VIP_BY_NAME = "10.96.0.2"  # through the waypoint service
VIP_WEIGHTED = "10.96.0.3"  # through `waypoint` and `waypoint2`, three to one
VIP_LOST = "10.96.0.4"  # its waypoint is not in the mesh
VIP_IMPOSTOR = "10.96.0.5"  # its waypoint has another's certificate
VIPS = (VIP, VIP_6, VIP_BY_NAME, VIP_WEIGHTED, VIP_IMPOSTOR)
HTTP_PORT = 8080


class Peers:
    """Of its pods `client`, `server` and `guarded` are enrolled, the last is reached through a waypoint; the others are not."""

    def __init__(self) -> None:
        cluster = self.cluster = Cluster()
        self.envoys: list[Envoy] = []
        try:
            self.client = cluster.pod(0, "client")
            self.server = cluster.pod(1, "server")
            self.guarded = cluster.pod(1, "guarded")
            self.gateway, self.gateway2 = self._beside(0, "gateway"), self._beside(0, "gateway2")
            self.legacy, self.legacy2 = self._beside(1, "legacy"), self._beside(1, "legacy2")
            self.waypoint, self.waypoint2 = self._beside(1, "waypoint"), self._beside(1, "waypoint2")
            self.impostor = self._beside(1, "impostor")
            self.guarded.entry["waypoint"] = _at(self.waypoint)
            self._services()
            cluster.start()
        except BaseException:
            self.close()
            raise

    def _beside(self, node: int, name: str) -> MeshPod:
        """A member of the mesh that no nodeproxy serves."""
        pod = MeshPod(self.cluster.lab.pod(node, name), "shop", name, f"node{node}", "HBONE")
        self.cluster.extra_workloads.append(pod.entry)
        return pod

    def _services(self) -> None:
        service, ports, server = self.cluster.service, {80: HTTP_PORT}, [self.server]
        service("waypoint.shop.svc", "10.96.0.10", {15008: 15008}, [self.waypoint])
        service("api.shop.svc", VIP, ports, server, waypoint=_at(self.waypoint))["vips"].append(f"/{VIP_6}")
        service("named.shop.svc", VIP_BY_NAME, ports, server, waypoint={"destination": "shop/waypoint.shop.svc"})
        weighted = [{**_at(self.waypoint), "weight": 3}, {**_at(self.waypoint2), "weight": 1}]
        service("weighted.shop.svc", VIP_WEIGHTED, ports, server, weightedWaypoints=weighted)
        service("lost.shop.svc", VIP_LOST, ports, server, waypoint={"destination": "/10.10.9.9"})
        service("impostor.shop.svc", VIP_IMPOSTOR, ports, server, waypoint=_at(self.impostor))

    def credentials(self, identity: str) -> Credentials:
        return Credentials.issue(self.cluster.ca, self.cluster.directory, identity)

    def envoy(self, pod: MeshPod, config: Config) -> Envoy:
        """A running Envoy in `pod`: the only one there."""
        made = Envoy(pod.host, config, self.cluster.directory, f"{pod.host.name}-{len(self.envoys)}")
        self.envoys.append(made)
        made.start()
        return made

    def log_of(self, agent: Agent, destination: str) -> list[dict[str, Any]]:
        """The access log's lines about connections to `destination`, "ip:port"; waits for the first."""
        rows: list[dict[str, Any]] = wait_until(
            lambda: [row for row in agent.access_log() if row["dst.addr"] == destination],
            f"a connection to {destination} in the log",
        )
        return rows

    def reason(self, agent: Agent, destination: str) -> str:
        """Why the last connection to `destination` that went wrong did; waits for the first."""
        errors = wait_until(
            lambda: [row["error"] for row in agent.access_log() if row["dst.addr"] == destination and "error" in row],
            f"a refusal of {destination} in the log",
        )
        return str(errors[-1]).partition(":")[0]

    def close(self) -> None:
        for envoy in self.envoys:
            envoy.stop()
        self.cluster.close()


def _at(pod: MeshPod) -> Config:
    return {"destination": f"/{pod.ip}"}


def is_refused(connect: Callable[[], socket.socket]) -> bool:
    """Whether a connection ends before the first byte."""
    try:
        with connect() as sock:
            return sock.recv(1) == b""
    except (ConnectionResetError, ConnectionRefusedError):
        return True
