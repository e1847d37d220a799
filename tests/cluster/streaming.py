"""What a kubelet streams, for the nodes of a mesh: port-forwards into pods, by Kubernetes' own library (tests/peers/kubelet)."""

from __future__ import annotations

import json
import socket
import subprocess

from nodeproxy.lab.topology import Host
from nodeproxy.linux.netns import inside
from tests.cluster.apiserver import peer_binary
from tests.cluster.mesh import KubeMesh
from tests.mesh.cluster import wait_until

_PORT = 10250


class StreamingKubelets:
    """One on each node.  An agent's pod has its node's network."""

    def __init__(self, mesh: KubeMesh) -> None:
        self._mesh = mesh
        self._pods = mesh.cluster.directory / "kubelet-pods.json"
        self.processes: list[subprocess.Popen[bytes]] = []
        nodes = mesh.cluster.lab.nodes
        self._placed: dict[str, str] = {}
        self.place({f"{mesh.namespace}/agent-{agent.name}": nodes[agent.number].netns_path for agent in mesh.cluster.agents})
        for agent in mesh.cluster.agents:
            self._start(agent.name, nodes[agent.number])

    def place(self, pods: dict[str, str]) -> None:
        """Say which pods there are, too: "namespace/name" → the path of its network namespace."""
        self._placed |= pods
        self._pods.write_text(json.dumps(self._placed))

    def _start(self, name: str, host: Host) -> None:
        at = self._mesh.api.directory
        argv = [str(peer_binary("streaming-kubelet")), "-listen", f"{host.address4}:{_PORT}", "-pods", str(self._pods)]
        argv += ["-tls-cert-file", str(at / "serving.pem"), "-tls-private-key-file", str(at / "serving-key.pem")]
        with (self._mesh.cluster.directory / f"kubelet-{name}.log").open("ab") as log:
            self.processes.append(host.popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL))
        wait_until(lambda: _answers(host), "the kubelet listens")
        self._mesh.api.patch(
            "Node",
            name,
            "",
            "status",
            status={
                "addresses": [{"type": "InternalIP", "address": host.address4}],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": _PORT}},
            },
        )

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait(10)


def _answers(host: Host) -> bool:
    with inside(host.netns_fd), socket.socket() as sock:
        return sock.connect_ex((host.address4, _PORT)) == 0
