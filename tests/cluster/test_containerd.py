"""Pods of a real containerd, whose CRI calls the chain with our plug-in in it."""

from __future__ import annotations

import functools
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from nodeproxy.cni.install import Installation
from nodeproxy.lab.topology import Lab
from nodeproxy.model.node_pod import Membership, NodePod
from nodeproxy.model.workload import Protocol, Workload
from tests.cluster.containerd import Containerd
from tests.cni_admitter import Answering
from tests.cni_plugin import plugin
from tests.mesh.cluster import exactly, wait_until
from tests.mesh.cni import CniCluster

_numbers = itertools.count()


SUBNET = "10.40.0.0/24"


def chain(root: Path, name: str = "pods") -> bytes:
    routes = [{"dst": "0.0.0.0/0"}]
    ipam = {"type": "host-local", "dataDir": str(root / "ipam"), "ranges": [[{"subnet": SUBNET}]], "routes": routes}
    main = {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipam": ipam}
    return json.dumps({"cniVersion": "1.0.0", "name": name, "plugins": [main]}).encode()


class Node:
    def __init__(self, root: Path) -> None:
        prefix = f"npk{os.getpid()}x{next(_numbers)}"
        self.lab = Lab(prefix, 1)
        self.root = root
        try:
            self.runtime = Containerd(self.lab.nodes[0], root / "containerd", prefix)
        except BaseException:
            self.lab.close()
            raise
        self.chain = self.runtime.net_d / "10-pods.conflist"

    def write_chain(self, name: str = "pods") -> None:
        self.chain.write_bytes(chain(self.root, name))

    def agent(self) -> Answering:
        made = Answering(self.root, self.root / "node")
        made.keep_installed(self.runtime.net_d, self.runtime.bin, plugin(), ("kube-system",))
        return made

    def wait_installed(self) -> None:
        wait_until(lambda: b"nodeproxy-cni" in self.chain.read_bytes(), "the plug-in is in the chain")

    def close(self) -> None:
        self.runtime.close()
        self.lab.close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    made.close()


def test_pods_of_containerd(node: Node) -> None:
    """Its first chain, a pod in the mesh and one outside, the agent away and back, another CNI, and the end of all that."""
    runtime = node.runtime
    node.write_chain()
    before = node.chain.read_bytes()
    with node.agent() as agent:
        node.wait_installed()
        runtime.wait_network()
        front = runtime.run_pod("shop", "front", "uid-front", "/bin/sh", "-c", "ip -o addr show dev eth0; sleep 1000")
        (request,) = agent.admitter.admitted.values()
        assert (request.namespace, request.name, request.pod_uid, request.ifname) == ("shop", "front", "uid-front", "eth0")
        assert request.addresses == (runtime.address(front),)
        assert request.container_id == front
        wait_until(lambda: f"inet {request.addresses[0]}/" in runtime.output("uid-front"), "the container runs in that namespace")
    with pytest.raises(grpc.RpcError) as refused:
        runtime.run_pod("shop", "late", "uid-late", "/bin/sleep", "1000")
    assert "agent on this node is away, and pods of namespace shop belong into the mesh" in str(refused.value)
    outside = runtime.run_pod("other", "outside", "uid-outside", "/bin/sleep", "1000")
    runtime.remove_pod(front)
    node.write_chain("another")  # another CNI is installed in its place while nobody looks
    with node.agent() as agent:
        node.wait_installed()
        wait_until(lambda: _admits(node, agent), "containerd has read the chain anew")
        runtime.remove_left_overs()
        assert agent.admitter.admitted == {}
    assert outside
    assert Installation(runtime.net_d, runtime.bin).uninstall()
    assert node.chain.read_bytes() == before.replace(b'"pods"', b'"another"', 1)
    assert not [each for each in (*runtime.net_d.iterdir(), *runtime.bin.iterdir()) if "nodeproxy" in each.name]


def _admits(node: Node, agent: Answering) -> bool:
    sandbox = node.runtime.run_pod("shop", "late", "uid-late", "/bin/sleep", "1000")
    if agent.admitter.admitted:
        return True
    node.runtime.remove_pod(sandbox)
    return False


class ContainerdCluster(CniCluster):
    """Node 0's pods are containerd's, below the cgroup that is steered."""

    def __init__(self) -> None:
        super().__init__()
        node = self.lab.nodes[0]
        for host in self.lab.nodes[1:]:
            host.add_route(SUBNET, node.address4)
        self.runtime = Containerd(node, self.directory / "containerd", self.prefix)
        self.file = self.runtime.net_d / "10-pods.conflist"
        self.file.write_bytes(chain(self.directory))
        self.agents[0].arguments += ["--cni-conf-dir", str(self.runtime.net_d), "--cni-bin-dir", str(self.runtime.bin)]

    def tell(self, name: str, membership: Membership) -> str:
        """The controller knows of a pod that has no address yet; its uid."""
        uid = f"00000000-0000-4000-8000-{next(_numbers):012x}"
        workload = Workload(
            uid=f"Kubernetes//Pod/shop/{name}",
            name=name,
            namespace="shop",
            service_account=name,
            node="node0",
            addresses=(),
            protocol=Protocol.HBONE,
        )
        told = workload if membership.in_mesh else None
        self.server.put_node(NodePod(namespace="shop", name=name, pod_uid=uid, membership=membership, workload=told))
        return uid

    def close(self) -> None:
        self.runtime.close()
        super().close()


def test_a_containers_first_instruction_is_in_the_mesh() -> None:
    """It connects before anything else, and nobody was told its address."""
    mesh = ContainerdCluster()
    try:
        server = mesh.pod(1, "server")
        mesh.server.put(mesh.message(server))
        mesh.label()
        mesh.serve()
        mesh.start()
        mesh.enrol(server)
        mesh.wait_installed()
        mesh.runtime.wait_network()
        with server.listen(9000) as listener:
            for name, membership in (("first", Membership.NAMESPACE_LABEL), ("plain", Membership.OPTED_OUT)):
                uid = mesh.tell(name, membership)
                command = ("/bin/sh", "-c", f"echo hello | nc {server.ip} 9000; sleep 1000")
                sandbox = mesh.runtime.run_pod("shop", name, uid, *command)
                theirs, (address, *_) = listener.accept()
                with theirs:
                    assert exactly(theirs, 5) == b"hello"
                assert address == mesh.runtime.address(sandbox)
                (row,) = wait_until(functools.partial(_logged, mesh, address), f"{name} was logged")
                assert row.get("src.identity", "") == ("spiffe://cluster.local/ns/shop/sa/first" if name == "first" else "")
        first = mesh.rows()["shop/first"]
        assert (first["state"], first["error"]) == ("in", "")
    finally:
        mesh.close()


def _logged(mesh: ContainerdCluster, address: str) -> list[dict[str, Any]]:
    return [row for row in mesh.agents[1].access_log() if row["src.addr"].startswith(f"{address}:")]
