"""Pods of a real containerd, whose CRI calls the chain with our plug-in in it."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from nodeproxy.lab.topology import Lab
from tests.cluster.containerd import Containerd
from tests.cni_admitter import Answering
from tests.cni_plugin import plugin
from tests.mesh.cluster import wait_until

_numbers = itertools.count()
CHAIN = {"cniVersion": "1.0.0", "name": "pods"}


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
        ranges = [[{"subnet": "10.40.0.0/24"}]]
        ipam = {"type": "host-local", "dataDir": str(self.root / "ipam"), "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}]}
        main = {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipam": ipam}
        self.chain.write_text(json.dumps({"cniVersion": "1.0.0", "name": name, "plugins": [main]}))

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
    from nodeproxy.cni.install import Installation

    assert Installation(runtime.net_d, runtime.bin).uninstall()
    assert node.chain.read_bytes() == before.replace(b'"pods"', b'"another"', 1)
    assert not [each for each in (*runtime.net_d.iterdir(), *runtime.bin.iterdir()) if "nodeproxy" in each.name]


def _admits(node: Node, agent: Answering) -> bool:
    sandbox = node.runtime.run_pod("shop", "late", "uid-late", "/bin/sleep", "1000")
    if agent.admitter.admitted:
        return True
    node.runtime.remove_pod(sandbox)
    return False
