"""Real programs talk across two nodes as if nothing were between them, byte for byte, and all of it goes through mutual TLS."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import pwd
import shutil
import signal
import smtplib
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from nodeproxy.identity import pki
from tests.mesh import programs
from tests.mesh.cluster import Cluster, MeshPod
from tests.mesh.evidence import output, rows_of, tunnelled, wait_listening
from tests.mesh.programs import MIB, noise


@pytest.fixture(scope="module")
def mesh(run_cluster: Callable[..., Cluster]) -> Cluster:
    def populate(cluster: Cluster) -> None:
        cluster.pod(0, "client")
        cluster.pod(1, "server", account="backend")

    return run_cluster(populate)


@pytest.fixture
def client(mesh: Cluster) -> MeshPod:
    return mesh.pods["client"]


@pytest.fixture
def server(mesh: Cluster) -> MeshPod:
    return mesh.pods["server"]


@pytest.fixture
def serve(mesh: Cluster, server: MeshPod) -> Iterator[Callable[..., None]]:
    """Starts a program in the server's pod and waits until it listens; it is ended with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(argv: list[str], port: int) -> None:
        started.append(server.host.popen(argv, cgroup=mesh.programs, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        wait_listening(started[-1], port)

    yield start
    for process in started:
        process.send_signal(signal.SIGINT)
        process.wait(10)


def ask(mesh: Cluster, client: MeshPod, *argv: str, stdin: bytes = b"") -> bytes:
    return output(client.host, argv, stdin, mesh.programs)


def program(name: str, server: MeshPod, port: int) -> list[str]:
    return [sys.executable, programs.__file__, name, server.ip, str(port)]


def fetch(connection: http.client.HTTPConnection, path: str, **headers: str) -> tuple[int, bytes]:
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    return response.status, response.read()


def test_http11(mesh: Cluster, client: MeshPod, server: MeshPod, serve: Callable[..., None], tmp_path: Path) -> None:
    big = noise(11, 8 * MIB)
    (tmp_path / "big").write_bytes(big)
    (tmp_path / "empty").write_bytes(b"")
    options = ["--bind", server.ip, "--protocol", "HTTP/1.1", "--directory", str(tmp_path)]
    serve([sys.executable, "-m", "http.server", *options, "8000"], 8000)
    connection = http.client.HTTPConnection(server.ip, 8000)
    connection.sock = client.connect(server.ip, 8000)
    kept = connection.sock
    assert fetch(connection, "/big") == (200, big)
    assert fetch(connection, "/empty") == (200, b"")
    assert fetch(connection, "/absent")[0] == 404
    assert connection.sock is None, "http.server closes after an error"
    kept.close()
    connection.sock = kept = client.connect(server.ip, 8000)
    for _ in range(20):
        assert fetch(connection, "/empty") == (200, b"")
        assert connection.sock is kept
    assert fetch(connection, "/big", **{"If-Modified-Since": "Fri, 01 Jan 2038 00:00:00 GMT"}) == (304, b"")
    connection.close()
    tunnelled(mesh, client, server, 8000, count=2)


def test_http11_streams_and_websocket(mesh: Cluster, client: MeshPod, server: MeshPod, serve: Callable[..., None]) -> None:
    serve(program("http-server", server, 8001), 8001)
    seen = json.loads(ask(mesh, client, *program("http-client", server, 8001)))
    assert seen == {"echoed": 20, "reversed": 4}
    sent, _ = tunnelled(mesh, client, server, 8001)
    assert sum(row["bytes_sent"] for row in sent) > 23 * MIB


def test_http2_cleartext(mesh: Cluster, client: MeshPod, server: MeshPod, serve: Callable[..., None], tmp_path: Path) -> None:
    """nghttp2's own server and clients, HTTP/2 with prior knowledge: it goes through HTTP/2 as opaque bytes."""
    big = noise(2, 8 * MIB)
    (tmp_path / "big").write_bytes(big)
    (tmp_path / "small").write_bytes(noise(3, 10_000))
    serve(["nghttpd", "--no-tls", "--echo-upload", "-a", server.ip, "-d", str(tmp_path), "8002"], 8002)
    url = f"http://{server.ip}:8002"
    assert ask(mesh, client, "nghttp", f"{url}/big") == big
    assert ask(mesh, client, "nghttp", "-d", str(tmp_path / "big"), f"{url}/echo") == big
    report = ask(mesh, client, "h2load", "-n", "1000", "-c", "10", "-m", "20", f"{url}/small").decode()
    assert "1000 succeeded, 0 failed, 0 errored, 0 timeout" in report
    assert "(10000000) data" in report
    tunnelled(mesh, client, server, 8002, count=12)


def test_grpc(mesh: Cluster, client: MeshPod, server: MeshPod, serve: Callable[..., None]) -> None:
    serve(program("grpc-server", server, 8003), 8003)
    assert json.loads(ask(mesh, client, *program("grpc-client", server, 8003))) == {
        "peer": "OK",
        "large": True,
        "calls": 200,
        "down": True,
        "up": True,
        "both": True,
        "failure": ["FAILED_PRECONDITION", "as you wish", "asked-to"],
    }
    tunnelled(mesh, client, server, 8003)


class MailServer(threading.Thread):
    """One conversation of SMTP (RFC 5321), in which the server speaks first; `mail` is what it was sent."""

    def __init__(self, listener: socket.socket) -> None:
        super().__init__(daemon=True)
        self.listener, self.mail = listener, b""
        self.start()

    def run(self) -> None:
        sock, _ = self.listener.accept()
        with sock, sock.makefile("rb") as lines:
            sock.sendall(b"220 mail.shop ESMTP\r\n")
            for line in lines:
                if line.upper() == b"QUIT\r\n":
                    sock.sendall(b"221 bye\r\n")
                    return
                if line.upper() == b"DATA\r\n":
                    sock.sendall(b"354 go on\r\n")
                    self.mail = b"".join(iter(lines.readline, b".\r\n"))
                sock.sendall(b"250 ok\r\n")


class PodSMTP(smtplib.SMTP):
    """The standard library's client, with a socket of the pod's."""

    pod: MeshPod

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        return self.pod.connect(host, port)


def test_server_first_protocol(mesh: Cluster, client: MeshPod, server: MeshPod) -> None:
    lines = (b"%d %s\r\n" % (number, noise(number, 30).hex().encode()) for number in range(20_000))
    mail = b"Subject: many lines\r\n\r\n" + b"".join(lines)
    with server.listen(2525) as listener:
        received = MailServer(listener)
        with PodSMTP() as session:
            session.pod = client
            assert session.connect(server.ip, 2525) == (220, b"mail.shop ESMTP")
            assert session.sendmail("a@shop", ["b@shop"], mail) == {}
        received.join(10)
    assert received.mail == mail
    tunnelled(mesh, client, server, 2525)


def test_redis(mesh: Cluster, client: MeshPod, server: MeshPod, serve: Callable[..., None], tmp_path: Path) -> None:
    argv = ["redis-server", "--port", "6379", "--bind", server.ip, "--protected-mode", "no", "--save", "", "--dir", str(tmp_path)]
    serve(argv, 6379)
    cli = ["redis-cli", "-h", server.ip]
    assert ask(mesh, client, *cli, "PING") == b"PONG\n"
    value = noise(4, 5 * MIB)
    assert ask(mesh, client, *cli, "-x", "SET", "value", stdin=value) == b"OK\n"
    assert ask(mesh, client, *cli, "--raw", "GET", "value") == value + b"\n"
    commands = b"".join(b"*3\r\n$3\r\nSET\r\n$%d\r\nk%d\r\n$1\r\nv\r\n" % (len(str(n)) + 1, n) for n in range(50_000))
    assert b"errors: 0, replies: 50000" in ask(mesh, client, *cli, "--pipe", stdin=commands)
    assert ask(mesh, client, *cli, "DBSIZE") == b"50001\n"
    peers = ask(mesh, client, *cli, "CLIENT", "LIST").decode()
    assert f"addr={client.ip}:" in peers
    assert f"laddr={server.ip}:6379" in peers
    tunnelled(mesh, client, server, 6379)


@pytest.fixture
def database(mesh: Cluster, server: MeshPod, serve: Callable[..., None]) -> Iterator[int]:
    """PostgreSQL as its own user in the server's pod, with a certificate of its own; its port."""
    account = pwd.getpwnam("postgres")
    bindir = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    as_postgres = ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups", "--reset-env"]
    directory = Path(tempfile.mkdtemp(prefix="nodeproxy-postgres-"))
    os.chown(directory, account.pw_uid, account.pw_gid)
    data = directory / "data"
    try:
        initdb = [*as_postgres, str(bindir / "initdb"), "-D", str(data), "--auth=trust", "--no-sync", "--no-locale", "-E", "UTF8"]
        subprocess.run(initdb, check=True, capture_output=True, timeout=60, cwd=directory)
        (data / "pg_hba.conf").write_text("host all all all trust\n")
        for name, content in zip(("server.crt", "server.key"), own_certificate(), strict=True):
            (data / name).write_bytes(content)
            (data / name).chmod(0o600)
            os.chown(data / name, account.pw_uid, account.pw_gid)
        options = {"listen_addresses": server.ip, "unix_socket_directories": "", "ssl": "on", "fsync": "off"}
        settings = [f"--{name}={value}" for name, value in options.items()]
        serve([*as_postgres, str(bindir / "postgres"), "-D", str(data), "-p", "5432", *settings], 5432)
        yield 5432
    finally:
        shutil.rmtree(directory)


def own_certificate() -> tuple[bytes, bytes]:
    """A self-signed certificate as an application may have: nothing of the mesh's."""
    key, name = pki.new_key(), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "database")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1))
    return pki.certificate_pem(builder.sign(key, hashes.SHA256())), pki.key_pem(key)


@pytest.mark.parametrize("sslmode", ["require", "disable"])
def test_postgresql(mesh: Cluster, client: MeshPod, server: MeshPod, database: int, sslmode: str) -> None:
    """Its TLS begins with a request in plain and an answer of one byte: the mesh must not wait for more of either."""
    url = f"host={server.ip} port={database} user=postgres dbname=postgres sslmode={sslmode}"
    before = len(rows_of(mesh.agents[0], dst_addr=f"{server.ip}:{database}"))

    def sql(text: str, stdin: bytes = b"") -> bytes:
        return ask(mesh, client, "psql", "-XqAt", "-v", "ON_ERROR_STOP=1", url, "-c", text, stdin=stdin)

    encrypted = b"t" if sslmode == "require" else b"f"
    seen = sql("SELECT ssl, client_addr FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE pid = pg_backend_pid()")
    assert seen == encrypted + b"|" + client.ip.encode() + b"\n"
    rows = b"".join(b"%d\t%s\n" % (number, hashlib.md5(b"%d" % number).hexdigest().encode()) for number in range(300_000))
    assert sql("COPY (SELECT i, md5(i::text) FROM generate_series(0, 299999) i) TO STDOUT") == rows
    sql("CREATE TABLE told (i int, t text)")
    sql("COPY told FROM STDIN", rows)
    assert sql("SELECT count(*), bool_and(t = md5(i::text)) FROM told") == b"300000|t\n"
    tunnelled(mesh, client, server, database, count=before + 5)
