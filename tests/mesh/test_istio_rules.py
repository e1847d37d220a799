"""Pods in which istio-cni has made its rules: what they redirect is carried as elsewhere."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from nodeproxy.linux.dns_capture import is_dns_captured
from tests.istio_cni import capture_dns, program, translate, undo
from tests.kernel.conftest import Program
from tests.mesh.cluster import MeshPod, exactly, wait_until
from tests.mesh.test_kubelet import Called
from tests.mesh.zds import ZdsCluster, path_of
from tests.xds_server import policy

# As STRICT reaches a node, for the workloads that list it.
STRICT = {
    "namespace": "shop",
    "scope": "WORKLOAD_SELECTOR",
    "action": "DENY",
    "rules": [{"clauses": [{"matches": [{"not_principals": [{"presence": {}}]}]}]}],
}
FAMILIES = pytest.mark.parametrize("family", [4, 6])


class RuledCluster(ZdsCluster):
    """Pods `client` and `app` of node 0 with the rules; `stranger`, in no mesh."""

    def start(self) -> None:
        super().start()
        self.uids = {}
        for name in ("client", "app"):
            pod, uid = self.come(name)
            program(pod.host)
            assert self.add(pod, uid) == ""
            self.uids[name] = uid
        self.stranger = self.pod(1, "stranger")


@pytest.fixture(scope="module")
def mesh() -> Iterator[RuledCluster]:
    mesh = RuledCluster()
    try:
        mesh.start()
        yield mesh
    finally:
        mesh.close()


def at(pod: MeshPod, family: int) -> str:
    return pod.ip if family == 4 else pod.ip6


def call(mesh: RuledCluster, client: MeshPod, server: MeshPod, family: int, port: int) -> dict[str, Any]:
    """One connection with a byte each way; the server sees the client's address.  How the server's node has it."""
    with server.listen(port, at(server, family)) as listener, client.connect(at(server, family), port) as ours:
        theirs, peer = listener.accept()
        with theirs:
            assert peer[0] == at(client, family)
            assert ours.getpeername()[:2] == (at(server, family), port)
            ours.sendall(b"x")
            assert exactly(theirs, 1) == b"x"
            theirs.sendall(b"y")
            assert exactly(ours, 1) == b"y"
            connections = mesh.agents[server.host.node].get("/connections")["connections"]
            found = [each for each in connections if str(each).count(f":{port}'") or f":{port}" in str(each)]
            assert found, connections
            return dict(found[-1])


@FAMILIES
def test_what_a_pod_sends_goes_through_the_mesh(mesh: RuledCluster, family: int) -> None:
    client, server = mesh.pods["client"], mesh.pods["server"]
    assert client.identity in str(call(mesh, client, server, family, 8000))


@FAMILIES
def test_a_tunnel_reaches_the_pod(mesh: RuledCluster, family: int) -> None:
    server, app = mesh.pods["server"], mesh.pods["app"]
    assert server.identity in str(call(mesh, server, app, family, 8001))


@FAMILIES
def test_who_is_in_no_mesh_reaches_the_port_that_it_asked_for(mesh: RuledCluster, family: int) -> None:
    row = call(mesh, mesh.stranger, mesh.pods["app"], family, 8002)
    assert ":8002" in str(row)
    assert "15006" not in str(row)


@FAMILIES
def test_two_pods_of_the_node(mesh: RuledCluster, family: int) -> None:
    client, app = mesh.pods["client"], mesh.pods["app"]
    assert client.identity in str(call(mesh, client, app, family, 8003))
    assert "istio-cni" in str(mesh.agents[0].get("/status")["direct"])


@FAMILIES
def test_the_world_outside_is_reached(mesh: RuledCluster, family: int) -> None:
    client, stranger = mesh.pods["client"], mesh.stranger
    with stranger.listen(8004, at(stranger, family)) as listener, client.connect(at(stranger, family), 8004) as ours:
        theirs, _ = listener.accept()
        with theirs:
            ours.sendall(b"x")
            assert exactly(theirs, 1) == b"x"


def test_a_pod_reaches_itself_and_its_loopback(mesh: RuledCluster) -> None:
    client = mesh.pods["client"]
    for address in (client.ip, client.ip6, "127.0.0.1", "::1"):
        with client.listen(8005, address) as listener, client.connect(address, 8005) as ours:
            theirs, _ = listener.accept()
            with theirs:
                ours.sendall(b"x")
                assert exactly(theirs, 1) == b"x"


@FAMILIES
def test_the_port_of_the_rules_themselves_is_nobodys(mesh: RuledCluster, family: int) -> None:
    app, stranger = mesh.pods["app"], mesh.stranger
    with app.listen(15006, at(app, family)), pytest.raises(ConnectionResetError):  # noqa: PT012
        with stranger.connect(at(app, family), 15006) as ours:
            assert ours.recv(1)


@pytest.fixture
def kubelet(mesh: RuledCluster, tmp_path: Path) -> Iterator[Called]:
    name, group = tmp_path / "kubelet", mesh.cgroup / "kubelet.service"
    name.symlink_to(os.path.realpath(sys.executable))
    group.mkdir()
    made = Called(mesh.lab.nodes[0], group, name)
    agent = mesh.agents[0]
    wait_until(lambda: agent.get("/status")["kubelet"]["pid"] == made.pid, "the kubelet is found", 35)
    yield made
    made.end()
    group.rmdir()


@pytest.mark.parametrize("own_address", [False, True])
def test_the_kubelet_s_probes_pass_where_the_snat_keeps_the_address_that_they_have(
    mesh: RuledCluster, kubelet: Called, own_address: bool
) -> None:
    """With another one they are anybody's, and refused; what is not the kubelet's is refused with either."""
    node = mesh.lab.nodes[0]
    pod, uid = mesh.come(f"probed-{int(own_address)}")
    probes = {"iptables": "10.10.0.1", "ip6tables": "fd00:10:0::1"} if own_address else None
    program(pod.host, probes)
    translate(node, pod.host, probes)
    mesh.server.put(policy("strict", **STRICT), mesh.message(pod, authorization_policies=["shop/strict"]))
    assert mesh.add(pod, uid) == ""
    wait_until(lambda: mesh.agents[0].get("/status")["state"]["policies"] == 1, "the policy is there")
    other = Program(node, mesh.programs)
    Program(pod.host, mesh.programs).serve("::", 8080)
    for address in (pod.ip, pod.ip6):
        assert (kubelet.connect(address, 8080).get("role") == "app") is own_address
        assert other.connect(address, 8080).get("role") != "app"
    assert mesh.cni.delete(uid) == [""]


def test_that_names_are_not_resolved_where_dns_is_captured_is_said_once(mesh: RuledCluster) -> None:
    agent, said = mesh.agents[0], "install istio-cni with ambient.dnsCapture=false"
    assert said not in agent.log(), "the pods until now"
    for number in range(2):
        pod, uid = mesh.come(f"captured-{number}")
        program(pod.host)
        assert not is_dns_captured(pod.host.netns_fd)
        capture_dns(pod.host)
        assert mesh.add(pod, uid) == ""
        assert mesh.cni.delete(uid) == [""]
        assert is_dns_captured(pod.host.netns_fd)
    assert agent.log().count(said) == 1


def test_connections_drain_when_the_rules_have_gone(mesh: RuledCluster) -> None:
    pod, uid = mesh.come("leaver")
    program(pod.host)
    assert mesh.add(pod, uid) == ""
    server, stranger = mesh.pods["server"], mesh.stranger
    with ExitStack() as closing:
        ends = {}
        for name, client, listening in (("out", pod, server), ("tunnel", server, pod), ("plain", stranger, pod)):
            listener = closing.enter_context(listening.listen(0))
            ours = closing.enter_context(client.connect(listening.ip, listener.getsockname()[1]))
            ends[name] = ours, closing.enter_context(listener.accept()[0])
        _go_on(ends)
        undo(pod.host)
        del ends["plain"]  # with the rules goes what netfilter redirected
        _go_on(ends)
        assert mesh.cni.delete(uid) == [""]
        _go_on(ends)
    wait_until(lambda: path_of(mesh, pod) == "plain", "it is out")


def _go_on(ends: dict[str, tuple[socket.socket, socket.socket]]) -> None:
    broken = []
    for name, (ours, theirs) in ends.items():
        for side, one, other in (("client", ours, theirs), ("server", theirs, ours)):
            other.settimeout(2.0)
            try:
                one.sendall(b"x")
                assert exactly(other, 1) == b"x"
            except OSError as error:
                broken.append((name, side, str(error)))
    assert not broken
