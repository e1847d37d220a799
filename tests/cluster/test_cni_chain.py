"""The CNI plug-in behind the real ones, called as a runtime calls a chain."""

from __future__ import annotations

import itertools
import json
import os
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from nodeproxy.errors import EnrolmentError
from nodeproxy.lab.topology import Lab, make_netns, remove_netns
from tests.cluster.cni_chain import Attachment, Chain, CniError
from tests.cni_admitter import Answering
from tests.cni_plugin import plugin
from tests.mesh.cluster import wait_until

_numbers = itertools.count()
# Debian's plug-ins speak 1.0 at most: one of 1.1 is made of them.
WRAPPER = """#!/bin/sh
case $CNI_COMMAND in GC|STATUS) exit 0;; esac
sed 's/"cniVersion": "1.1.0"/"cniVersion": "1.0.0"/g' | /usr/lib/cni/bridge | sed 's/"cniVersion": "1.0.0"/"cniVersion": "1.1.0"/'
"""


class Node:
    """A node whose chain has our plug-in, kept there by an agent's part."""

    def __init__(self, root: Path) -> None:
        self.lab = Lab(f"npc{os.getpid()}x{next(_numbers)}", 1)
        self.conf, self.bin, self.root = root / "net.d", root / "bin", root
        self.conf.mkdir()
        self.bin.mkdir()
        (self.bin / "bridge-1.1").write_text(WRAPPER)
        (self.bin / "bridge-1.1").chmod(0o755)
        self.chain = Chain(self.lab.nodes[0], self.conf, self.bin)
        self.made: list[str] = []

    def configure(self, kind: str, version: str) -> None:
        ranges = [[{"subnet": "10.30.0.0/22"}], [{"subnet": "fd00:30::/64"}]]
        main = {"type": kind, "ipam": {"type": "host-local", "dataDir": str(self.root / "ipam"), "ranges": ranges}}
        if kind != "ptp":
            main |= {"bridge": "cni0", "isGateway": True}
        plugins = [main, {"type": "portmap", "snat": True}] if kind == "ptp" else [main]
        (self.conf / "10-pods.conflist").write_text(json.dumps({"cniVersion": version, "name": "pods", "plugins": plugins}))

    def agent(self) -> Answering:
        made = Answering(self.root, self.root / "node")
        made.keep_installed(self.conf, self.bin, plugin(), ("kube-system",))
        return made

    def wait_installed(self) -> None:
        wait_until(lambda: "nodeproxy-cni" in [each["type"] for each in self.chain.config()["plugins"]], "it is in the chain")

    def pod(self, namespace: str = "shop") -> Attachment:
        number = next(_numbers)
        self.made.append(name := f"{self.lab.nodes[0].netns_name}-p{number}")
        return Attachment(f"c{number}", make_netns(name), namespace, f"pod-{number}", f"uid-{number}")

    def ours(self, command: str, pod: Attachment, result: dict[str, Any] | None) -> Any:
        """Our plug-in alone."""
        config = self.chain.config()
        return self.chain._call(command, config, config["plugins"][-1], result, pod.environment(command, str(self.bin)))

    def close(self) -> None:
        for name in self.made:
            remove_netns(name)
        self.lab.close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    made.close()


def refusal(call: Callable[[], Any]) -> CniError:
    with pytest.raises(CniError) as raised:
        call()
    return raised.value


@pytest.mark.parametrize(
    ("kind", "version"), [("bridge", "0.3.1"), ("ptp", "0.4.0"), ("bridge", "1.0.0"), ("bridge-1.1", "1.1.0")]
)
def test_a_pods_life_in_a_real_chain(node: Node, kind: str, version: str) -> None:
    node.configure(kind, version)
    with node.agent() as agent:
        node.wait_installed()
        pods = [node.pod(), node.pod("other")]
        results = [node.chain.add(pod) for pod in pods]
        for pod, result in zip(pods, results, strict=True):
            asked = agent.admitter.admitted.values()
            (request,) = (each for each in asked if each.container_id == pod.container_id)
            assert request.addresses == tuple(each["address"].partition("/")[0] for each in result["ips"])
            assert (request.netns, request.namespace, request.name, request.pod_uid) == (
                pod.netns,
                pod.namespace,
                pod.name,
                pod.uid,
            )
            assert len(request.addresses) == 2
            assert result["cniVersion"] == version
            if version != "0.3.1":
                node.chain.check(pod, result)
        if version == "1.1.0":
            node.chain.status()
            node.chain.collect(pods[:1])
            assert [each.container_id for each in agent.admitter.admitted] == [pods[0].container_id]
        for pod, result in zip(pods, results, strict=True):
            node.chain.delete(pod, result)
            node.chain.delete(pod, None)  # as a runtime does when it is not sure
        assert agent.admitter.admitted == {}


def test_a_real_chain_without_an_agent(node: Node) -> None:
    node.configure("bridge", "1.0.0")
    with node.agent():
        node.wait_installed()
    held, outside = node.pod(), node.pod("other")
    error = refusal(lambda: node.chain.add(held))
    assert (error.plugin, error.code) == ("nodeproxy-cni", 11)
    assert "agent on this node is away, and pods of namespace shop belong into the mesh" in str(error)
    node.chain.delete(held, None)  # what the runtime does then
    node.chain.delete(outside, node.chain.add(outside))
    with node.agent():
        node.chain.delete(held, node.chain.add(held))  # and what the kubelet does a little later


def test_a_pod_that_can_not_be_put_in_now_is_not_left_half_made(node: Node) -> None:
    node.configure("bridge", "1.0.0")
    with node.agent() as agent:
        node.wait_installed()
        agent.admitter.error = EnrolmentError("the CA does not answer")
        pod = node.pod()
        error = refusal(lambda: node.chain.add(pod))
        assert error.code == 11
        assert "can't be put into the mesh now and waits: the CA does not answer; reason: not_enrolled" in str(error)
        node.chain.delete(pod, None)
        agent.admitter.error = None
        assert node.chain.add(pod)["ips"]
        node.chain.delete(pod, None)


def test_many_at_once(node: Node, record_property: Callable[[str, object], None]) -> None:
    """A chain for each of 24 pods, then 250 calls of ours; and what one waits for us when there is nobody else."""
    node.configure("bridge", "1.0.0")
    with node.agent() as agent:
        node.wait_installed()
        pods = [node.pod("shop" if number % 2 else "other") for number in range(24)]
        with ThreadPoolExecutor(len(pods)) as pool:
            results = list(pool.map(node.chain.add, pods))
        assert len(agent.admitter.admitted) == len(pods)
        again = [Attachment(f"again-{number}", pods[0].netns, "shop", f"again-{number}", "u") for number in range(250)]
        with ThreadPoolExecutor(250) as pool:
            assert list(pool.map(lambda each: node.ours("ADD", each, results[0]), again)) == [results[0]] * 250
        assert len(agent.admitter.admitted) == len(pods) + 250
        for each in again[:20]:
            node.ours("DEL", each, None)
        node.chain.took.clear()
        for each in again[:20]:
            node.ours("ADD", each, results[0])
        median_s = statistics.median(node.chain.took["nodeproxy-cni", "ADD"])
        record_property("the CNI plug-in, one ADD after the other", f"{median_s * 1000:.1f} ms at the median")

        for pod, result in zip(pods[:4], results, strict=False):
            node.chain.delete(pod, result)
        assert len(agent.admitter.admitted) == len(pods) + 250 - 4


def test_a_namespace_that_is_none_is_refused_before_anybody_is_asked(node: Node) -> None:
    node.configure("bridge", "1.0.0")
    with node.agent() as agent:
        node.wait_installed()
        error = refusal(lambda: node.ours("ADD", Attachment("c1", str(node.conf), "shop", "odd", "u"), {"cniVersion": "1.0.0"}))
        assert (error.plugin, error.code) == ("nodeproxy-cni", 4)
        assert agent.admitter.admitted == {}
