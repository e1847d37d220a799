"""Enrolment by the real node agent of istio-cni, with its rules in pods: tests/peers/zds."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.apiserver import ApiServer, peer_binary
from tests.mesh.cluster import MeshPod, exactly, wait_until
from tests.mesh.control_plane import ControlledCluster
from tests.mesh.zds import path_of

REDIRECTION = "ambient.istio.io/redirection"


class RealCluster(ControlledCluster):
    """Node 0 is told by istio-cni, which watches an API server beside the test's control plane."""

    def __init__(self) -> None:
        super().__init__()
        self.socket = self.directory / "ztunnel.sock"
        self.plugin_socket = self.directory / "plugin.sock"
        self.agents[0].source += ["--enrolment", "zds", "--zds-socket", str(self.socket)]
        self.api = ApiServer(self.host)
        self.cni: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.api.start()
        self.api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})
        self.api.patch("Namespace", "shop", metadata={"labels": {"istio.io/dataplane-mode": "ambient"}})
        server = self.pod(1, "server", account="web")
        self.server.put(self.message(server))
        self.serve()
        self.start_cni()
        for agent in self.agents:
            agent.start(wait=False)
        for agent in self.agents:
            agent.wait_ready(90)
        self.enrol(server)

    def start_cni(self) -> None:
        argv = [str(peer_binary("istio-cni-agent")), str(self.api.kubeconfig()), str(self.socket), str(self.plugin_socket)]
        argv += [str(self._node_files())]
        with (self.directory / "cni.log").open("ab") as log:
            self.cni = self.lab.nodes[0].popen(
                argv, stdout=log, stderr=subprocess.STDOUT, env={"NODE_NAME": "node0", "PATH": os.environ["PATH"]}
            )
        wait_until(self.socket.exists, "istio-cni serves", 60)

    def _node_files(self) -> Path:
        """As its container has them; of processes only the first, by which it knows the node's network."""
        files = self.directory / "host"
        first = files / "proc" / "1" / "ns"
        first.mkdir(parents=True, exist_ok=True)
        for path, target in ((first / "net", self.lab.nodes[0].netns_path), (files / "run", "/run")):
            path.unlink(missing_ok=True)
            path.symlink_to(target)
        return files

    def log(self) -> str:
        return (self.directory / "cni.log").read_text(errors="replace")[-4000:]

    def schedule(self, name: str) -> MeshPod:
        """A pod whose network is made, and which has not started: as its CNI plug-in finds it."""
        pod = self.pod(0, name)
        container = {"name": "app", "image": "app"}
        spec = {"nodeName": "node0", "serviceAccountName": pod.entry["serviceAccount"], "containers": [container]}
        self.api.create({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop"}, "spec": spec})
        return pod

    def cmd_add(self, pod: MeshPod) -> tuple[int, str]:
        """As istio-cni's plug-in tells its agent of it."""
        event = {
            "Netns": pod.host.netns_path,
            "PodName": pod.entry["name"],
            "PodNamespace": "shop",
            "IPs": [{"Address": {"IP": pod.ip, "Mask": "////AA=="}}],
        }
        connection = http.client.HTTPConnection("plugin", timeout=30)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(self.plugin_socket))
        try:
            connection.request("POST", "/cmdadd", json.dumps(event))
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def run_it(self, pod: MeshPod) -> None:
        """The kubelet reports it, and the control plane tells of it."""
        ips = [{"ip": address} for address in pod.host.addresses]
        status = {"phase": "Running", "podIP": pod.ip, "podIPs": ips}
        self.api.patch("Pod", pod.entry["name"], "shop", "status", status=status)
        self.server.put(self.message(pod))

    def is_in(self, pod: MeshPod) -> bool:
        rows = self.agents[0].get("/status")["pods"]
        return any(row["uid"] == pod.uid and row["state"] == "in" for row in rows)

    def close(self) -> None:
        if self.cni is not None:
            self.cni.terminate()
            self.cni.wait(30)
        self.api.close()
        super().close()


@pytest.fixture(scope="module")
def mesh() -> Iterator[RealCluster]:
    peer_binary("istio-cni-agent")
    mesh = RealCluster()
    try:
        mesh.start()
        yield mesh
    finally:
        mesh.close()


@pytest.fixture
def enrolled(mesh: RealCluster) -> Callable[[str], MeshPod]:
    def make(name: str) -> MeshPod:
        pod = mesh.schedule(name)
        # Again, as a kubelet would: istio-cni hears of the pod from the API server.
        wait_until(lambda: mesh.cmd_add(pod) == (200, ""), "it may start")
        return pod

    return make


def rules(pod: MeshPod) -> str:
    return str(pod.host.run(["iptables-save"]).stdout)


def test_a_pod_that_starts_is_in_before_its_first_packet(mesh: RealCluster, enrolled: Callable[[str], MeshPod]) -> None:
    pod = enrolled("first")
    assert mesh.is_in(pod)
    assert "--to-ports 15006" in rules(pod)
    assert path_of(mesh, pod) == "mesh"
    mesh.run_it(pod)
    server = mesh.pods["server"]
    with pod.listen(8080) as listener, server.connect(pod.ip, 8080) as ours:
        theirs, peer = listener.accept()
        with theirs:
            assert peer[0] == server.ip
            ours.sendall(b"x")
            assert exactly(theirs, 1) == b"x"


def test_two_pods_of_the_node_and_a_stranger(mesh: RealCluster, enrolled: Callable[[str], MeshPod]) -> None:
    one, other, stranger = enrolled("one"), enrolled("other"), mesh.pod(1, "stranger")
    for pod in (one, other):
        mesh.run_it(pod)
    for client in (one, stranger):
        with other.listen(0) as listener, client.connect(other.ip, listener.getsockname()[1]) as ours:
            theirs, peer = listener.accept()
            with theirs:
                assert peer[0] == client.ip
                ours.sendall(b"x")
                assert exactly(theirs, 1) == b"x"


def test_a_label_takes_a_pod_out_and_its_connections_go_on(mesh: RealCluster, enrolled: Callable[[str], MeshPod]) -> None:
    pod, server = enrolled("labelled"), mesh.pods["server"]
    mesh.run_it(pod)
    wait_until(
        lambda: REDIRECTION in mesh.api.get("Pod", "labelled", "shop")["metadata"].get("annotations", {}), "it is annotated"
    )
    with server.listen(8000) as listener, pod.connect(server.ip, 8000) as ours:
        theirs, _ = listener.accept()
        with theirs:
            mesh.api.patch("Pod", "labelled", "shop", metadata={"labels": {"istio.io/dataplane-mode": "none"}})
            wait_until(lambda: not mesh.is_in(pod), "it is out")
            assert "15006" not in rules(pod)
            ours.sendall(b"goes on")
            assert exactly(theirs, 7) == b"goes on"
    assert path_of(mesh, pod) == "plain"


def test_restarts_on_both_sides(mesh: RealCluster, enrolled: Callable[[str], MeshPod]) -> None:
    pod, ended = enrolled("restarted"), enrolled("ended")
    mesh.run_it(pod)
    mesh.agents[0].kill()
    with pytest.raises(ConnectionRefusedError):
        pod.connect(mesh.pods["server"].ip, 9)
    mesh.agents[0].start()
    assert mesh.is_in(pod)
    assert path_of(mesh, pod) == "mesh"
    mesh.api.delete("Pod", "ended", "shop")
    wait_until(lambda: not mesh.is_in(ended), "it has ended")
