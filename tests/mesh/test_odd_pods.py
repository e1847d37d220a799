"""Pods that are not one interface that stays: several addresses, that come and go, and pods that end at a bad moment."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator

import pytest

from nodeproxy.agent.enrolment import MAX_ADDRESSES
from nodeproxy.kernel import abi
from nodeproxy.kernel.bpf import Map
from nodeproxy.kernel.pins import Pins
from nodeproxy.lab.topology import remove_netns
from nodeproxy.linux.netns import inside
from tests.mesh.cluster import Agent, Cluster, MeshPod, exactly, wait_until

pytestmark = pytest.mark.mesh
STRICT = {
    "name": "strict",
    "namespace": "shop",
    "scope": "Namespace",
    "action": "Deny",
    "rules": [[[{"notPrincipals": [{"presence": {}}]}]]],
}


@pytest.fixture(scope="module")
def mesh() -> Iterator[Cluster]:
    cluster = Cluster()
    try:
        cluster.pod(0, "client")
        cluster.pod(1, "server")
        cluster.write()
        for agent in cluster.agents:
            agent.start(wait=False)
        for agent in cluster.agents:
            agent.wait_ready(90)  # both compile at a time
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def strict(mesh: Cluster) -> Iterator[None]:
    mesh.policies.append(STRICT)
    mesh.apply()
    yield
    mesh.policies.clear()
    mesh.apply()


def add(mesh: Cluster, node: int, name: str) -> MeshPod:
    """A new pod, in the mesh."""
    pod = mesh.pod(node, name)
    mesh.apply()
    agent = mesh.agents[node]
    wait_until(lambda: addresses(agent, pod), "it is in")
    wait_until(lambda: agent.get("/status")["ready"], "it has its certificate")
    return pod


def end(mesh: Cluster, pod: MeshPod) -> None:
    """Its network goes, as at a pod's end."""
    node = mesh.lab.nodes[pod.host.node]
    node._route.link("del", index=node.index(f"pod{pod.ip.rsplit('.', 1)[1]}"))
    remove_netns(pod.host.netns_name)


def forget(mesh: Cluster, *pods: MeshPod) -> None:
    """The state does not have them any more."""
    for pod in pods:
        del mesh.pods[pod.host.name]
    mesh.write()
    uids = {pod.uid for pod in pods}
    for agent in mesh.agents:
        wait_until(lambda agent=agent: not uids & {row["uid"] for row in agent.get("/status")["pods"]}, "they are forgotten")


def addresses(agent: Agent, pod: MeshPod) -> list[str]:
    """That it is in the mesh with."""
    return [
        address
        for row in agent.get("/status")["pods"]
        if row["uid"] == pod.uid and not row["error"]
        for address in row["addresses"]
    ]


def arrives(mesh: Cluster, pod: MeshPod, address: str, port: int, timeout_s: float = 3.0) -> bool:
    """Whether what the pod's node sends to that address in plain gets to the application."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with inside(mesh.lab.nodes[pod.host.node].netns_fd):
        ours = socket.socket(family)
    with ours:
        ours.settimeout(timeout_s)
        try:
            ours.connect((address, port))
            ours.sendall(b"x")
            return ours.recv(1) == b"x"
        except OSError:
            return False


def inbound(agent: Agent) -> set[str]:
    """The addresses that the access log has connections to."""
    return {row["dst.addr"].rpartition(":")[0].strip("[]") for row in agent.access_log() if row["direction"] == "inbound"}


class Echo:
    """An application that answers with what it gets, on all addresses of a pod."""

    def __init__(self, pod: MeshPod, port: int) -> None:
        self._listener = pod.listen(port, "::")
        self._listener.settimeout(None)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                accepted, _ = self._listener.accept()
            except OSError:
                return
            with accepted:
                accepted.settimeout(5)
                try:
                    accepted.sendall(accepted.recv(1))
                except OSError:
                    continue

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def __enter__(self) -> Echo:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def second_interface(mesh: Cluster, pod: MeshPod) -> tuple[str, str]:
    """As a meta plug-in adds one: another subnet, whose other end is on the node; its addresses here and there."""
    node = mesh.lab.nodes[pod.host.node]
    node.link_to(pod.host, "net1", "net1")
    node.add_address("net1", "192.0.2.1", 24)
    pod.host.add_address("net1", "192.0.2.7", 24)
    return "192.0.2.7", "192.0.2.1"


def test_every_address_of_every_interface_is_judged(mesh: Cluster) -> None:
    pod = mesh.pod(0, "multi")
    here, there = second_interface(mesh, pod)
    pod.host.add_address("eth0", "10.10.0.201", 24)
    pod.host.add_address("eth0", "fd00:10:0::c9", 64)
    mesh.apply()
    agent, all_of_them = mesh.agents[0], {pod.ip, pod.ip6, here, "10.10.0.201", "fd00:10::c9"}
    wait_until(lambda: set(addresses(agent, pod)) == all_of_them, "it is in with all")
    with Echo(pod, 8080):
        assert all(arrives(mesh, pod, address, 8080) for address in all_of_them)
        wait_until(lambda: inbound(agent) >= all_of_them, "each was the proxy's to judge")
        mesh.policies.append(STRICT)
        mesh.apply()
        assert not any(arrives(mesh, pod, address, 8080) for address in all_of_them)
        with mesh.pods["server"].connect(pod.ip, 8080) as ours:
            ours.sendall(b"y")
            assert exactly(ours, 1) == b"y"
        mesh.policies.clear()
        mesh.apply()
    with inside(mesh.lab.nodes[0].netns_fd):
        listener = socket.create_server((there, 9000))
    with listener, pod.connect(there, 9000) as ours:  # and out by the second interface, to whom the mesh does not know
        listener.settimeout(5)
        theirs, peer = listener.accept()
        with theirs:
            assert peer[0] == here
            theirs.sendall(b"z")
            assert exactly(ours, 1) == b"z"


def test_addresses_that_come_and_go_after_enrolment(mesh: Cluster) -> None:
    pod, agent = add(mesh, 0, "late"), mesh.agents[0]
    with Echo(pod, 8080):
        for address, length in (("10.10.0.202", 24), ("fd00:10:0::ca", 64)):
            pod.host.add_address("eth0", address, length)
            wait_until(lambda address=address: arrives(mesh, pod, address, 8080, 0.3), "it is served", 3)
        assert set(addresses(agent, pod)) == {pod.ip, pod.ip6, "10.10.0.202", "fd00:10::ca"}
        with mesh.pods["server"].connect(pod.ip, 8080) as ours:  # what it had goes on
            ours.sendall(b"y")
            assert exactly(ours, 1) == b"y"
        pod.host._route.addr("del", index=pod.host.index("eth0"), address="10.10.0.202", prefixlen=24)
        wait_until(lambda: "10.10.0.202" not in addresses(agent, pod), "that it has gone is noticed", 3)
        assert arrives(mesh, pod, pod.ip, 8080)


def test_an_interface_that_comes_after_enrolment_is_judged_as_well(mesh: Cluster) -> None:
    pod, agent = add(mesh, 1, "hotplug"), mesh.agents[1]
    here, _ = second_interface(mesh, pod)
    with Echo(pod, 8080):
        wait_until(lambda: arrives(mesh, pod, here, 8080, 0.3), "it is served", 3)
    assert here in addresses(agent, pod)


def test_a_pod_that_gives_itself_addresses_without_end_is_served_with_some(mesh: Cluster) -> None:
    pod, agent = add(mesh, 0, "greedy"), mesh.agents[0]
    for number in range(100):
        pod.host.add_address("lo", f"10.99.0.{number + 1}", 32)
    wait_until(lambda: len(addresses(agent, pod)) == MAX_ADDRESSES, "as many as may be", 5)
    assert pod.ip in addresses(agent, pod)
    with Echo(pod, 8080):
        assert arrives(mesh, pod, pod.ip, 8080)
    assert "is too many" in agent.log()


def test_containers_that_start_again_stay_in_the_mesh(mesh: Cluster, strict: None) -> None:
    """The pod's network is its sandbox's, which stays: nothing to be done, and nothing done."""
    pod, agent = add(mesh, 0, "restarting"), mesh.agents[0]
    since = next(row["since"] for row in agent.get("/status")["pods"] if row["uid"] == pod.uid)
    for _ in range(3):
        with Echo(pod, 8080), mesh.pods["server"].connect(pod.ip, 8080) as ours:
            ours.sendall(b"y")
            assert exactly(ours, 1) == b"y"
            assert not arrives(mesh, pod, pod.ip, 8080)
        with pytest.raises(ConnectionError), mesh.pods["server"].connect(pod.ip, 8080) as ours:
            assert exactly(ours, 1)
    assert next(row["since"] for row in agent.get("/status")["pods"] if row["uid"] == pod.uid) == since


def leftovers(agent: Agent) -> dict[str, int]:
    """What there is for pods: links, entries in maps."""
    pins = Pins(agent.instance)
    (generation,) = pins.generations()
    found = {"links": len(pins.pod_cookies())}
    for name in ("enrolled", "pods_by_address", "handover", "flows", "probes", "probe_ports"):
        opened = Map.open(generation / "maps" / name)
        found[name] = len(list(opened.all_keys()))
        opened.close()
    assert set(found) - {"links"} <= set(abi.MAPS)
    return found


def descriptors(agent: Agent) -> int:
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in agent.pids())


def holds(agent: Agent, netns: os.stat_result) -> list[str]:
    """Descriptors by which the agent or a worker keeps a network namespace alive."""
    found = []
    for pid in agent.pids():
        for number in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):  # closed meanwhile
                if os.path.samestat(os.stat(f"/proc/{pid}/fd/{number}"), netns):
                    found.append(f"{pid}: {number}")
    return found


def test_a_job_that_ends_leaves_nothing(mesh: Cluster) -> None:
    agent = mesh.agents[0]
    before, open_before = leftovers(agent), descriptors(agent)
    for round_ in range(3):
        jobs = [add(mesh, 0, f"job{round_}-{number}") for number in range(3)]
        networks = [os.fstat(job.host.netns_fd) for job in jobs]
        assert all(holds(agent, network) for network in networks)
        for job in jobs:
            with (
                mesh.pods["server"].listen(9100 + round_) as listener,
                job.connect(mesh.pods["server"].ip, 9100 + round_) as ours,
            ):
                theirs, _ = listener.accept()
                with theirs:
                    ours.sendall(b"1")
                    assert exactly(theirs, 1) == b"1"
        for job in jobs:
            end(mesh, job)
        wait_until(lambda networks=networks: not any(holds(agent, each) for each in networks), "nobody holds their networks")
        forget(mesh, *jobs)
    wait_until(lambda: leftovers(agent) == before, "nothing of them is left")
    wait_until(lambda: descriptors(agent) <= open_before + 3, "no descriptor is left")


def test_a_pod_that_ends_while_it_is_enrolled_harms_nobody(mesh: Cluster) -> None:
    agent = mesh.agents[1]
    before = leftovers(agent)
    pods = [mesh.pod(1, f"short{number}") for number in range(8)]
    mesh.write()
    ends = [threading.Timer(number * 0.02, remove_netns, (pod.host.netns_name,)) for number, pod in enumerate(pods)]
    for timer in ends:
        timer.start()
    for pod in pods:  # beside the mesh file's own way in
        agent.request("POST", "/pods", {"uid": pod.uid, "netns": pod.host.netns_path})
    for timer in ends:
        timer.join()
    for pod in pods:
        agent.request("DELETE", f"/pods/{pod.uid}")
    forget(mesh, *pods)
    wait_until(lambda: leftovers(agent) == before, "nothing of them is left")
    with Echo(mesh.pods["server"], 8090), mesh.pods["client"].connect(mesh.pods["server"].ip, 8090) as ours:
        ours.sendall(b"y")
        assert exactly(ours, 1) == b"y"


def test_an_address_goes_from_a_dead_pod_to_a_new_one_at_once(mesh: Cluster) -> None:
    """Before anybody says that the old one has gone."""
    agent, old = mesh.agents[0], add(mesh, 0, "old")
    end(mesh, old)
    mesh.lab._next_pod[0] -= 1  # what an address manager does that has few
    new = mesh.pod(0, "new")
    assert new.ip == old.ip
    del mesh.pods["old"]
    mesh.apply()
    wait_until(lambda: addresses(agent, new) == [new.ip, new.ip6], "the new one has it", 2)
    with Echo(new, 8080), mesh.pods["server"].connect(new.ip, 8080) as ours:
        ours.sendall(b"y")
        assert exactly(ours, 1) == b"y"
    target, told = f"{new.ip}:8080", mesh.agents[1]
    wait_until(lambda: any(row["dst.addr"] == target for row in told.access_log()), "its connection is logged")
    assert [row["dst.workload"] for row in told.access_log() if row["dst.addr"] == target] == ["new"]


def test_a_network_that_is_replaced_under_its_path_is_enrolled_anew(mesh: Cluster) -> None:
    agent, pod = mesh.agents[0], add(mesh, 0, "sandbox")
    first = os.fstat(pod.host.netns_fd)
    end(mesh, pod)
    mesh.lab._next_pod[0] -= 1
    os.close(pod.host.netns_fd)
    again = mesh.lab.pod(0, "sandbox")
    pod.host.netns_fd = os.dup(again.netns_fd)  # the lab closes both
    pod.host._route.close()
    pod.host._route = again._route
    wait_until(lambda: not holds(agent, first), "the old one is let go")
    with Echo(pod, 8080):
        wait_until(lambda: addresses(agent, pod), "the new one is in")
        with mesh.pods["server"].connect(pod.ip, 8080) as ours:
            ours.sendall(b"y")
            assert exactly(ours, 1) == b"y"
