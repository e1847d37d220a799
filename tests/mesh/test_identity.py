"""Nobody gets in, or is talked to, by a certificate that is not the one it must be; and between nodes nothing can be read.

Each refusal has a reason in the access log, with words of its own, and the metric of that reason counts it.  What stalls takes
ten seconds to be refused, so those peers begin with the module and their tests come last.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ResponseReceived

from nodeproxy.identity import pki
from nodeproxy.identity.local_ca import LocalCA
from nodeproxy.lab.topology import Host
from nodeproxy.linux.netns import inside
from tests.mesh.cluster import TIMEOUT_S, Cluster, exactly, wait_until
from tests.mesh.evidence import HBONE_PORT, refused_total, rows_of
from tests.mesh.forged import CLIENT_ONLY, DAY, SERVER_ONLY, Signer, context, forge

FRIEND = "spiffe://cluster.local/ns/shop/sa/friend"
FAKE = "spiffe://cluster.local/ns/shop/sa/fake"
STRANGER = "spiffe://elsewhere.example/ns/shop/sa/friend"
APPLICATION_PORT = 9100
SECOND = timedelta(seconds=1)
STALLED = ["a silent client", "half a client", "a client that stops", "a silent server", "an unreachable server"]


@pytest.fixture(scope="module")
def mesh(run_cluster: Callable[..., Cluster]) -> Cluster:
    def populate(cluster: Cluster) -> None:
        cluster.pod(0, "client")
        cluster.pod(1, "server")
        cluster.lab.external()
        # The mesh believes them to be members, but nobody has enrolled them: what answers on their port 15008 is a test's.
        for name in ("fake", "mute", "walled"):
            entry = {
                "uid": f"Kubernetes//Pod/shop/{name}",
                "name": name,
                "namespace": "shop",
                "serviceAccount": name,
                "node": "node1",
            }
            addresses = list(cluster.lab.pod(1, name).addresses)
            cluster.extra_workloads.append({**entry, "workloadIps": addresses, "protocol": "HBONE"})

    return run_cluster(populate)


@pytest.fixture(scope="module")
def root(mesh: Cluster) -> Signer:
    """The mesh's own CA, which must have lost its key to an attacker for some of these certificates."""
    ca = LocalCA.open(mesh.ca)
    return Signer(ca.signing_root, ca.key)


@dataclass
class Slow:
    """A peer that stalls: how its line is found, and what it must say."""

    node: int
    field: dict[str, str]
    reason: str
    words: str
    sock: socket.socket


@pytest.fixture(scope="module", autouse=True)
def slow(mesh: Cluster) -> Iterator[dict[str, Slow]]:
    """Those that stall, all at once."""
    client, server, external = mesh.pods["client"], mesh.pods["server"], mesh.lab.external()
    mute, walled = mesh.lab.pods["mute"], mesh.lab.pods["walled"]
    peers = {}
    hello = client_hello()
    with contextlib.ExitStack() as closing:
        for name, words in (
            ("a silent client", b""),
            ("half a client", hello[: len(hello) // 2]),
            ("a client that stops", hello),
        ):
            sock = closing.enter_context(dialled(external, (server.ip, HBONE_PORT)))
            sock.sendall(words)
            field = {"src_addr": "{}:{}".format(*sock.getsockname())}
            peers[name] = Slow(1, field, "tls_timeout", "the TLS handshake was not done in 10 s", sock)
        for pod in (mute, walled):
            closing.enter_context(listening(pod, backlog=0))
        # With its queue full, its kernel does not answer: as when a NetworkPolicy drops what comes.
        closing.enter_context(dialled(external, (walled.address4, HBONE_PORT)))
        for name, pod, reason, detail in (
            ("a silent server", mute, "tls_timeout", "the TLS handshake was not done in 10 s"),
            ("an unreachable server", walled, "hbone_timeout", "a NetworkPolicy or firewall may block HBONE (TCP port 15008)"),
        ):
            sock = closing.enter_context(client.connect(pod.address4, 9400))
            peers[name] = Slow(0, {"dst_addr": f"{pod.address4}:9400"}, reason, detail, sock)
        yield peers


def client_hello() -> bytes:
    outgoing = ssl.MemoryBIO()
    tls = context(None).wrap_bio(ssl.MemoryBIO(), outgoing)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def listening(host: Host, backlog: int) -> socket.socket:
    with inside(host.netns_fd):
        sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host.address4, HBONE_PORT))
    sock.listen(backlog)
    return sock


# ── between nodes ──


def test_between_nodes_nothing_can_be_read(mesh: Cluster) -> None:
    client, server = mesh.pods["client"], mesh.pods["server"]
    secret = os.urandom(16).hex().encode()
    with mesh.lab.capture() as capture, server.listen(9101) as listener, client.connect(server.ip, 9101) as ours:
        theirs, _ = listener.accept()
        with theirs:
            theirs.settimeout(TIMEOUT_S)
            for size in (1, 100, 20_000):  # in small segments and in large ones, each way
                ours.sendall(secret * size)
                assert exactly(theirs, len(secret) * size) == secret * size
                theirs.sendall(secret * size)
                assert exactly(ours, len(secret) * size) == secret * size
    assert capture.complete
    assert capture.bytes > 2 * 20_000 * len(secret)
    for readable in (secret, secret[:8], b"CONNECT", b"k8s.namespace.name", f"{server.ip}:9101".encode(), b"spiffe://"):
        assert not capture.contains(readable), readable


# ── clients that dial a pod's port 15008 ──


def dialled(host: Host, address: tuple[str, int]) -> socket.socket:
    with inside(host.netns_fd):
        sock = socket.socket()
    sock.settimeout(TIMEOUT_S)
    try:
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


def ask_for_a_tunnel(sock: socket.socket, target: str) -> str:
    """CONNECT to `target` over a connection that is encrypted already; the status, or "" if the connection ends without one."""
    h2 = H2Connection(H2Configuration(validate_outbound_headers=False, header_encoding="utf-8"))
    h2.initiate_connection()
    h2.send_headers(1, [(":method", "CONNECT"), (":authority", target)])
    with contextlib.suppress(ConnectionResetError, BrokenPipeError, ssl.SSLError):
        sock.sendall(h2.data_to_send())
        while data := sock.recv(65_536):
            for event in h2.receive_data(data):
                if isinstance(event, ResponseReceived):
                    return next(str(value) for name, value in event.headers if str(name) == ":status")
    return ""


def speak_tls(context: ssl.SSLContext, sock: socket.socket, target: str) -> str:
    try:
        with context.wrap_socket(sock) as tls:
            return ask_for_a_tunnel(tls, target)
    except (ssl.SSLError, ConnectionResetError):
        return ""


def say(words: bytes, sock: socket.socket) -> str:
    """Something that is no TLS; whatever comes back is no status either."""
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        sock.sendall(words)
        if not words:
            sock.shutdown(socket.SHUT_WR)
        while sock.recv(65_536):
            pass
    return ""


Client = Callable[[socket.socket, str], str]


@dataclass
class Bad:
    """A peer that must be refused.  `make` is given the mesh's CA; `words` stand in the access log after the reason."""

    reason: str
    words: str
    make: Callable[[Signer], Any]


def tls_client(shown: Any, **more: Any) -> Client:
    return lambda sock, target: speak_tls(context(shown, **more), sock, target)


def plain_client(words: bytes) -> Client:
    return lambda sock, target: say(words, sock)


@dataclass
class Rooted:
    """A certificate with its untrusted root behind it."""

    chain: bytes
    key: bytes
    root: bytes


def with_root(name: str) -> Rooted:
    signer = Signer.unknown()
    shown = forge(signer, name)
    above = pki.certificate_pem(signer.certificate)
    return Rooted(shown.chain + above, shown.key, above)


BAD_CLIENTS = {
    "no certificate": Bad("peer_no_certificate", "showed no certificate", lambda root: tls_client(None)),
    "another trust domain's, of our root": Bad(
        "peer_trust_domain", "elsewhere.example", lambda root: tls_client(forge(root, STRANGER))
    ),
    "another trust domain's, of its own root": Bad(
        "peer_certificate_untrusted", "unable to get local issuer", lambda root: tls_client(forge(Signer.unknown(), STRANGER))
    ),
    "our trust domain's, of an unknown root": Bad(
        "peer_certificate_untrusted", "trusted root", lambda root: tls_client(forge(Signer.unknown(), FRIEND))
    ),
    "an unknown root's, which is sent along": Bad(
        "peer_certificate_untrusted", "self-signed certificate in certificate chain", lambda root: tls_client(with_root(FRIEND))
    ),
    "signed by a workload": Bad(
        "peer_certificate_untrusted",
        "(self-signed certificate)",
        lambda root: tls_client(forge(forge(root, FRIEND).signer(), FRIEND)),
    ),
    "expired": Bad(
        "peer_certificate_expired", "is expired", lambda root: tls_client(forge(root, FRIEND, begin=-2 * DAY, end=-SECOND))
    ),
    "not yet valid": Bad(
        "peer_certificate_expired", "not valid yet", lambda root: tls_client(forge(root, FRIEND, begin=DAY, end=2 * DAY))
    ),
    "a server's": Bad("peer_certificate_purpose", "clientAuth", lambda root: tls_client(forge(root, FRIEND, usages=SERVER_ONLY))),
    "no name": Bad("peer_identity", "0 URI names", lambda root: tls_client(forge(root))),
    "two names": Bad("peer_identity", "2 URI names", lambda root: tls_client(forge(root, FRIEND, FAKE))),
    "a name that is none": Bad(
        "peer_identity", "names no workload", lambda root: tls_client(forge(root, "spiffe://cluster.local/ns/shop"))
    ),
    "TLS 1.2": Bad("tls_failure", "no TLS 1.3", lambda root: tls_client(forge(root, FRIEND), version=ssl.TLSVersion.TLSv1_2)),
    "no ALPN": Bad("no_alpn", "h2", lambda root: tls_client(forge(root, FRIEND), alpn="")),
    "another ALPN": Bad("no_alpn", "h2", lambda root: tls_client(forge(root, FRIEND), alpn="http/1.1")),
    "it trusts another root": Bad(
        "tls_failure", "does not trust our root", lambda root: tls_client(forge(root, FRIEND), trusted=with_root(FRIEND).root)
    ),
    "garbage": Bad("tls_failure", "not TLS", lambda root: plain_client(b"\xa5\x00\xff" * 999)),
    "HTTP": Bad("tls_failure", "plain HTTP", lambda root: plain_client(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")),
    "HTTP/2 without TLS": Bad(
        "tls_failure", "the peer broke the TLS handshake", lambda root: plain_client(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    ),
    "an end at once": Bad("tls_failure", "closed", lambda root: plain_client(b"")),
}


@pytest.fixture(scope="module")
def application(mesh: Cluster) -> Iterator[socket.socket]:
    """Where clients want to get to; it must not be reached."""
    with mesh.pods["server"].listen(APPLICATION_PORT) as listener:
        listener.settimeout(0)
        yield listener


def test_a_good_client_is_served(mesh: Cluster, root: Signer, application: socket.socket) -> None:
    """The same client, with what it should have: so the others are refused for what they lack."""
    server = mesh.pods["server"]
    client = tls_client(forge(root, FRIEND, usages=CLIENT_ONLY), trusted=LocalCA.open(mesh.ca).roots_pem)
    with dialled(mesh.lab.external(), (server.ip, HBONE_PORT)) as sock:
        assert client(sock, f"{server.ip}:{APPLICATION_PORT}") == "200"
    application.accept()[0].close()


@pytest.mark.parametrize("name", BAD_CLIENTS)
def test_a_bad_client_is_refused(mesh: Cluster, root: Signer, application: socket.socket, name: str) -> None:
    bad, server, agent = BAD_CLIENTS[name], mesh.pods["server"], mesh.agents[1]
    before = refused_total(agent, bad.reason)
    with dialled(mesh.lab.external(), (server.ip, HBONE_PORT)) as sock:
        source = "{}:{}".format(*sock.getsockname())
        assert bad.make(root)(sock, f"{server.ip}:{APPLICATION_PORT}") == ""
    (row,) = wait_until(lambda: rows_of(agent, src_addr=source), "the line is there")
    assert row["error"].startswith(f"{bad.reason}: ")
    assert bad.words in row["error"]
    assert row["direction"] == "inbound"
    assert row["dst.addr"] == f"{server.ip}:{HBONE_PORT}"
    assert row["dst.workload"] == "server"
    wait_until(lambda: refused_total(agent, bad.reason) == before + 1, "the metric counts it")
    with pytest.raises(BlockingIOError):
        application.accept()


# ── servers that answer on port 15008 in a workload's place ──


class Server(threading.Thread):
    """Accepts one connection and does as `answer` says; `heard` is what it could read."""

    def __init__(self, host: Host, answer: Callable[[socket.socket], bytes]) -> None:
        super().__init__(daemon=True)
        self._answer = answer
        self.heard = b""
        self._listener = listening(host, backlog=8)
        self._listener.settimeout(TIMEOUT_S)

    def run(self) -> None:
        with self._listener, contextlib.suppress(OSError):  # ssl.SSLError among them
            sock, _ = self._listener.accept()
            with sock:
                sock.settimeout(TIMEOUT_S)
                self.heard = self._answer(sock)


def read_all(sock: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(OSError):
        while chunk := sock.recv(65_536):
            data += chunk
    return data


def tls_server(shown: Any, read: Callable[[socket.socket], bytes] = read_all, **more: Any) -> Callable[[socket.socket], bytes]:
    def answer(sock: socket.socket) -> bytes:
        with context(shown, server=True, **more).wrap_socket(sock, server_side=True) as tls:
            return read(tls)

    return answer


def say_back(words: bytes) -> Callable[[socket.socket], bytes]:
    def answer(sock: socket.socket) -> bytes:
        sock.recv(65_536)
        sock.sendall(words)
        return b""

    return answer


OTHER = "spiffe://cluster.local/ns/shop/sa/somebody-else"
BAD_SERVERS = {
    "another workload's": Bad("peer_identity", "somebody-else", lambda root: tls_server(forge(root, OTHER))),
    "another trust domain's": Bad("peer_identity", "elsewhere.example", lambda root: tls_server(forge(root, STRANGER))),
    "another name besides": Bad("peer_identity", "2 URI names", lambda root: tls_server(forge(root, FAKE, OTHER))),
    "no name": Bad("peer_identity", "0 URI names", lambda root: tls_server(forge(root))),
    "an unknown root's": Bad(
        "peer_certificate_untrusted", "trusted root", lambda root: tls_server(forge(Signer.unknown(), FAKE))
    ),
    "signed by a workload": Bad(
        "peer_certificate_untrusted",
        "(self-signed certificate)",
        lambda root: tls_server(forge(forge(root, OTHER).signer(), FAKE)),
    ),
    "expired": Bad(
        "peer_certificate_expired", "is expired", lambda root: tls_server(forge(root, FAKE, begin=-2 * DAY, end=-SECOND))
    ),
    "a client's": Bad("peer_certificate_purpose", "serverAuth", lambda root: tls_server(forge(root, FAKE, usages=CLIENT_ONLY))),
    "TLS 1.2": Bad(
        "tls_failure", "does not speak TLS 1.3", lambda root: tls_server(forge(root, FAKE), version=ssl.TLSVersion.TLSv1_2)
    ),
    "no ALPN": Bad("no_alpn", "h2", lambda root: tls_server(forge(root, FAKE), alpn="")),
    "another ALPN": Bad("no_alpn", "h2", lambda root: tls_server(forge(root, FAKE), alpn="http/1.1")),
    "it trusts another root": Bad(
        "tls_failure", "does not trust our root", lambda root: tls_server(forge(root, FAKE), trusted=with_root(FAKE).root)
    ),
    "garbage": Bad("tls_failure", "not TLS", lambda root: say_back(b"\xa5\x00\xff" * 999)),
    "an end at once": Bad("tls_failure", "closed", lambda root: say_back(b"")),
}


def is_reset(mesh: Cluster, address: tuple[str, int]) -> None:
    """The client pod's connection is reset, within the connect (if that takes its time) or after it."""
    with mesh.pods["client"].socket() as sock:
        with pytest.raises(ConnectionResetError):  # noqa: PT012 - whichever of them comes to see it
            sock.connect(address)
            while True:
                sock.sendall(b"for the right ears only")
                assert sock.recv(1), "an orderly end"


@pytest.mark.parametrize("name", BAD_SERVERS)
def test_a_bad_server_is_refused(mesh: Cluster, root: Signer, name: str) -> None:
    bad, client, fake, agent = BAD_SERVERS[name], mesh.pods["client"], mesh.lab.pods["fake"], mesh.agents[0]
    port = 9200 + list(BAD_SERVERS).index(name)
    before = refused_total(agent, bad.reason)
    server = Server(fake, bad.make(root))
    server.start()
    is_reset(mesh, (fake.address4, port))
    server.join(TIMEOUT_S)
    assert b"for the right ears" not in server.heard
    if bad.reason.startswith("peer_"):
        assert server.heard == b"", "nothing is said to a server that is not verified"
    (row,) = wait_until(lambda: rows_of(agent, dst_addr=f"{fake.address4}:{port}"), "the line is there")
    assert row["error"].startswith(f"{bad.reason}: ")
    assert bad.words in row["error"]
    assert row["direction"] == "outbound"
    assert row["src.identity"] == client.identity
    assert row["dst.hbone_addr"] == f"{fake.address4}:{HBONE_PORT}"
    wait_until(lambda: refused_total(agent, bad.reason) == before + 1, "the metric counts it")


def test_a_good_server_is_spoken_to(mesh: Cluster, root: Signer) -> None:
    """The same server, with what it should have."""
    client, fake = mesh.pods["client"], mesh.lab.pods["fake"]
    trusted = LocalCA.open(mesh.ca).roots_pem
    server = Server(fake, tls_server(forge(root, FAKE, usages=SERVER_ONLY), trusted=trusted, read=lambda tls: tls.recv(65_536)))
    server.start()
    with client.connect(fake.address4, 9300):
        server.join(TIMEOUT_S)
    assert server.heard.startswith(b"PRI * HTTP/2.0")


def test_nobody_answers_on_port_15008(mesh: Cluster) -> None:
    fake = mesh.lab.pods["fake"]
    is_reset(mesh, (fake.address4, 9301))
    (row,) = wait_until(lambda: rows_of(mesh.agents[0], dst_addr=f"{fake.address4}:9301"), "the line is there")
    assert row["error"].startswith("connect_refused: ")


# ── what stalls ──


@pytest.mark.parametrize("name", STALLED)
def test_a_peer_that_stalls_is_refused(mesh: Cluster, slow: dict[str, Slow], name: str) -> None:
    peer = slow[name]
    agent = mesh.agents[peer.node]
    (row,) = wait_until(lambda: rows_of(agent, **peer.field), "the line is there", 20)
    assert row["error"].startswith(f"{peer.reason}: ")
    assert peer.words in row["error"]
    with contextlib.suppress(ConnectionResetError):
        while peer.sock.recv(65_536):  # a client that stops has its answer, an incomplete handshake, before the end
            pass
    alike = sum((each.reason, each.node) == (peer.reason, peer.node) for each in slow.values())
    wait_until(lambda: refused_total(agent, peer.reason) == alike, "the metric counts each")
