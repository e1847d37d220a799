"""The kubelet's probes of an enrolled pod reach the application past policy, and nothing else of the node does."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nodeproxy.errors import KernelError
from nodeproxy.kernel.abi import IN_USE, PROBE, PROBE_PORT
from nodeproxy.kernel.probes import NOBODY, KubeletIs
from nodeproxy.lab.topology import Host, Lab, LabPod
from nodeproxy.linux.cgroup import cgroup_id
from nodeproxy.linux.netns import inside, netns_cookie
from tests.kernel.conftest import Node, Program
from tests.mesh.cluster import wait_until

pytestmark = pytest.mark.kernel
SECOND = "10.10.0.200"


class World:
    """A node with its kubelet, a pod with the node's network, an enrolled pod that serves, and one outside the mesh."""

    def __init__(self, lab: Lab, node: Node) -> None:
        self.lab, self.node, self.host = lab, node, lab.nodes[0]
        self.group = node.group / "kubelet.service"
        self.group.mkdir()
        self.server_pod, self.near_pod = lab.pod(0, "server"), lab.pod(0, "near")
        self.server_pod.add_address("eth0", SECOND, 24)
        self.kubelet = Program(self.host, self.group)
        self.host_pod = Program(self.host, node.group / "pods")
        self.server = Program(self.server_pod, node.group / "pods")
        self.near = Program(self.near_pod, node.group / "pods")
        for port in (80, 81, 15001, 15006, 15008):
            self.server.serve("::", port)
        self.cookie = node.enrol(self.server_pod)
        node.steering.probes.allow(self.cookie, None)
        self.node_cookie = netns_cookie(self.host.netns_fd)
        self.introduce()

    def introduce(self) -> None:
        self.node.steering.probes.kubelet = KubeletIs(cgroup_id(self.group), self.node_cookie)

    @property
    def addresses(self) -> tuple[str, ...]:
        return (*self.server_pod.addresses, SECOND, f"::ffff:{self.server_pod.address4}")

    @property
    def live(self) -> int:
        """Probes that are being made."""
        return int(IN_USE.unpack(self.node.steering._maps["in_use"].get(bytes(4)) or b"")[2])

    def count(self, what: str) -> int:
        return self.node.steering.probes.counters()[what]

    def gateway(self, address: str) -> str:
        """The node's address on the bridge, which its connects to the pod come from."""
        return "fd00:10:0::1" if ":" in address and "ffff" not in address else "10.10.0.1"


@pytest.fixture(scope="module")
def world(lab: Lab, node: Node) -> World:
    return World(lab, node)


@pytest.fixture(autouse=True)
def _nothing_stays(world: World) -> Iterator[None]:
    yield
    wait_until(lambda: world.live == 0, "no probe is left in the map")
    assert not list(world.node.steering._maps["probes"].all_keys())


def test_the_kubelet_reaches_the_application_and_nobody_else_of_the_node_does(world: World) -> None:
    before = world.count("passed")
    for address in world.addresses:
        answer = world.kubelet.connect(address, 80)
        assert (answer["role"], answer["peername"]) == ("app", [address, 80])
        assert answer["seen_peer"][1] == answer["sockname"][1]
        assert world.host_pod.connect(address, 80)["role"] == "PLAINTEXT"
        assert world.near.connect(address, 80)["role"] == "PLAINTEXT"
    assert world.count("passed") == before + len(world.addresses)


def test_the_proxy_s_own_ports_stay_the_proxy_s(world: World) -> None:
    roles = {port: world.kubelet.connect(world.server_pod.address4, port)["role"] for port in (15001, 15006, 15008)}
    assert roles == {15001: "OUTBOUND", 15006: "PLAINTEXT", 15008: "HBONE"}


def test_a_port_that_nobody_serves_is_refused_by_the_pod_itself(world: World) -> None:
    assert world.kubelet.connect(world.server_pod.address4, 82)["error"] == "ConnectionRefusedError"


def test_who_is_in_its_cgroup_but_in_a_pod_s_network_is_a_pod(world: World, lab: Lab) -> None:
    """A pod that calls itself so, or that got a process in there somehow, and one with the node's addresses."""
    inside_near = Program(world.near_pod, world.group)
    assert inside_near.connect(world.server_pod.address4, 80)["role"] == "PLAINTEXT"
    other = lab.pod(0, "named-kubelet")
    world.node.enrol(other)
    assert Program(other, world.group).connect(world.server_pod.address4, 80)["role"] == "OUTBOUND"


def test_a_process_below_the_kubelet_s_cgroup_is_not_the_kubelet(world: World) -> None:
    below = world.group / "below"
    below.mkdir()
    assert Program(world.host, below).connect(world.server_pod.address4, 80)["role"] == "PLAINTEXT"


def test_a_4_tuple_is_worth_nothing_after_its_connection_was_accepted_or_has_ended(world: World) -> None:
    for address in world.server_pod.addresses:
        source = [world.gateway(address), 34000]
        assert world.kubelet.connect(address, 80, source=source)["role"] == "app"
        assert world.live == 0
        assert world.host_pod.connect(address, 80, source=source)["role"] == "PLAINTEXT"
        assert world.kubelet.connect(address, 82, source=source)["error"] == "ConnectionRefusedError"
        assert world.live == 0


def test_a_probe_that_is_given_up_leaves_no_way_in(world: World) -> None:
    """Its SYN never arrived; the next who has its port meets policy."""
    address, source = world.server_pod.address4, [world.gateway("."), 34001]
    with silent(world.server_pod):
        pending = world.kubelet.start("connect", address=address, port=80, source=source, timeout=1.0)
        wait_until(lambda: world.live == 1, "the SYN is on its way")
        assert pending()["error"] == "TimeoutError"
        assert world.live == 0
    assert world.host_pod.connect(address, 80, source=source)["role"] == "PLAINTEXT"


@contextlib.contextmanager
def silent(pod: LabPod) -> Iterator[None]:
    """The pod gets nothing for as long."""
    route = pod._route
    route.link("set", index=pod.index("eth0"), state="down")
    try:
        yield
    finally:
        pod.up("eth0")
        pod.add_route("default4", "10.10.0.1")


def test_a_pod_that_has_or_forges_the_node_s_address_gets_to_no_application(world: World) -> None:
    """While the kubelet itself connects with these very ends: what it forges is answered to the node."""
    address, port = world.server_pod.address4, 34002
    world.near_pod.add_address("lo", world.gateway("."), 32)
    answers: list[str] = []
    stop = threading.Event()

    def probe() -> None:
        while not stop.is_set():
            answers.append(world.kubelet.connect(address, 80, source=[world.gateway("."), port]).get("role", "error"))

    prober = threading.Thread(target=probe)
    prober.start()
    try:
        heard = set()
        with inside(world.near_pod.netns_fd):
            raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
            forger = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        with raw, forger:
            raw.setblocking(False)
            for number in range(2000):
                forger.sendto(syn(world.gateway("."), address, port, 80, 1000 + number), (address, 0))
            with contextlib.suppress(BlockingIOError):
                while True:
                    packet = raw.recv(2048)[14:]
                    if packet[9] == 6 and packet[12:16] == socket.inet_aton(address):
                        heard.add(packet[20 + 13])
    finally:
        stop.set()
        prober.join()
    assert "app" in answers
    assert not heard, "the forger saw an answer"
    for _ in range(5):
        answer = world.near.connect(address, 80, source=[world.gateway("."), port], timeout=0.3)
        assert answer["role"] in ("error", "PLAINTEXT"), answer


def syn(source: str, destination: str, source_port: int, port: int, sequence: int) -> bytes:
    """An IPv4 packet with a SYN."""
    ends = socket.inet_aton(source) + socket.inet_aton(destination)
    header = struct.pack("!HHIIBBHHH", source_port, port, sequence, 0, 5 << 4, 2, 65535, 0, 0)
    words = struct.unpack("!16H", ends + struct.pack("!HH", 6, len(header)) + header)
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    header = header[:16] + struct.pack("!H", ~total & 0xFFFF) + header[18:]
    return struct.pack("!BBHHHBBH", 0x45, 0, 40, 0, 0, 64, 6, 0) + ends + header


def test_when_too_many_are_being_made_the_next_is_judged_as_anybody(world: World) -> None:
    table, steering = world.node.steering._maps["probes"], world.node.steering
    before = world.count("full")
    keys = [os.urandom(32) + struct.pack("=HH", number % 65536, 80) for number in range(table.max_entries)]
    try:
        for key in keys:
            table.put(key, PROBE.pack(world.cookie, 0))
        steering._maps["in_use"].put(bytes(4), IN_USE.pack(0, 0, len(keys)))
        assert world.kubelet.connect(world.server_pod.address4, 80)["role"] == "PLAINTEXT"
        assert world.count("full") == before + 1
    finally:
        for key in keys:
            table.delete(key)
        steering._maps["in_use"].put(bytes(4), IN_USE.pack(0, 0, 0))
    assert world.kubelet.connect(world.server_pod.address4, 80)["role"] == "app"


def test_only_the_ports_that_the_pod_s_own_probes_name(world: World) -> None:
    """Else whoever may write a probe with another pod's address as its `host` could have the kubelet go there."""
    probes, address = world.node.steering.probes, world.server_pod.address4
    before = world.count("other")
    try:
        probes.allow(world.cookie, [80])
        assert [world.kubelet.connect(address, port)["role"] for port in (80, 81)] == ["app", "PLAINTEXT"]
        assert world.count("other") == before + 1
        probes.allow(world.cookie, [81])
        assert [world.kubelet.connect(address, port)["role"] for port in (80, 81)] == ["PLAINTEXT", "app"]
        probes.allow(world.cookie, [0])
        assert [world.kubelet.connect(address, port)["role"] for port in (80, 81)] == ["PLAINTEXT", "PLAINTEXT"]
        probes.forget(world.cookie)
        assert not list(world.node.steering._maps["probe_ports"].all_keys())
        assert world.kubelet.connect(address, 81)["role"] == "PLAINTEXT"
    finally:
        probes.allow(world.cookie, None)
    assert world.kubelet.connect(address, 81)["role"] == "app"


def test_where_ports_have_no_room_the_pod_is_open_on_fewer_not_on_all(world: World) -> None:
    probes, table = world.node.steering.probes, world.node.steering._maps["probe_ports"]
    keys = [PROBE_PORT.pack(1 << 40, number, 0) for number in range(1, table.max_entries)]
    for key in keys:
        table.put(key, struct.pack("=I", 1))
    try:
        for ports, passed in (([80, 81], []), ([81, 82], [81])):  # what was open to all has left room for one
            with pytest.raises(KernelError, match="is full"):
                probes.allow(world.cookie, ports)
            found = [port for port in (80, 81, 82) if world.kubelet.connect(world.server_pod.address4, port).get("role") == "app"]
            assert found == passed
        other = world.lab.pod(0, "crowded")
        program = Program(other, world.node.group / "pods")
        program.serve("::", 80)
        cookie = world.node.enrol(other)
        with pytest.raises(KernelError, match="is full"):
            probes.allow(cookie, None)
        assert world.kubelet.connect(other.address4, 80)["role"] == "PLAINTEXT"
        world.node.leave(cookie)
    finally:
        for key in table.all_keys():
            table.delete(key)
        probes.hold()
        probes.allow(world.cookie, None)
    assert world.kubelet.connect(world.server_pod.address4, 80)["role"] == "app"


def test_two_sockets_with_the_same_ends_have_one_entry_that_is_the_first_one_s(world: World) -> None:
    """Bound to different devices they may have them: the second one's end is not the first one's."""
    address, before, ends = world.server_pod.address4, world.count("full"), {"source": [world.gateway("."), 34003], "port": 80}
    host = world.host
    host.bridge("aside")  # a device that leads nowhere
    host._route.route("add", dst="10.10.0.0/24", oif=host.index("aside"), priority=4000)
    first, second = world.kubelet, Program(host, world.group)
    with silent(world.server_pod):
        pending = first.start("connect", address=address, device="br0", timeout=10.0, **ends)
        wait_until(lambda: world.live == 1, "the first SYN is on its way")
        assert second.connect(address, device="aside", timeout=0.1, **ends)["error"] == "TimeoutError"
        assert world.live == 1
    assert pending()["role"] == "app"
    assert world.count("full") == before


def test_without_a_kubelet_probes_are_judged_by_policy(world: World) -> None:
    world.node.steering.probes.kubelet = NOBODY
    try:
        assert world.kubelet.connect(world.server_pod.address4, 80)["role"] == "PLAINTEXT"
    finally:
        world.introduce()
    assert world.node.steering.probes.kubelet.cgroup_id == cgroup_id(world.group)


def test_probes_go_on_while_no_worker_is_there(lab: Lab, world: World, program: Callable[[Host], Program], group: Path) -> None:
    """An agent that is away is no reason to kill the pods that live."""
    pod = lab.pod(0, "alone")
    served = program(pod)
    served.serve("::", 80)
    cookie = world.node.enrol(pod)
    world.node.steering.probes.allow(cookie, None)
    world.node.worker.close_listeners()
    try:
        assert world.host_pod.connect(pod.address4, 80, timeout=0.3)["role"] == "error"
        assert world.kubelet.connect(pod.address4, 80)["role"] == "app"
    finally:
        for host in list(world.node._enrolled.values()):
            world.node.set_listeners(host)
        world.node.leave(cookie)
