"""What the mesh leaves alone, and what reaches a pod in plain: byte for byte, with its own addresses, and by policy."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from nodeproxy.lab.topology import Host
from nodeproxy.linux.netns import inside
from tests.mesh.cluster import TIMEOUT_S, Cluster, exactly, wait_until
from tests.mesh.evidence import Row, refused_total, rows_of
from tests.mesh.programs import MIB, noise

# What peer authentication STRICT becomes on its way to a node (protocols.md of Istio ambient): whoever proved nothing is denied.
STRICT = {
    "name": "strict",
    "namespace": "shop",
    "scope": "Namespace",
    "action": "Deny",
    "rules": [[[{"notPrincipals": [{"presence": {}}]}]]],
}
FAMILIES = ["address4", "address6"]


@pytest.fixture(scope="module")
def mesh(run_cluster: Callable[..., Cluster]) -> Cluster:
    def populate(cluster: Cluster) -> None:
        cluster.pod(0, "client")
        cluster.pod(1, "server")
        cluster.pod(1, "legacy", protocol="TCP")
        for node, name in enumerate(("stranger", "outsider")):
            cluster.lab.pod(node, name)
        cluster.lab.external()

    return run_cluster(populate)


def opened(host: Host, address: str, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A socket of `host`'s namespace, of the family of `address`."""
    with inside(host.netns_fd):
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    sock.settimeout(TIMEOUT_S)
    return sock


def joined(client: Host, server: Host, address: str, port: int) -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection to `address`:`port`, where `server` listens."""
    ours = opened(client, address)
    try:
        with opened(server, address) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address, port))
            listener.listen()
            ours.connect((address, port))
            theirs, _ = listener.accept()
    except BaseException:
        ours.close()
        raise
    theirs.settimeout(TIMEOUT_S)
    return ours, theirs


def exchange(ours: socket.socket, theirs: socket.socket) -> None:
    """Bytes each way at once, the ends of the streams too."""
    there, back = noise(1, 2 * MIB), noise(2, 3 * MIB)
    writers = [threading.Thread(target=_say, args=each, daemon=True) for each in ((ours, there), (theirs, back))]
    for writer in writers:
        writer.start()
    received: dict[str, bytes] = {}
    reader = threading.Thread(target=lambda: received.update(back=exactly(ours, len(back) + 1)), daemon=True)
    reader.start()
    assert exactly(theirs, len(there) + 1) == there
    for thread in (reader, *writers):
        thread.join(TIMEOUT_S)
    assert received["back"] == back


def _say(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def carries(mesh: Cluster, ours: socket.socket, theirs: socket.socket) -> None:
    """What goes in plain between the nodes is seen there as it is: so a capture that does not see it means something."""
    with mesh.lab.capture() as capture:
        ours.sendall(b"readable on the wire")
        assert exactly(theirs, 20) == b"readable on the wire"
        wait_until(lambda: capture.contains(b"readable on the wire"), "the capture sees what is plain")


def all_rows(mesh: Cluster) -> int:
    return sum(len(agent.access_log()) for agent in mesh.agents)


def the_row(mesh: Cluster, node: int, target: str) -> Row:
    (row,) = wait_until(lambda: rows_of(mesh.agents[node], dst_addr=target), f"the line of the connection to {target}")
    return dict(row)


def is_direct(ours: socket.socket, theirs: socket.socket) -> bool:
    """One TCP connection, with nobody in between."""
    return bool(ours.getsockname() == theirs.getpeername() and ours.getpeername() == theirs.getsockname())


@pytest.mark.parametrize("family", FAMILIES)
def test_udp_is_untouched(mesh: Cluster, family: str) -> None:
    client, server = mesh.pods["client"].host, mesh.pods["server"].host
    target = (getattr(server, family), 5300)
    before = all_rows(mesh)
    with opened(server, target[0], socket.SOCK_DGRAM) as theirs, opened(client, target[0], socket.SOCK_DGRAM) as ours:
        theirs.bind(target)
        ours.connect(target)
        for size in (0, 1, 1400, 20_000):
            ours.send(noise(size, size))
            data, source = theirs.recvfrom(65_536)
            assert data == noise(size, size)
            assert source[:2] == ours.getsockname()[:2]
            theirs.sendto(data[::-1], source)
            assert ours.recv(65_536) == data[::-1]
        assert ours.getpeername()[:2] == target
    assert all_rows(mesh) == before


@pytest.mark.parametrize("address", ["127.0.0.1", "127.1.2.3", "::1"])
def test_loopback_within_a_pod_is_untouched(mesh: Cluster, address: str) -> None:
    pod = mesh.pods["client"].host
    before = all_rows(mesh)
    ours, theirs = joined(pod, pod, address, 7000)
    with ours, theirs:
        assert is_direct(ours, theirs)
        exchange(ours, theirs)
    assert all_rows(mesh) == before


@pytest.mark.parametrize("family", FAMILIES)
def test_pods_that_are_not_enrolled_are_untouched(mesh: Cluster, family: str) -> None:
    stranger, outsider = mesh.lab.pods["stranger"], mesh.lab.pods["outsider"]
    before = all_rows(mesh)
    ours, theirs = joined(stranger, outsider, getattr(outsider, family), 7001)
    with ours, theirs:
        assert is_direct(ours, theirs)
        carries(mesh, ours, theirs)
        exchange(ours, theirs)
    assert all_rows(mesh) == before


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("where", ["outside", "in a pod that nobody told of"])
def test_an_unknown_destination_is_passed_through(mesh: Cluster, family: str, where: str) -> None:
    client = mesh.pods["client"].host
    server = mesh.lab.external() if where == "outside" else mesh.lab.pods["outsider"]
    target = getattr(server, family)
    ours, theirs = joined(client, server, target, 7002)
    with ours, theirs:
        assert theirs.getpeername()[0] == getattr(client, family)
        assert ours.getpeername()[:2] == (target, 7002)
        carries(mesh, ours, theirs)
        exchange(ours, theirs)
    row = the_row(mesh, 0, f"[{target}]:7002" if ":" in target else f"{target}:7002")
    assert row["direction"] == "outbound"
    assert row["src.identity"] == mesh.pods["client"].identity
    assert not {"dst.hbone_addr", "dst.identity", "dst.workload", "error"} & row.keys()
    assert (row["bytes_sent"], row["bytes_recv"]) == (2 * MIB + 20, 3 * MIB)


def test_nobody_listens_outside(mesh: Cluster) -> None:
    """A refusal is passed on as a reset, within the connect or after it: the pod is connected to the proxy by then."""
    external = mesh.lab.external()
    with opened(mesh.pods["client"].host, external.address4) as ours:
        with pytest.raises(ConnectionResetError):  # noqa: PT012 - whichever of the two comes to see it
            ours.connect((external.address4, 7003))
            ours.recv(1)
    assert the_row(mesh, 0, f"{external.address4}:7003")["error"].startswith("connect_refused: ")


def test_a_workload_that_is_not_in_the_mesh_is_reached_in_plain(mesh: Cluster) -> None:
    client, legacy = mesh.pods["client"], mesh.pods["legacy"]
    ours, theirs = joined(client.host, legacy.host, legacy.ip, 7004)
    with ours, theirs:
        assert theirs.getpeername()[0] == client.ip
        carries(mesh, ours, theirs)
        exchange(ours, theirs)
    row = the_row(mesh, 0, f"{legacy.ip}:7004")
    assert row["dst.workload"] == "legacy"
    assert not {"dst.hbone_addr", "dst.identity", "error"} & row.keys()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("who", ["external", "legacy", "stranger"])
def test_plaintext_reaches_an_enrolled_pod(mesh: Cluster, family: str, who: str) -> None:
    server, port = mesh.pods["server"], 7010 + ["external", "legacy", "stranger"].index(who)
    client = plain_client(mesh, who)
    target = getattr(server.host, family)
    ours, theirs = joined(client, server.host, target, port)
    with ours, theirs:
        assert theirs.getpeername()[0] == getattr(client, family)
        assert ours.getpeername()[:2] == theirs.getsockname()[:2] == (target, port)
        exchange(ours, theirs)
    row = the_row(mesh, 1, f"[{target}]:{port}" if ":" in target else f"{target}:{port}")
    assert row["direction"] == "inbound"
    assert row.get("src.workload") == ("legacy" if who == "legacy" else None)
    assert row["dst.workload"] == "server"
    assert not {"dst.hbone_addr", "src.identity", "error"} & row.keys()


def plain_client(mesh: Cluster, who: str) -> Host:
    return mesh.lab.external() if who == "external" else mesh.lab.pods[who]


@pytest.fixture
def strict(mesh: Cluster) -> Iterator[None]:
    mesh.policies.append(STRICT)
    mesh.apply()
    yield
    mesh.policies.remove(STRICT)
    mesh.apply()


@pytest.mark.parametrize("who", ["external", "legacy", "stranger"])
def test_strict_denies_plaintext(mesh: Cluster, strict: None, who: str) -> None:
    server, agent = mesh.pods["server"], mesh.agents[1]
    port = 7020 + ["external", "legacy", "stranger"].index(who)
    before = refused_total(agent, "policy_deny")
    with server.listen(port) as listener, opened(plain_client(mesh, who), server.ip) as ours:
        with pytest.raises(ConnectionResetError):  # noqa: PT012 - at once, or with the first bytes
            ours.connect((server.ip, port))
            ours.sendall(b"let me in")
            ours.recv(1)
            ours.recv(1)
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            listener.accept()
    error = the_row(mesh, 1, f"{server.ip}:{port}")["error"]
    assert error.startswith("policy_deny: ")
    assert "shop/strict" in error
    wait_until(lambda: refused_total(agent, "policy_deny") == before + 1, "the metric counts it")


def test_strict_lets_the_mesh_pass(mesh: Cluster, strict: None) -> None:
    client, server = mesh.pods["client"], mesh.pods["server"]
    ours, theirs = joined(client.host, server.host, server.ip, 7030)
    with ours, theirs:
        exchange(ours, theirs)
    for node in (0, 1):
        row = the_row(mesh, node, f"{server.ip}:7030")
        assert row["dst.hbone_addr"] == f"{server.ip}:15008"
        assert "error" not in row


def test_strict_ends_plaintext_that_stands(mesh: Cluster) -> None:
    server = mesh.pods["server"]
    ours, theirs = joined(mesh.lab.external(), server.host, server.ip, 7031)
    with ours, theirs:
        ours.sendall(b"x")
        assert theirs.recv(1) == b"x"
        mesh.policies.append(STRICT)
        mesh.apply()
        try:
            for end in (ours, theirs):
                with pytest.raises(ConnectionResetError):
                    end.recv(1)
        finally:
            mesh.policies.remove(STRICT)
            mesh.apply()
    assert the_row(mesh, 1, f"{server.ip}:7031")["error"].startswith("policy_deny: ")
