"""Two nodes whose agents follow a control plane of the test's, in a host on the network between them."""

from __future__ import annotations

from pathlib import Path

from nodeproxy.identity.local_ca import LocalCA
from nodeproxy.linux.netns import inside
from nodeproxy.proto import workload_pb2
from tests.mesh.cluster import Agent, Cluster, MeshPod
from tests.xds_server import ControlPlaneServer, Root, pod, write_root

PORT = 15012


class ControlledCluster(Cluster):
    """Pods are put to the control plane by `enrol`; certificates are of its CA."""

    def __init__(self, nodes: int = 2) -> None:
        super().__init__(nodes)
        self.host = self.lab.external()
        self.root = Root()
        self.root_file = write_root(self.directory / "root.pem", self.root)
        self.token = self.directory / "token"
        self.token.write_text("first")
        self.server = ControlPlaneServer(token="first", ca=LocalCA.open(self.ca))
        for agent in self.agents:
            agent.source = ["--xds-address", f"https://{self.host.address4}:{PORT}", "--auth-token", str(self.token)]
            agent.source += ["--xds-root-ca", str(self.root_file), "--ca-root-ca", str(self.root_file)]

    def serve(self, root: Root | None = None) -> None:
        """Start the control plane, or again."""
        with inside(self.host.netns_fd):
            self.server.start(f"{self.host.address4}:{PORT}", root=root or self.root)

    def message(self, each: MeshPod, **more: object) -> workload_pb2.Workload:
        """What the control plane says of a pod."""
        entry = each.entry
        known = {
            "uid": each.uid,
            "namespace": entry["namespace"],
            "service_account": entry["serviceAccount"],
            "node": entry["node"],
        }
        return pod(entry["name"], *each.host.addresses, **{**known, **more})

    def enrol(self, each: MeshPod) -> None:
        """By command, as there is no CNI plug-in here."""
        agent = self.agent_of(each)
        done = agent.nodeproxy("enrol", each.uid, each.host.netns_path)
        assert done.returncode == 0, done.stderr

    def agent_of(self, each: MeshPod) -> Agent:
        return self.agents[each.host.node]

    def kept(self, number: int) -> list[Path]:
        """The certificates that the agent of a node has kept."""
        return list((self.agents[number].run_dir / "certificates").glob("*.certificate"))

    def close(self) -> None:
        self.server.stop()
        super().close()
