"""A cluster whose first node is told of its pods by an istio-cni of the test's."""

from __future__ import annotations

import itertools
from typing import Any

from nodeproxy.lab.topology import Host
from tests.istio_cni import Connection, IstioCni
from tests.mesh.cluster import MeshPod, exactly, wait_until
from tests.mesh.control_plane import ControlledCluster

_uids = itertools.count()


class ZdsCluster(ControlledCluster):
    """Node 0 is told by istio-cni."""

    def __init__(self) -> None:
        super().__init__()
        self.cni = IstioCni(self.directory / "ztunnel" / "ztunnel.sock")
        self.agents[0].source += ["--enrolment", "zds", "--zds-socket", str(self.cni.path)]

    def come(self, name: str, *, told: bool = True) -> tuple[MeshPod, str]:
        """A pod of node 0 that is not in yet, and its uid; told: the control plane knows of it."""
        pod = self.pod(0, name)
        if told:
            self.server.put(self.message(pod))
        return pod, f"00000000-0000-4000-9000-{next(_uids):012x}"

    def add(self, pod: MeshPod, uid: str, host: Host | None = None) -> str:
        entry = pod.entry
        return self.cni.add(uid, entry["name"], entry["namespace"], entry["serviceAccount"], (host or pod.host).netns_path)

    def rows(self) -> dict[str, dict[str, Any]]:
        return {row["uid"]: row for row in self.agents[0].get("/status")["pods"]}

    def metrics(self) -> dict[str, float]:
        """Of node 0, by name with labels."""
        lines = self.agents[0].metrics().splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))}

    def alive(self) -> list[Connection]:
        """The connections whose other end is there, and has been told of all pods."""
        return [connection for connection in self.cni.connections if connection.is_alive()]

    def wait_ready(self) -> None:
        wait_until(lambda: self.agents[0].get("/status")["ready"], "ready", 20)

    def start(self) -> None:
        """With a pod `server` on node 1, enrolled there by command."""
        server = self.pod(1, "server", account="web")
        self.server.put(self.message(server))
        self.serve()
        self.cni.start()
        for agent in self.agents:
            agent.start(wait=False)
        for agent in self.agents:
            agent.wait_ready(90)
        self.enrol(server)

    def close(self) -> None:
        self.cni.stop()
        super().close()


def path_of(mesh: ZdsCluster, pod: MeshPod) -> str:
    """How a connection of the pod reaches the server: "mesh" if it knows who it is."""
    server = mesh.pods["server"]
    with server.listen(0) as listener, pod.connect(server.ip, listener.getsockname()[1]) as ours:
        theirs, _ = listener.accept()
        with theirs:
            ours.sendall(b"x")
            assert exactly(theirs, 1) == b"x"
            row = next((each for each in mesh.agents[1].get("/connections")["connections"] if pod.identity in str(each)), None)
    return "mesh" if row is not None else "plain"
