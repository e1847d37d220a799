"""Certificates are renewed and roots replaced while programs talk: no connection fails, and what lost its trust is refused.

Three generations of roots: the first is the cluster's, the second lives for seconds, so that certificates under it are renewed at
their half-life again and again, and the third is made before the second ends.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509

from nodeproxy.identity import pki
from nodeproxy.identity.local_ca import LocalCA
from nodeproxy.identity.rotation import retire, rotate
from nodeproxy.linux.netns import inside
from tests.mesh.cluster import TIMEOUT_S, Agent, Cluster, MeshPod, exactly, wait_until
from tests.mesh.evidence import HBONE_PORT, Row, refused_total
from tests.mesh.forged import Shown, Signer, context, forge

PORT = 9500
SECOND_ROOT_S = 12.0
# More than the streams of a tunnel in each of two workers: held open, they fill a tunnel, so that another must be made.
HELD = 220
PROBE = "spiffe://cluster.local/ns/shop/sa/probe"


class Echo(threading.Thread):
    """Sends back what comes, on any number of connections."""

    def __init__(self, listener: socket.socket) -> None:
        super().__init__(daemon=True)
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._listener = listener
        self._stopped = False
        self.start()

    def run(self) -> None:
        while not self._stopped:
            for key, _ in self._selector.select(0.1):
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if sock is self._listener:
                    self._selector.register(sock.accept()[0], selectors.EVENT_READ)
                    continue
                data = b""
                with contextlib.suppress(ConnectionResetError):  # connections that stand when a pod leaves are reset
                    data = sock.recv(65_536)
                if data:
                    sock.sendall(data)
                else:
                    self._selector.unregister(sock)
                    sock.close()

    def close(self) -> None:
        self._stopped = True
        self.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()


class Load(threading.Thread):
    """Connects, says something, hears it back, ends; over and over.  `count`: how often; `failure`: the first that went wrong."""

    def __init__(self, client: MeshPod, server: MeshPod) -> None:
        super().__init__(daemon=True)
        self._client, self._server = client, server
        self._stopped = False
        self.count = 0
        self.failure: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            while not self._stopped:
                with self._client.connect(self._server.ip, PORT) as sock:
                    for _ in range(3):
                        sock.sendall(b"still there?")
                        assert exactly(sock, 12) == b"still there?"
                    self.count += 1
                time.sleep(0.005)
        except (OSError, AssertionError) as error:
            self.failure = error

    def stop(self) -> int:
        """No connection has failed; how many there were."""
        self._stopped = True
        self.join()
        assert self.failure is None, self.failure
        return self.count


@pytest.fixture
def mesh(run_cluster: Callable[..., Cluster]) -> Cluster:
    def populate(cluster: Cluster) -> None:
        cluster.pod(0, "client1")
        cluster.pod(1, "server1")
        cluster.lab.external()

    return run_cluster(populate)


@pytest.fixture
def closing() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def tunnels(client: MeshPod, server: MeshPod) -> set[str]:
    """The client's ends of connections to the server's port 15008; a set, as a list from /proc may say one twice."""
    remote = f"{socket.inet_aton(server.ip)[::-1].hex().upper()}:{HBONE_PORT:04X}"
    with inside(client.host.netns_fd):
        lines = Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]
    return {line.split()[1] for line in lines if line.split()[2:4] == [remote, "01"]}


def hold(closing: contextlib.ExitStack, client: MeshPod, server: MeshPod) -> None:
    """Connections that stay open and carry bytes; tunnels had to be made for them."""
    before = tunnels(client, server)
    for number in range(HELD):
        sock = closing.enter_context(client.connect(server.ip, PORT))
        sock.sendall(b"%4d" % number)
        assert exactly(sock, 4) == b"%4d" % number
    assert tunnels(client, server) - before


def generation(ca: Path) -> Signer:
    opened = LocalCA.open(ca)
    return Signer(opened.signing_root, opened.key)


def shown_by(mesh: Cluster, pod: MeshPod, client: Shown) -> x509.Certificate | None:
    """The certificate that a pod shows to this client, None if it does not let it in."""
    with inside(mesh.lab.external().netns_fd):
        sock = socket.socket()
    sock.settimeout(TIMEOUT_S)
    with sock:
        sock.connect((pod.ip, HBONE_PORT))
        try:
            with context(client).wrap_socket(sock) as tls:
                tls.recv(1)  # its SETTINGS: it has accepted our certificate
                der = tls.getpeercert(binary_form=True)
        except (ssl.SSLError, ConnectionResetError):
            return None
    assert der is not None
    return x509.load_der_x509_certificate(der)


def enrol(mesh: Cluster, closing: contextlib.ExitStack, number: int) -> tuple[MeshPod, MeshPod]:
    """Two more pods, ready to talk."""
    pods = (mesh.pod(0, f"client{number}"), mesh.pod(1, f"server{number}"))
    mesh.apply()
    for pod in pods:
        agent = mesh.agents[pod.host.node]

        def ready(agent: Agent = agent, uid: str = pod.uid) -> bool:
            return any(row["uid"] == uid and row["certificate_until"] for row in agent.get("/status")["pods"])

        wait_until(ready, f"{pod.uid} has its certificate")
    serve(closing, pods[1])
    return pods


def failed(mesh: Cluster, source: str = "client", destination: str = "server") -> list[Row]:
    """The connections between these workloads (by the beginnings of their names) that did not end as they should."""
    return [
        row
        for agent in mesh.agents
        for row in agent.access_log()
        if "error" in row and row.get("src.workload", "").startswith(source) and row["dst.workload"].startswith(destination)
    ]


def serve(closing: contextlib.ExitStack, pod: MeshPod) -> None:
    listener = closing.enter_context(pod.listen(PORT))
    closing.callback(Echo(listener).close)


def test_rotation_under_load(mesh: Cluster, closing: contextlib.ExitStack) -> None:
    first = generation(mesh.ca)
    client1, server1 = mesh.pods["client1"], mesh.pods["server1"]
    serve(closing, server1)
    load = Load(client1, server1)
    hold(closing, client1, server1)

    # A second root, which ends soon.  `rotate` gives a root ten years from its clock's now.
    begin = time.time()
    rotate(mesh.ca, clock=lambda: begin + SECOND_ROOT_S + pki.CLOCK_SKEW_S - pki.ROOT_LIFETIME_DAYS * 86_400)
    second = generation(mesh.ca)
    assert second.certificate.not_valid_after_utc.timestamp() == pytest.approx(begin + SECOND_ROOT_S, abs=1)
    client2, server2 = enrol(mesh, closing, 2)
    loads = [load, Load(client1, server2), Load(client2, server1), Load(client2, server2)]
    hold(closing, client1, server2)
    hold(closing, client2, server1)

    probe = forge(first, PROBE)
    serials = set()

    def renewed() -> bool:
        certificate = shown_by(mesh, server2, probe)
        assert certificate is not None
        assert certificate.issuer == second.certificate.subject
        serials.add(certificate.serial_number)
        return len(serials) >= 3

    wait_until(renewed, "certificates are renewed twice")

    # A third one before the second ends; certificates move over at their half-life.
    rotate(mesh.ca)
    third = generation(mesh.ca)

    def moved() -> bool:
        certificate = shown_by(mesh, server2, probe)
        assert certificate is not None
        return certificate.issuer == third.certificate.subject

    wait_until(moved, "the certificate is of the third root")
    wait_until(lambda: time.time() > begin + SECOND_ROOT_S + 1, "the second root has ended", 2 * SECOND_ROOT_S)
    hold(closing, client1, server2)
    hold(closing, client2, server2)
    hold(closing, client2, server1)
    for each in loads:
        assert each.stop() > 50
    assert failed(mesh) == []

    # The first generation of pods goes, and then its root.
    assert shown_by(mesh, server2, probe) is not None
    mesh.pods = {"client2": client2, "server2": server2}
    mesh.apply()
    load = Load(client2, server2)
    assert retire(mesh.ca) == 2
    wait_until(lambda: shown_by(mesh, server2, probe) is None, "the first root is trusted no more")
    assert shown_by(mesh, server2, forge(third, PROBE)) is not None
    hold(closing, client2, server2)
    assert load.stop() > 0
    assert refused_total(mesh.agents[1], "peer_certificate_untrusted") >= 1
    assert failed(mesh, "client2", "server2") == []
