"""A node that knows only what its pods have asked for, beside one that knows all: unmodified sockets, real traffic."""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from nodeproxy.proto import workload_pb2
from nodeproxy.proxy.waiting import WAIT_S
from nodeproxy.wire.frames import FrameType
from tests.mesh.attempts import Greeter, answer, connected, opened, total
from tests.mesh.cluster import Agent, Cluster, MeshPod, wait_until
from tests.mesh.evidence import Row, refused_total, rows_of
from tests.mesh.hostile import Tunnel, connect_fields, context, raw
from tests.mesh.on_demand import Istiod, enrol, serve, service, workload

PORT = 8080
STRANGERS = 10_000
_vips = itertools.count(1)


class World:
    """Node 0 asks; node 1 has the mesh file."""

    def __init__(self, cluster: Cluster, closing: contextlib.ExitStack) -> None:
        self.cluster = cluster
        self.control = Istiod()
        closing.callback(self.control.stop)
        for node, name in ((0, "client"), (0, "scanner"), (0, "near"), (1, "server"), (1, "waypoint")):
            cluster.pod(node, name)
        # It is on the network and in nobody's state.
        self.outsider = cluster.pod(1, "outsider", protocol="TCP")
        self.greeters = {name: Greeter(pod.host, [PORT]) for name, pod in cluster.pods.items()}
        for greeter in self.greeters.values():
            closing.callback(greeter.close)
        self.agent = cluster.agents[0]
        serve(cluster, self.agent, self.control)
        self.control.put(*(workload(pod) for name, pod in cluster.pods.items() if name != "outsider"), *strangers())
        cluster.write()
        del cluster.pods["outsider"]
        cluster.write()
        for agent in cluster.agents:
            agent.start(wait=False)
        for agent in cluster.agents:
            agent.wait_ready(90)
        for name in ("client", "scanner", "near"):
            enrol(self.agent, cluster.pods[name])

    def pod(self, name: str) -> MeshPod:
        return self.cluster.pods[name]

    def new_service(self, *pods: MeshPod, **more: object) -> tuple[str, str]:
        """A service that nobody has asked for: its virtual address and its key."""
        number = next(_vips)
        hostname, vip = f"svc{number}.shop.svc.cluster.local", f"10.97.{number >> 8}.{number & 255}"
        key = f"shop/{hostname}"
        for pod in pods:
            pod.entry.setdefault("services", {})[key] = {80: PORT}
        self.control.put(service(hostname, vip, {80: PORT}, **more), *(workload(pod) for pod in pods))
        return vip, key

    def state(self) -> dict[str, int]:
        return self.agent.get("/status")["state"]


def strangers() -> Iterator[workload_pb2.Workload]:
    """Pods of other nodes whom nobody calls."""
    for number in range(STRANGERS):
        ip = ipaddress.ip_address("10.200.0.0") + number
        yield workload_pb2.Workload(
            uid=f"Kubernetes//Pod/crowd/p{number}",
            name=f"p{number}",
            namespace="crowd",
            addresses=[ip.packed],
            node=f"elsewhere{number % 100}",
            tunnel_protocol="HBONE",
        )


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    yield made
    made.close()


@pytest.fixture(scope="module")
def world(cluster: Cluster) -> Iterator[World]:
    with contextlib.ExitStack() as closing:
        yield World(cluster, closing)


@pytest.fixture
def silent(world: World) -> Iterator[Istiod]:
    world.control.is_silent = True
    yield world.control
    world.control.is_silent = False


def test_the_first_connection_waits_and_is_tunnelled(world: World, record_property: pytest.RecordProperty) -> None:
    client, server = world.pod("client").host, world.pod("server")
    vip, _ = world.new_service(server)
    times = []
    for _ in range(3):
        began = time.monotonic()
        assert answer(client, vip, 80) == "server"
        times.append((time.monotonic() - began) * 1000)
    assert world.control.asked[f"/{vip}"] == 1
    rows = wait_until(
        lambda: [row for row in rows_of(world.agent, dst_addr=f"{server.ip}:{PORT}") if "error" not in row], "lines"
    )
    assert {row["dst.hbone_addr"] for row in rows} == {f"{server.ip}:15008"}
    assert {row["src.identity"] for row in rows} == {world.pod("client").identity}
    record_property("a connection that waits for an answer, and the two after it", ", ".join(f"{ms:.1f} ms" for ms in times))


def test_the_node_knows_what_was_asked_for_and_nothing_else(world: World, record_property: pytest.RecordProperty) -> None:
    state = world.state()
    assert state["workloads"] < 10, state
    size = sum(file.stat().st_blocks * 512 for file in (world.agent.run_dir / "state").iterdir()) / 1e6
    record_property(f"the store of a node that asks, in a mesh of {STRANGERS:,} workloads", f"{size:.2f} MB")
    assert size < 1.0
    assert total(world.agent, "nodeproxy_on_demand_names", answer="present") < 10


def test_strangers_pass_in_plain_after_the_answer(world: World) -> None:
    client, outsider = world.pod("client").host, world.outsider
    assert answer(client, outsider.ip, PORT) == "outsider"
    assert answer(client, outsider.ip, PORT) == "outsider"
    assert world.control.asked[f"/{outsider.ip}"] == 1
    (first, _) = wait_until(lambda: len(found := rows_of(world.agent, dst_addr=f"{outsider.ip}:{PORT}")) == 2 and found, "lines")
    assert "dst.hbone_addr" not in first
    assert world.greeters["outsider"].peers[-1][0] == world.pod("client").ip


def test_ipv6(world: World) -> None:
    client, server, outsider = world.pod("client").host, world.pod("server"), world.outsider
    assert answer(client, outsider.ip6, PORT) == "outsider"
    assert answer(client, server.ip6, PORT) == "server"
    assert wait_until(lambda: rows_of(world.agent, dst_addr=f"[{server.ip6}]:{PORT}"), "a line")[0]["dst.hbone_addr"]


def test_a_thousand_connections_are_one_question(world: World) -> None:
    client, server = world.pod("client").host, world.pod("server")
    vip, _ = world.new_service(server)
    world.control.is_silent = True
    with contextlib.ExitStack() as closing:
        closing.callback(setattr, world.control, "is_silent", False)
        socks = [closing.enter_context(opened(client, vip)) for _ in range(1000)]
        for sock in socks:
            sock.connect((vip, 80))
        wait_until(lambda: world.control.asked[f"/{vip}"], "it is asked for")
        world.control.is_silent = False
        # What was asked is still to be answered.
        with world.control._lock:
            (stream,) = world.control.streams
            found = world.control.look_up(f"/{vip}")
            stream.names["type.googleapis.com/istio.workload.Address"] |= found
            stream.send("type.googleapis.com/istio.workload.Address", found)
        assert [sock.recv(64) for sock in socks] == [b"server"] * 1000
    assert world.control.asked[f"/{vip}"] == 1


def test_a_source_that_does_not_answer_closes(world: World, silent: Istiod) -> None:
    client, agent = world.pod("client").host, world.agent
    # Neither is known: one is in the mesh, one is not, and until that is said neither is reached in any way.
    vip, _ = world.new_service(world.pod("server"))
    outsider6 = str(ipaddress.ip_address("10.201.0.1"))
    before, reached = refused_total(agent, "state_unavailable"), world.greeters["server"].accepted
    for address in (vip, outsider6):
        began = time.monotonic()
        assert answer(client, address, 80) is None
        assert WAIT_S - 0.1 < time.monotonic() - began < WAIT_S + 2
        row = wait_until(lambda address=address: rows_of(agent, dst_addr=f"{address}:80"), "a line")[0]
        assert "state_unavailable" in row["error"]
        assert f"has not said within {WAIT_S:g} s who has /{address}" in row["error"]
    wait_until(lambda: refused_total(agent, "state_unavailable") == before + 2, "both are counted")
    assert world.greeters["server"].accepted == reached
    why = agent.get("/why", source=world.pod("client").uid, destination=f"{vip}:80")
    assert why["refusal"]["reason"] == "state_unavailable"
    assert "the source was asked: the source of state did not answer within" in why["steps"][0]["outcome"]


def test_a_pod_that_scans_harms_no_other(world: World, record_property: pytest.RecordProperty) -> None:
    scanner, client = world.pod("scanner").host, world.pod("client").host
    stopping = threading.Event()
    scanned = 0

    def scan() -> None:
        nonlocal scanned
        socks: list[socket.socket] = []
        for number in itertools.count():
            if stopping.wait(0.0005):
                break
            address = str(ipaddress.ip_address("10.128.0.0") + number)
            sock = opened(scanner, address)
            sock.setblocking(False)
            with contextlib.suppress(OSError):
                sock.connect((address, 80))
            socks.append(sock)
            scanned += 1
            if len(socks) > 500:
                socks.pop(0).close()
        for sock in socks:
            sock.close()

    before = sum(count for name, count in world.control.asked.items() if name.startswith("/10.1"))
    thread = threading.Thread(target=scan, daemon=True)
    began = time.monotonic()
    thread.start()
    times = []
    try:
        wait_until(lambda: total(world.agent, "nodeproxy_on_demand_refused_total", reason="pace") > 0, "it is refused")
        for _ in range(20):
            vip, _ = world.new_service(world.pod("server"))
            at = time.monotonic()
            assert answer(client, vip, 80) == "server"
            times.append((time.monotonic() - at) * 1000)
    finally:
        stopping.set()
        thread.join()
    took = time.monotonic() - began
    asked = sum(count for name, count in world.control.asked.items() if name.startswith("/10.1")) - before
    times.sort()
    record_property(
        "a pod that scans, and another's first connections to services",
        f"{scanned / took:.0f} connects/s, of which {asked / took:.0f} addresses/s are asked for; the other waits "
        f"{times[10]:.1f} ms, at most {times[-1]:.1f} ms",
    )
    assert asked < 200 + 100 * took + 50


def test_a_waypoint_is_asked_for(world: World) -> None:
    """The destination's service is known, its waypoint is not: it is asked for, and never gone around."""
    _, key = world.new_service(world.pod("waypoint"))
    namespace, _, hostname = key.partition("/")
    gateway = workload_pb2.GatewayAddress(hbone_mtls_port=15008)
    gateway.hostname.namespace, gateway.hostname.hostname = namespace, hostname
    vip, _ = world.new_service(world.pod("server"), waypoint=gateway)
    answer(world.pod("client").host, vip, 80)
    assert world.control.asked[key] == 1
    row = wait_until(lambda: rows_of(world.agent, dst_addr=f"{vip}:80"), "a line")[0]
    assert row["dst.hbone_addr"] == f"{world.pod('waypoint').ip}:15008"


def test_a_hostname_that_an_inbound_request_names_is_asked_for(world: World) -> None:
    near = world.pod("near")
    _, key = world.new_service(near)
    hostname = key.partition("/")[2]
    with Tunnel(raw(world.outsider.host, near.ip), context(world.cluster)) as tunnel:
        tunnel.send(tunnel.request(1, connect_fields(f"{hostname}:80")))
        assert tunnel.status(1) == 200
        assert tunnel.until(FrameType.DATA)[3] == b"near"
        tunnel.send(tunnel.request(3, connect_fields("nobody.shop.svc.cluster.local:80")))
        assert tunnel.status(3) == 503
        world.control.is_silent = True
        tunnel.send(tunnel.request(5, connect_fields("silent.shop.svc.cluster.local:80")))
        assert tunnel.status(5) == 503
        world.control.is_silent = False
    assert world.control.asked[key] == 1
    errors = wait_until(lambda: len(found := [row["error"] for row in _inbound(world) if "error" in row]) >= 2 and found, "lines")
    assert [error.partition(":")[0] for error in errors[:2]] == ["unknown_service", "state_unavailable"]


def _inbound(world: World) -> list[Row]:
    return [row for row in rows_of(world.agent, direction="inbound") if row["src.addr"].startswith(world.outsider.ip)]


def test_pods_of_the_node_talk_directly(world: World) -> None:
    """Both are known, for they are the node's own."""
    near = world.pod("near")
    wait_until(
        lambda: world.agent.get("/why", source=world.pod("client").uid, destination=f"{near.ip}:{PORT}")["direct"], "direct"
    )
    before = len(rows_of(world.agent, dst_addr=f"{near.ip}:{PORT}"))
    assert answer(world.pod("client").host, near.ip, PORT) == "near"
    rows = wait_until(lambda: rows_of(world.agent, dst_addr=f"{near.ip}:{PORT}")[before:], "a line")
    assert rows[0]["src.identity"] == world.pod("client").identity


def test_why_asks_and_says_so(world: World) -> None:
    vip, key = world.new_service(world.pod("server"))
    found = world.agent.get("/why", source=world.pod("client").uid, destination=f"{vip}:80")
    assert found.get("refusal") is None
    assert found["steps"][0]["what"] == f"who has /{vip}?"
    assert "the source was asked: it said so within" in found["steps"][0]["outcome"]
    assert world.control.asked[f"/{vip}"] == 1
    _, key = world.new_service(world.pod("server"))
    hostname = key.partition("/")[2]
    found = world.agent.get("/why", source=world.pod("client").uid, destination=f"{hostname}:80")
    assert found["outcome"].startswith("tunnelled to server")
    found = world.agent.get("/why", source=world.pod("client").uid, destination="192.0.2.77:80")
    assert "the source was asked: nobody, it said" in found["steps"][0]["outcome"]
    assert found["outcome"].startswith("passed through")


def test_what_was_known_stays_known_when_the_source_is_away(world: World) -> None:
    """Over a restart of the agent, too.  Last: the source does not come back."""
    client, outsider, agent = world.pod("client").host, world.outsider, world.agent
    vip, _ = world.new_service(world.pod("server"))
    unknown, _ = world.new_service(world.pod("server"))
    assert answer(client, vip, 80) == "server"
    assert answer(client, outsider.ip, PORT) == "outsider"
    world.control.stop()
    assert answer(client, vip, 80) == "server"
    agent.kill()
    agent.start(wait=False)
    wait_until(lambda: _serves(agent, world), "the next agent serves its pods", 30)
    assert answer(client, vip, 80) == "server"
    assert answer(client, outsider.ip, PORT) == "outsider"
    assert answer(client, unknown, 80) is None

    def at_once() -> bool:
        began = time.monotonic()
        assert answer(client, unknown, 80) is None
        return time.monotonic() - began < WAIT_S / 2

    wait_until(at_once, "who asks a source that has been away for long does not wait", 10)

    def told() -> bool:
        errors = [row["error"] for row in rows_of(agent, dst_addr=f"{unknown}:80")]
        return any("state_unavailable: the source of state has been away for" in error for error in errors)

    wait_until(told, "the access log says why")


def _serves(agent: Agent, world: World) -> bool:
    try:
        pods = agent.get("/status")["pods"]
    except OSError:
        return False
    if not any(pod["uid"] == world.pod("client").uid and pod["certificate_until"] for pod in pods):
        return False
    sock, _ = connected(world.pod("client").host, world.outsider.ip, PORT)
    sock.close()
    return True
