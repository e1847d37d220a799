"""A pod whose programs are root in their own network namespace: what it can do it does to itself alone."""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import selectors
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from nodeproxy.linux.netns import inside
from nodeproxy.linux.pod_socket import MARK_LAST_LEG, MARK_OUTBOUND
from nodeproxy.linux.routes import TABLE
from nodeproxy.model.workload import HBONE_PORT, OUTBOUND_PORT, OWN_PORTS, PLAINTEXT_PORT
from tests.mesh.cluster import Cluster, MeshPod, exactly, wait_until
from tests.mesh.evidence import refused_total, rows_of

PORT, DENIED_PORT, NOWHERE_PORT = 9400, 9401, 9402
CONNECTIONS = 5000
MARKS = [MARK_OUTBOUND, MARK_LAST_LEG]
# Nobody may reach this port, by policy: whoever does has gone past the proxy.
DENY = {
    "name": "closed",
    "namespace": "shop",
    "scope": "Namespace",
    "action": "Deny",
    "rules": [[[{"destinationPorts": [DENIED_PORT]}]]],
}


@pytest.fixture(scope="module")
def mesh(run_cluster: Callable[..., Cluster]) -> Cluster:
    def populate(cluster: Cluster) -> None:
        cluster.pod(0, "mallory")
        cluster.pod(0, "good")
        cluster.pod(0, "near")
        cluster.pod(1, "far")
        cluster.pod(0, "late")
        cluster.policies.append(DENY)

    return run_cluster(populate)


@pytest.fixture(autouse=True)
def _others_are_served(mesh: Cluster) -> Iterator[None]:
    yield
    serves(mesh)
    for agent in mesh.agents:
        assert all(worker["restarts"] == 0 for worker in agent.get("/status")["workers"])


def serves(mesh: Cluster, client: str = "good") -> None:
    for name in ("near", "far"):
        server = mesh.pods[name]
        with server.listen(PORT) as listener, mesh.pods[client].connect(server.ip, PORT) as ours:
            theirs, seen = listener.accept()
            with theirs:
                assert seen[0] == mesh.pods[client].ip
                ours.sendall(b"good")
                assert exactly(theirs, 4) == b"good"


def outcome(pod: MeshPod, address: str, port: int, mark: int = 0, *, bind: str = "") -> str:
    """What a connection that says something hears: "refused", "reset", "end", "silence" or the bytes."""
    with pod.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as sock:
        sock.settimeout(1)
        try:
            if mark:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            if bind:
                sock.setsockopt(socket.IPPROTO_IP, 19, 1)  # IP_TRANSPARENT
                sock.bind((bind, 0))
            sock.connect((address, port))
            sock.sendall(b"let me in")
            return sock.recv(64).decode() or "end"
        except TimeoutError:
            return "silence"
        except ConnectionResetError:
            return "reset"
        except OSError as error:
            return errno.errorcode[error.errno or 0]


def enrol(mesh: Cluster, pod: MeshPod) -> None:
    """By command; until its certificate is there too."""
    agent = mesh.agents[0]
    status, answer = agent.request("POST", "/pods", {"uid": pod.uid, "netns": pod.host.netns_path})
    assert status == 200, answer
    wait_until(lambda: agent.get("/status")["ready"], "its certificate is there")


class Banner:
    """Says "in" to whoever reaches it."""

    def __init__(self, pod: MeshPod, port: int) -> None:
        self.reached = 0
        self._listener = pod.listen(port)
        self._listener.setblocking(False)

    def __enter__(self) -> Banner:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def count(self) -> int:
        """How many have reached it until now."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self._listener.accept()[0].close()
                self.reached += 1
        return self.reached


# ── past the proxy ──


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("name", ["near", "far"])
def test_the_proxys_marks_exempt_nobody(mesh: Cluster, mark: int, name: str) -> None:
    server = mesh.pods[name]
    with Banner(server, DENIED_PORT) as banner:
        for address in (server.ip, server.ip6):
            assert outcome(mesh.pods["mallory"], address, DENIED_PORT, mark) not in ("in", "end")
        assert banner.count() == 0


@pytest.mark.parametrize("name", ["near", "far"])
def test_a_last_leg_cannot_be_forged(mesh: Cluster, name: str) -> None:
    """The last leg's mark, and another pod's address as source, as the proxy itself would have it."""
    server = mesh.pods[name]
    with Banner(server, DENIED_PORT) as banner:
        assert outcome(mesh.pods["mallory"], server.ip, DENIED_PORT, MARK_LAST_LEG, bind=mesh.pods["good"].ip) != "in"
        assert banner.count() == 0


@pytest.mark.parametrize("name", ["near", "far"])
@pytest.mark.parametrize("port", OWN_PORTS)
def test_another_pods_proxy_ports_are_no_way_in(mesh: Cluster, name: str, port: int) -> None:
    """Straight to a pod's 15008 without a certificate; its other ports lead nowhere."""
    server, agent = mesh.pods[name], mesh.agents[0]
    before = refused_total(agent, "illegal_port")
    for mark in (0, *MARKS):
        assert outcome(mesh.pods["mallory"], server.ip, port, mark) in ("reset", "ECONNREFUSED", "ENETUNREACH", "silence")
    assert refused_total(agent, "illegal_port") > before


@pytest.mark.parametrize("port", OWN_PORTS)
def test_its_own_proxy_ports_lead_nowhere(mesh: Cluster, port: int) -> None:
    """By its own address, its sockets are not steered; what it reaches there refuses it, by name."""
    mallory, agent = mesh.pods["mallory"], mesh.agents[0]
    reason = {OUTBOUND_PORT: "no_original_destination", PLAINTEXT_PORT: "illegal_port", HBONE_PORT: "tls_failure"}[port]
    before = refused_total(agent, reason)
    for mark in (0, MARK_OUTBOUND):
        assert outcome(mallory, mallory.ip, port, mark) in ("reset", "end")
    wait_until(lambda: refused_total(agent, reason) >= before + 2, f"both are counted as {reason}")


def test_loopback_does_not_reach_the_workers_listeners(mesh: Cluster) -> None:
    """They are bound to an address that no packet has, whatever their ports."""
    mallory = mesh.pods["mallory"]
    ports = {*OWN_PORTS}
    with inside(mallory.host.netns_fd):
        for table in ("/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"):
            for line in Path(table).read_text().splitlines()[1:]:
                local, _, state = line.split()[1:4]
                if state == "0A":
                    ports.add(int(local.rpartition(":")[2], 16))
    assert len(ports) >= 3
    for address in ("127.0.0.1", "::1", "192.0.0.8"):
        for port in ports:
            assert outcome(mallory, address, port) in ("ECONNREFUSED", "reset", "silence", "EHOSTUNREACH", "ENETUNREACH")


# ── in the proxy's place ──


@pytest.mark.parametrize("port", OWN_PORTS)
def test_binding_the_proxys_ports_takes_nothing(mesh: Cluster, port: int) -> None:
    """Whoever listens there in an enrolled pod is never connected to; traffic goes on through the proxy."""
    mallory = mesh.pods["mallory"]
    with mallory.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        thief.bind(("0.0.0.0", port))
        thief.listen()
        thief.setblocking(False)
        serves(mesh, "mallory")
        with mallory.listen(PORT) as listener, mesh.pods["good"].connect(mallory.ip, PORT):
            listener.accept()[0].close()
        with pytest.raises(BlockingIOError):
            thief.accept()


def bound(sock: socket.socket, address: tuple[str, int]) -> bool:
    try:
        sock.bind(address)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    return True


def test_binding_them_before_enrolment_does_not_keep_it_out(mesh: Cluster) -> None:
    """The pod leaves, takes the ports for all addresses, and is enrolled again: it is in, and is served."""
    late, agent = mesh.pods["late"], mesh.agents[0]
    assert agent.request("DELETE", f"/pods/{late.uid}")[0] == 200
    with contextlib.ExitStack() as thieves:
        for port in OWN_PORTS:
            for address in ("0.0.0.0", "::"):
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                thief = thieves.enter_context(late.socket(family))
                if family == socket.AF_INET6:
                    thief.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                # The workers close their listeners after the agent has said that the pod left.
                wait_until(lambda thief=thief, to=(address, port): bound(thief, to), f"port {port} is free")
                thief.listen()
        enrol(mesh, late)
        serves(mesh, "late")
        rows = wait_until(
            lambda: [row for row in rows_of(agent, src_identity=late.identity) if "error" not in row], "through the mesh"
        )
        assert rows[-1]["direction"] == "outbound"


def test_it_cannot_take_anothers_address(mesh: Cluster) -> None:
    """A pod that gives itself another's address and is then enrolled gets neither the address nor the other's connections."""
    late, agent, near = mesh.pods["late"], mesh.agents[0], mesh.pods["near"]
    assert agent.request("DELETE", f"/pods/{late.uid}")[0] == 200
    with inside(late.host.netns_fd), IPRoute() as route:
        route.addr("add", index=1, address=near.ip, prefixlen=32)
    try:
        enrol(mesh, late)
        (row,) = (row for row in agent.get("/status")["pods"] if row["uid"] == late.uid)
        assert sorted(row["addresses"]) == sorted(late.host.addresses)
        serves(mesh)
        # Its own kernel leads what it sends there back to it: it can't reach the other one, and fools nobody but itself.
        why = {"source": late.uid, "destination": f"{near.ip}:{PORT}"}
        wait_until(lambda: agent.get("/why", **why)["direct"], "verdicts for it are published")
        with near.listen(PORT), pytest.raises(ConnectionRefusedError):
            late.connect(near.ip, PORT)
    finally:
        with inside(late.host.netns_fd), IPRoute() as route:
            route.addr("del", index=1, address=near.ip, prefixlen=32)
    serves(mesh, "late")


def test_it_cannot_keep_another_out_nor_itself_by_anothers_address(mesh: Cluster) -> None:
    """With nothing but an address that the state gives to another workload it is in the mesh all the same, and can't connect."""
    late, agent, far = mesh.pods["late"], mesh.agents[0], mesh.pods["far"]
    assert agent.request("DELETE", f"/pods/{late.uid}")[0] == 200
    with inside(late.host.netns_fd), IPRoute() as route:
        (link,) = route.link_lookup(ifname="eth0")
        route.flush_addr(index=link)
        route.addr("add", index=link, address=far.ip, prefixlen=24)
    try:
        status, answer = agent.request("POST", "/pods", {"uid": late.uid, "netns": late.host.netns_path})
        assert status == 200, answer
        (row,) = (row for row in agent.get("/status")["pods"] if row["uid"] == late.uid)
        assert row["addresses"] == []
        with pytest.raises(OSError, match="unreachable|not permitted"):
            late.connect(mesh.pods["near"].ip, PORT).close()
        serves(mesh)
    finally:
        with inside(late.host.netns_fd), IPRoute() as route:
            (link,) = route.link_lookup(ifname="eth0")
            route.flush_addr(index=link)
            for address, length in ((late.ip, 24), (late.ip6, 64)):
                route.addr("add", index=link, address=address, prefixlen=length)
            route.route("replace", dst="0.0.0.0/0", gateway="10.10.0.1")
            route.route("replace", dst="::/0", gateway="fd00:10::1")
        assert agent.request("DELETE", f"/pods/{late.uid}")[0] == 200
    enrol(mesh, late)
    serves(mesh, "late")


def test_breaking_its_own_routes_hurts_itself_only(mesh: Cluster) -> None:
    """Without the rules and routes of the last leg its own answers go astray; and it can be released all the same."""
    late, agent = mesh.pods["late"], mesh.agents[0]
    with inside(late.host.netns_fd), IPRoute() as route:
        for family in (socket.AF_INET, socket.AF_INET6):
            route.flush_rules(family=family, table=TABLE)
            route.flush_routes(family=family, table=TABLE)
    serves(mesh)
    with late.listen(PORT), mesh.pods["good"].socket() as ours:
        ours.settimeout(0.5)
        with contextlib.suppress(OSError):
            ours.connect((late.ip, PORT))
            ours.sendall(b"lost")
            ours.recv(1)
    assert agent.request("DELETE", f"/pods/{late.uid}")[0] == 200
    enrol(mesh, late)
    serves(mesh, "late")


# ── by sheer number ──


def test_thousands_of_connections_to_nowhere_leave_others_served(mesh: Cluster) -> None:
    """5,000 connects at once to an address that does not answer."""
    mallory, agent = mesh.pods["mallory"], mesh.agents[0]
    with contextlib.ExitStack() as closing, selectors.DefaultSelector() as selector:
        socks = []
        for number in range(CONNECTIONS):
            sock = closing.enter_context(mallory.socket())
            sock.setblocking(False)
            sock.connect_ex((f"10.10.255.{50 + number % 50}", NOWHERE_PORT))
            selector.register(sock, selectors.EVENT_READ)
            socks.append(sock)
            if number % 1000 == 999:
                serves(mesh)
        wait_until(lambda: len(agent.get("/connections")["connections"]) > CONNECTIONS // 4, "they are there")
        serves(mesh)
    wait_until(lambda: not agent.get("/connections")["connections"], "all have ended", 15)
    assert refused_total(agent, "connect_timeout") + refused_total(agent, "connect_unreachable") > 0


# ── by the admin API ──


def admin(mesh: Cluster, pod: MeshPod | None, method: str, path: str, body: object = None, token: str = "") -> int:
    """The status of a request to the admin's TCP address, from a pod or (None) from the node; OSError if there is no way."""
    node = mesh.lab.nodes[0]
    host = node if pod is None else pod.host
    address = "127.0.0.1" if pod is None else "10.10.0.1"
    with inside(host.netns_fd):
        sock = socket.socket()
    with sock:
        sock.settimeout(2)
        sock.connect((address, 15000))
        connection = http.client.HTTPConnection("admin")
        connection.sock = sock
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        response = connection.getresponse()
        response.read()
        return response.status


@pytest.mark.parametrize("token", ["", "guessed", "x" * 60_000])
def test_the_admin_api_needs_the_token(mesh: Cluster, token: str) -> None:
    late = mesh.pods["late"]
    assert admin(mesh, None, "GET", "/version") == 200
    spec = {"uid": "mine", "netns": late.host.netns_path}
    for method, path, body in (("POST", "/pods", spec), ("DELETE", f"/pods/{late.uid}", None), ("POST", "/quitquitquit", None)):
        assert admin(mesh, None, method, path, body, token) in (400, 403)
    assert late.uid in {pod["uid"] for pod in mesh.agents[0].get("/status")["pods"] if not pod["error"]}
    assert "mine" not in {pod["uid"] for pod in mesh.agents[0].get("/status")["pods"]}


def test_the_admin_api_is_not_to_be_had_from_a_pod(mesh: Cluster) -> None:
    for name in ("mallory", "late"):
        with pytest.raises((ConnectionError, TimeoutError)):
            admin(mesh, mesh.pods[name], "GET", "/version")


def test_the_token_is_roots(mesh: Cluster) -> None:
    agent = mesh.agents[0]
    path = agent.run_dir / "admin.token"
    assert path.stat().st_mode & 0o077 == 0
    assert (agent.run_dir / "admin.sock").stat().st_mode & 0o077 == 0
    assert admin(mesh, None, "DELETE", "/pods/nobody", None, path.read_text()) == 404
