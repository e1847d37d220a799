"""A real kube-apiserver over a real etcd, with RBAC, in a network namespace or on loopback, and a client for tests.

No kubelet, scheduler or controller runs: a test writes what they would, pods with their node and status among it.
"""

from __future__ import annotations

import contextlib
import datetime
import http.client
import ipaddress
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from nodeproxy.identity.pki import certificate_pem, key_pem, new_key
from nodeproxy.lab.topology import Host
from nodeproxy.linux.netns import inside
from tests.cluster.kinds import Object, item_path, list_path
from tests.mesh.cluster import wait_until

_START_S = 60.0
_REQUEST_S = 30.0
SERVICE_RANGE = "10.96.0.0/12"
ISSUER = "https://kubernetes.default.svc"
ADMIN = "admin"


def peer_binary(name: str) -> Path:
    """A program that `./dev test --peers` builds; the test is skipped where it was not."""
    folder = os.environ.get("TEST_PEERS", "")
    path = Path(folder) / name
    if not folder or not path.exists():
        pytest.skip(f"needs {name}, which is built by ./dev test --peers")
    return path


class ApiError(Exception):
    """The API server said no."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class ApiServer:
    """etcd and kube-apiserver.  `host`: where they run and listen; None: loopback of this namespace."""

    def __init__(self, host: Host | None = None) -> None:
        self.host = host
        self.address = host.address4 if host else "127.0.0.1"
        # etcd writes through to the disk at each change; in memory it is as fast as tests want.
        self.directory = Path(tempfile.mkdtemp(prefix="nodeproxy-apiserver-", dir="/dev/shm"))
        self.port, self.etcd_port, self._etcd_peer_port = self.free_ports(3)
        self.url = f"https://{self.address}:{self.port}"
        self.start_timeout_s = _START_S
        self.etcd: subprocess.Popen[bytes] | None = None
        self.apiserver: subprocess.Popen[bytes] | None = None
        self.ca_file = self.directory / "ca.pem"
        self._make_keys()
        self.tokens: dict[str, str] = {}
        self._add_user(ADMIN, "system:masters")
        self._local = threading.local()

    # ── life ──

    def start(self) -> None:
        self.start_etcd()
        self.start_apiserver()

    def start_etcd(self) -> None:
        client, peer = f"http://127.0.0.1:{self.etcd_port}", f"http://127.0.0.1:{self._etcd_peer_port}"
        # An interval that lets a slow machine answer in time: there is only one member to lose touch with.
        argv = [
            "etcd",
            "--data-dir",
            str(self.etcd_data),
            "--listen-client-urls",
            client,
            "--advertise-client-urls",
            client,
        ]
        argv += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}"]
        argv += ["--heartbeat-interval", "500", "--election-timeout", "5000", "--quota-backend-bytes", str(4 << 30)]
        self.etcd = self._popen(argv, "etcd.log")

    def start_apiserver(self, wait: bool = True) -> None:
        at = self.directory
        argv = [str(peer_binary("kube-apiserver")), "--etcd-servers", f"http://127.0.0.1:{self.etcd_port}"]
        argv += ["--bind-address", self.address, "--advertise-address", self.address if self.host else "10.255.255.1"]
        argv += ["--secure-port", str(self.port), "--tls-cert-file", str(at / "serving.pem")]
        argv += ["--tls-private-key-file", str(at / "serving-key.pem"), "--token-auth-file", str(at / "tokens.csv")]
        argv += ["--authorization-mode", "RBAC", "--service-account-issuer", ISSUER, "--api-audiences", ISSUER]
        argv += [
            "--service-account-key-file",
            str(at / "accounts-public.pem"),
            "--service-account-signing-key-file",
            str(at / "accounts.pem"),
        ]
        argv += [
            "--service-cluster-ip-range",
            SERVICE_RANGE,
            "--endpoint-reconciler-type",
            "none",
            "--cert-dir",
            str(at / "certs"),
        ]
        # A pod may be written before its service account, and nobody mounts a token into it.
        argv += ["--disable-admission-plugins", "ServiceAccount,Priority", "--shutdown-delay-duration", "0s"]
        self.apiserver = self._popen(argv, "apiserver.log")
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        def ready() -> bool:
            assert self.apiserver is not None
            assert self.apiserver.poll() is None, self.log()
            try:
                return self.request("GET", "/readyz", raw=True) == b"ok"
            except (OSError, http.client.HTTPException, ApiError):
                return False

        try:
            wait_until(ready, "the API server is ready", self.start_timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()}") from None

    def kill_apiserver(self) -> None:
        """As a crash does it."""
        self.apiserver = self._end(self.apiserver, signal.SIGKILL)

    def kill_etcd(self) -> None:
        self.etcd = self._end(self.etcd, signal.SIGKILL)

    def compact(self) -> None:
        """Etcd forgets all history up to now, as the API server has it do every five minutes."""
        gateway = f"http://127.0.0.1:{self.etcd_port}/v3/kv/"
        with self.inside():
            answer = _post(gateway + "range", {"key": "AA=="})
            _post(gateway + "compaction", {"revision": answer["header"]["revision"], "physical": True})

    def close(self) -> None:
        self.apiserver = self._end(self.apiserver, signal.SIGKILL)
        self.etcd = self._end(self.etcd, signal.SIGKILL)
        self.forget_connection()
        shutil.rmtree(self.directory)

    @property
    def etcd_data(self) -> Path:
        """Where etcd keeps what it is given."""
        return self.directory / "etcd"

    def log(self) -> str:
        path = self.directory / "apiserver.log"
        return path.read_text(errors="replace")[-3000:] if path.exists() else ""

    def free_ports(self, count: int) -> list[int]:
        """Ports that nobody listens on, where the server runs."""
        with contextlib.ExitStack() as stack, self.inside():
            sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
            return [sock.getsockname()[1] for sock in sockets]

    # ── who may ask ──

    def kubeconfig(self, token: str = "", name: str = "admin") -> Path:
        """A kubeconfig with `token`, by default the administrator's."""
        path = self.directory / f"{name}.kubeconfig"
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": self.url, "certificate-authority": str(self.ca_file)}}],
            "users": [{"name": name, "user": {"token": token or self.tokens[ADMIN]}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": name}}],
        }
        path.write_text(yaml.safe_dump(content))
        return path

    def token(
        self, namespace: str, account: str, *, audience: str = ISSUER, pod: str = "", pod_uid: str = "", seconds: int = 3600
    ) -> str:
        """A token of a service account by TokenRequest, bound to a pod if one is named."""
        spec: dict[str, Any] = {"audiences": [audience], "expirationSeconds": seconds}
        if pod:
            uid = pod_uid or self.get("Pod", pod, namespace)["metadata"]["uid"]
            spec["boundObjectRef"] = {"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid}
        path = item_path("ServiceAccount", account, namespace) + "/token"
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        return str(self.request("POST", path, body)["status"]["token"])

    # ── objects ──

    def create(self, *objects: Object) -> Object:
        """Create objects; what the server made of the last one."""
        made: Object = {}
        for item in objects:
            made = self.request("POST", list_path(item["kind"], item["metadata"].get("namespace", "")), item)
            if "status" in item:  # which a creation drops
                made = self.patch(
                    item["kind"], made["metadata"]["name"], item["metadata"].get("namespace", ""), "status", status=item["status"]
                )
        return made

    def apply(self, *objects: Object) -> None:
        """Server-side apply, status as well."""
        for item in objects:
            path = item_path(item["kind"], item["metadata"]["name"], item["metadata"].get("namespace", ""))
            query = "?fieldManager=test&force=true"
            self.request("PATCH", path + query, item, content_type="application/apply-patch+yaml")
            if "status" in item:
                self.request("PATCH", f"{path}/status{query}", item, content_type="application/apply-patch+yaml")

    def patch(self, kind: str, name: str, namespace: str = "", subresource: str = "", **fields: Any) -> Object:
        """A merge patch."""
        path = item_path(kind, name, namespace) + (f"/{subresource}" if subresource else "")
        return self.request("PATCH", path, fields, content_type="application/merge-patch+json")

    def get(self, kind: str, name: str, namespace: str = "") -> Object:
        return self.request("GET", item_path(kind, name, namespace))

    def list(self, kind: str, namespace: str = "") -> list[Object]:
        return list(self.request("GET", list_path(kind, namespace))["items"])

    def delete(self, kind: str, name: str, namespace: str = "") -> None:
        """At once: a pod is not left for its kubelet to end."""
        query = "?gracePeriodSeconds=0" if kind == "Pod" else ""
        self.request("DELETE", item_path(kind, name, namespace) + query)

    def end_pod(self, name: str, namespace: str, *, uid: str = "", grace_s: int | None = None) -> None:
        """As people delete pods, with their own time of grace or another; `uid`: only if it is that one."""
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions"}
        if uid:
            options["preconditions"] = {"uid": uid}
        if grace_s is not None:
            options["gracePeriodSeconds"] = grace_s
        self.request("DELETE", item_path("Pod", name, namespace), options)

    def install_definitions(self, *files: Path) -> None:
        """CustomResourceDefinitions of YAML files; returns when their resources are served."""
        names = []
        for file in files:
            for item in yaml.load_all(file.read_text(), Loader=yaml.CSafeLoader):
                if item and item["kind"] == "CustomResourceDefinition":
                    self.create(item)
                    names.append(item["metadata"]["name"])

        def established() -> bool:
            definitions = {item["metadata"]["name"]: item for item in self.list("CustomResourceDefinition")}
            return all(
                any(
                    c["type"] == "Established" and c["status"] == "True"
                    for c in definitions[name].get("status", {}).get("conditions") or ()  # null until it is looked at
                )
                for name in names
            )

        wait_until(established, "the definitions are served", _START_S)

    # ── one request ──

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        content_type: str = "application/json",
        token: str = "",
        raw: bool = False,
    ) -> Any:
        """One request; the answer's JSON.  Raises ApiError."""
        headers = {"Authorization": f"Bearer {token or self.tokens[ADMIN]}", "Content-Type": content_type}
        data = None if body is None else json.dumps(body)
        for attempt in (0, 1):
            connection = self._connection()
            try:
                connection.request(method, path, data, headers)
                response = connection.getresponse()
                content = response.read()
                break
            except (OSError, http.client.HTTPException):
                reused = getattr(self._local, "used", False)
                self.forget_connection()
                if attempt or not reused:  # a kept connection may have been closed meanwhile
                    raise
        self._local.used = True
        if response.status >= 400:
            raise ApiError(response.status, content.decode(errors="replace"))
        return content if raw else json.loads(content)

    def stream(self, path: str) -> tuple[http.client.HTTPSConnection, http.client.HTTPResponse]:
        """A GET whose answer has no end of its own, on a connection of its own.  Raises ApiError."""
        connection = self._connect()
        connection.request("GET", path, headers={"Authorization": f"Bearer {self.tokens[ADMIN]}"})
        response = connection.getresponse()
        if response.status >= 400:
            with contextlib.closing(connection), response:
                raise ApiError(response.status, response.read().decode(errors="replace"))
        return connection, response

    def _connection(self) -> http.client.HTTPSConnection:
        kept: http.client.HTTPSConnection | None = getattr(self._local, "connection", None)
        if kept is not None:
            return kept
        self._local.connection, self._local.used = self._connect(), False
        return self._local.connection

    def _connect(self) -> http.client.HTTPSConnection:
        context = ssl.create_default_context(cafile=str(self.ca_file))
        made = http.client.HTTPSConnection(self.address, self.port, timeout=_REQUEST_S, context=context)
        with self.inside():
            made.connect()
        return made

    def forget_connection(self) -> None:
        """Close the calling thread's connection; a thread that has asked does so before it ends."""
        kept = getattr(self._local, "connection", None)
        if kept is not None:
            kept.close()
            self._local.connection = None

    # ── where it is ──

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Make sockets there."""
        if self.host is None:
            yield
            return
        with inside(self.host.netns_fd):
            yield

    @property
    def popen(self) -> Callable[..., subprocess.Popen[bytes]]:
        """Starts a program there."""
        return self.host.popen if self.host else subprocess.Popen

    # ── inside ──

    def _popen(self, argv: list[str], log: str) -> subprocess.Popen[bytes]:
        with (self.directory / log).open("ab") as output:
            return self.popen(argv, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=str(self.directory))

    def _end(self, process: subprocess.Popen[bytes] | None, number: int) -> None:
        if process is not None:
            process.send_signal(number)
            process.wait(30)

    def _add_user(self, name: str, group: str) -> None:
        self.tokens[name] = f"{name}-{os.urandom(16).hex()}"
        with (self.directory / "tokens.csv").open("a") as file:
            file.write(f'{self.tokens[name]},{name},{name},"{group}"\n')

    def _make_keys(self) -> None:
        key, issuer_key, accounts = new_key(), new_key(), new_key()
        public = accounts.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        issuer = _certificate("test CA", issuer_key, None, issuer_key, [])
        names: list[x509.GeneralName] = [
            x509.IPAddress(ipaddress.ip_address(self.address)),
            x509.DNSName("kubernetes.default.svc"),
        ]
        serving = _certificate("kube-apiserver", key, issuer, issuer_key, names)
        self.ca_file.write_bytes(certificate_pem(issuer))
        for name, content in (
            ("serving.pem", certificate_pem(serving)),
            ("serving-key.pem", key_pem(key)),
            ("accounts.pem", key_pem(accounts)),
            ("accounts-public.pem", public),
        ):
            (self.directory / name).write_bytes(content)


def _post(url: str, body: Object) -> Any:
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()), timeout=_REQUEST_S) as response:
        return json.load(response)


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    issuer_key: ec.EllipticCurvePrivateKey,
    names: list[x509.GeneralName],
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if issuer is None:
        unused = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only"),
            False,
        )
        usage = x509.KeyUsage(digital_signature=True, key_cert_sign=True, crl_sign=True, **unused)
        builder = builder.add_extension(usage, critical=True)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())
