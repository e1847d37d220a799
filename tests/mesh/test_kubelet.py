"""The kubelet's probes of a pod that refuses whoever has no identity."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from nodeproxy.lab.topology import Host
from tests.kernel.conftest import PEER, Program
from tests.mesh.cluster import Cluster, wait_until
from tests.mesh.labelled import LabelledCluster

pytestmark = pytest.mark.mesh
STRICT = {
    "name": "strict",
    "namespace": "shop",
    "scope": "Namespace",
    "action": "Deny",
    "rules": [[[{"notPrincipals": [{"presence": {}}]}]]],
}


class Called(Program):
    """peer.py under another name."""

    def __init__(self, host: Host, group: Path, name: Path) -> None:
        self.name = name
        super().__init__(host, group)

    def argv(self) -> list[str]:
        return [str(self.name), "-I", "-S", str(PEER)]

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster(nodes=1)
    group = made.cgroup / "kubelet.service"
    group.mkdir()
    try:
        made.pod(0, "web")
        made.policies.append(STRICT)
        made.start()
        yield made
    finally:
        for program in made.lab.nodes[0]._processes:
            program.kill()
            program.wait()
        group.rmdir()
        made.close()


@pytest.fixture(scope="module")
def name(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bin") / "kubelet"
    path.symlink_to(os.path.realpath(sys.executable))
    return path


def _known(cluster: Cluster) -> int:
    return int(cluster.agents[0].get("/status")["kubelet"]["pid"])


def test_they_pass_as_long_as_the_kubelet_is_known_and_nothing_else_does(cluster: Cluster, name: Path) -> None:
    agent, web, node = cluster.agents[0], cluster.pods["web"], cluster.lab.nodes[0]
    Program(web.host, cluster.programs).serve("::", 8080)
    other = Program(node, cluster.programs)
    assert agent.get("/status")["kubelet"]["pid"] == 0

    for _ in range(2):  # it starts, and is started again
        kubelet = Called(node, cluster.cgroup / "kubelet.service", name)
        wait_until(lambda kubelet=kubelet: _known(cluster) == kubelet.pid, "the kubelet is found", 35)
        for address in (web.ip, web.ip6, f"::ffff:{web.ip}"):
            assert kubelet.connect(address, 8080)["role"] == "app"
            assert other.connect(address, 8080)["role"] != "app"
        kubelet.end()
        wait_until(lambda: _known(cluster) == 0, "that it has gone is noticed")
    assert 'nodeproxy_kubelet_connections_total{result="passed"} 6.0' in agent.metrics()
    assert "nodeproxy_kubelet_known 0.0" in agent.metrics()
    assert "judged by policy as anybody's" in agent.nodeproxy("status").stdout


def test_they_pass_while_the_agent_is_away(cluster: Cluster, name: Path) -> None:
    agent, web, node = cluster.agents[0], cluster.pods["web"], cluster.lab.nodes[0]
    kubelet = Called(node, cluster.cgroup / "kubelet.service", name)
    wait_until(lambda: _known(cluster) == kubelet.pid, "the kubelet is found", 35)
    agent.kill()
    try:
        assert kubelet.connect(web.ip, 8080)["role"] == "app"
        assert Program(node, cluster.programs).connect(web.ip, 8080, timeout=0.3)["role"] == "error"
    finally:
        agent.start()
    assert kubelet.connect(web.ip, 8080)["role"] == "app"
    assert f"process {kubelet.pid} in " in agent.nodeproxy("status").stdout


def test_where_the_controller_tells_of_probes_only_their_ports_pass(name: Path) -> None:
    """The kubelet is made to go elsewhere by whoever may write a pod: a probe's `host` may be another pod's address."""
    cluster = LabelledCluster(nodes=1)
    group = cluster.cgroup / "kubelet.service"
    group.mkdir()
    try:
        web, node, agent = cluster.run("web"), cluster.lab.nodes[0], cluster.agents[0]
        cluster.server.put(cluster.message(web.pod))
        cluster.label()
        cluster.server.put_node(msgspec.structs.replace(web.node_pod(), probe_ports=(8080,)))
        kubelet = Called(node, group, name)
        cluster.serve()
        cluster.start()
        served = Program(web.pod.host, cluster.programs)
        for port in (8080, 8081):
            served.serve("::", port)
        wait_until(lambda: _known(cluster) == kubelet.pid, "the kubelet is found", 35)
        cluster.wait_in(web)
        passed = [kubelet.connect(web.pod.ip, port)["role"] for port in (8080, 8081)]
        assert passed == ["app", "app"]  # nothing denies it
        counts = agent.get("/status")["kubelet"]["connections"]
        assert counts == {"passed": 1, "full": 0, "other": 1}
    finally:
        for program in cluster.lab.nodes[0]._processes:
            program.kill()
            program.wait()
        group.rmdir()
        cluster.close()
