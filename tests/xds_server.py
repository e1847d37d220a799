"""A control plane for tests: delta xDS and IstioCertificateService on one port, in threads of the test's process.

It keeps to the protocol as istiod does (resume by versions, on demand, an answer to every request for a type), does what it is
told of the rest, and remembers what it was asked.
"""

from __future__ import annotations

import contextlib
import ipaddress
import queue
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID

from nodeproxy.identity import pki
from nodeproxy.identity.local_ca import LocalCA
from nodeproxy.model.node_pod import MeshNamespace, NodePod
from nodeproxy.proto import authorization_pb2, certificate_pb2, discovery_pb2, workload_pb2
from nodeproxy.xds.encode import encode_mesh_namespace, encode_node_pod
from nodeproxy.xds.names import ADDRESS, AUTHORIZATION, MESH_NAMESPACE, NODE_POD

Request = discovery_pb2.DeltaDiscoveryRequest
Response = discovery_pb2.DeltaDiscoveryResponse
_END = object()


@dataclass
class Root:
    """What the server's own certificate is signed by."""

    key: Any = field(default_factory=pki.new_key)
    certificate: x509.Certificate = field(init=False)

    def __post_init__(self) -> None:
        self.certificate = pki.make_root(self.key, "control-plane", time.time())

    @property
    def pem(self) -> bytes:
        return pki.certificate_pem(self.certificate)

    def server(self, *names: str) -> tuple[bytes, bytes]:
        """Key and certificate of a server with these names or addresses."""
        key, now = pki.new_key(), datetime.now(UTC)
        alternative = x509.SubjectAlternativeName([_general(name) for name in names])
        made = (
            x509.CertificateBuilder()
            .issuer_name(self.certificate.subject)
            .subject_name(x509.Name([]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(alternative, critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(pki.authority_key_identifier(self.certificate), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return pki.key_pem(key), pki.certificate_pem(made)


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


class Stream:
    """One client's stream, as the server sees it."""

    def __init__(self, server: ControlPlaneServer, metadata: dict[str, str]) -> None:
        self.server = server
        self.metadata = metadata
        self.requests: list[Request] = []
        self.wildcard: set[str] = set()
        self.names: dict[str, set[str]] = {}
        self.out: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.nonce = 0

    def send(self, type_url: str, names: Iterable[str], removed: Iterable[str] = ()) -> str:
        """Send these resources, as they are; the nonce."""
        self.nonce += 1
        table = self.server.resources[type_url]
        response = Response(type_url=type_url, nonce=f"n{self.nonce}", removed_resources=sorted(removed))
        response.control_plane.identifier = self.server.identifier
        for name in names:
            raw, version, aliases = table[name]
            resource = response.resources.add(name=name, version=version, aliases=aliases)
            resource.resource.type_url, resource.resource.value = type_url, raw
        self.out.put(response.SerializeToString())
        return response.nonce

    def receive(self, request: Request) -> None:
        first = request.type_url not in self.names
        self.requests.append(request)
        if request.type_url not in self.server.resources:
            return
        if first:
            self.names[request.type_url] = set()
            if not request.resource_names_subscribe:
                self.wildcard.add(request.type_url)
        if request.response_nonce and not first:
            return
        if request.type_url in self.server.silent:
            return
        table = self.server.resources[request.type_url]
        known = dict(request.initial_resource_versions)
        if request.type_url in self.wildcard:
            if not first:
                return
            changed = [name for name, (_, version, _) in table.items() if known.get(name) != version]
            self.send(request.type_url, changed, known.keys() - table.keys())
            return
        wanted = (set(request.resource_names_subscribe) | known.keys()) - {"*"}
        mine = self.names[request.type_url]
        mine |= wanted
        mine -= set(request.resource_names_unsubscribe)
        found = {name for name, (_, _, aliases) in table.items() if name in wanted or wanted & set(aliases)}
        answered = found | {alias for name in found for alias in table[name][2]}
        mine |= found
        self.send(request.type_url, [name for name in found if known.get(name) != table[name][1]], wanted - answered)


class ControlPlaneServer:
    """Started with `start`; resources may be put before and after."""

    def __init__(self, *, token: str | None = None, ca: LocalCA | None = None, lifetime_s: float = 3600.0) -> None:
        """token: the only one that is let in.  ca: makes certificates."""
        self.token = token
        self.ca = ca
        self.lifetime_s = lifetime_s
        types = (ADDRESS, AUTHORIZATION, NODE_POD, MESH_NAMESPACE)
        self.resources: dict[str, dict[str, tuple[bytes, str, list[str]]]] = {type_url: {} for type_url in types}
        self.streams: list[Stream] = []
        self.past: list[Stream] = []
        self.certificate_requests: list[tuple[str, dict[str, str]]] = []
        self.unauthenticated = 0
        self.silent: set[str] = set()  # types for which requests are not answered
        self.address = ""
        self.max_request_bytes = -1
        self._lock = threading.RLock()
        self._server: grpc.Server | None = None
        self.stream_type = Stream
        self.identifier = ""

    # ── life ──

    def start(self, address: str = "127.0.0.1:0", *, root: Root | None = None) -> str:
        """Listen, with TLS if there is a root; the URL."""
        host = address.rpartition(":")[0]
        self._server = grpc.server(
            ThreadPoolExecutor(64),
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", self.max_request_bytes),
                ("grpc.max_send_message_length", -1),
            ],
        )
        service = {"DeltaAggregatedResources": grpc.stream_stream_rpc_method_handler(self._serve)}
        issue = {"CreateCertificate": grpc.unary_unary_rpc_method_handler(self._issue)}
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler("envoy.service.discovery.v3.AggregatedDiscoveryService", service),
                grpc.method_handlers_generic_handler("istio.v1.auth.IstioCertificateService", issue),
            )
        )
        if root is None:
            port = self._server.add_insecure_port(address)
        else:
            credentials = grpc.ssl_server_credentials([root.server(host.strip("[]"), "localhost")])
            port = self._server.add_secure_port(address, credentials)
        self._server.start()
        self.address = f"{host}:{port}"
        return f"{'https' if root is not None else 'http'}://{self.address}"

    def stop(self) -> None:
        if self._server is not None:
            self.end_streams()
            self._server.stop(0).wait()
            self._server = None

    def end_streams(self) -> None:
        """End every stream, without an error."""
        with self._lock:
            for stream in self.streams:
                stream.out.put(_END)

    # ── what it says ──

    def put(
        self, *messages: workload_pb2.Workload | workload_pb2.Service | authorization_pb2.Authorization, push: bool = True
    ) -> None:
        """New or changed resources."""
        changed: dict[str, list[str]] = {}
        for message in messages:
            name, type_url, aliases = _describe(message)
            if isinstance(message, authorization_pb2.Authorization):
                raw = message.SerializeToString()
            elif isinstance(message, workload_pb2.Workload):
                raw = workload_pb2.Address(workload=message).SerializeToString()
            else:
                raw = workload_pb2.Address(service=message).SerializeToString()
            self.put_raw(type_url, name, raw, aliases=aliases, push=False)
            changed.setdefault(type_url, []).append(name)
        if push:
            for type_url, names in changed.items():
                self._push(type_url, names)

    def put_node(self, *told: NodePod | MeshNamespace) -> None:
        """What a node is told of its pods; in one response of each type."""
        changed: dict[str, list[str]] = {}
        for each in told:
            encoded = encode_node_pod(each) if isinstance(each, NodePod) else encode_mesh_namespace(each)
            (resource,) = Response.FromString(encoded.entry).resources
            type_url = NODE_POD if isinstance(each, NodePod) else MESH_NAMESPACE
            self.put_raw(type_url, resource.name, resource.resource.value, push=False)
            changed.setdefault(type_url, []).append(resource.name)
        for type_url, names in changed.items():
            self._push(type_url, names)

    def put_raw(self, type_url: str, name: str, raw: bytes, *, aliases: Iterable[str] = (), push: bool = True) -> None:
        with self._lock:
            self.resources[type_url][name] = (raw, blake2b(raw, digest_size=8).hexdigest(), list(aliases))
        if push:
            self._push(type_url, [name])

    def remove(self, type_url: str, *names: str) -> None:
        with self._lock:
            for name in names:
                del self.resources[type_url][name]
        self._push(type_url, [], names)

    def send_raw(self, raw: bytes) -> None:
        """Whatever, to everybody."""
        with self._lock:
            for stream in self.streams:
                stream.out.put(raw)

    def _push(self, type_url: str, names: list[str], removed: Iterable[str] = ()) -> None:
        with self._lock:
            for stream in self.streams:
                if type_url in stream.wildcard:
                    stream.send(type_url, names, removed)
                elif type_url in stream.names:
                    mine = stream.names[type_url]
                    wanted = [name for name in names if name in mine or mine & set(self.resources[type_url][name][2])]
                    gone = [name for name in removed if name in mine]
                    if wanted or gone:
                        stream.send(type_url, wanted, gone)

    # ── what it was asked ──

    def requests(self, type_url: str) -> list[Request]:
        """Of the newest stream."""
        with self._lock:
            return [request for request in self.streams[-1].requests if request.type_url == type_url] if self.streams else []

    def nacks(self) -> list[str]:
        """Messages of all NACKs."""
        with self._lock:
            every = [request for stream in (*self.past, *self.streams) for request in stream.requests]
        return [request.error_detail.message for request in every if request.HasField("error_detail")]

    # ── the services ──

    def _authenticate(self, context: grpc.ServicerContext) -> dict[str, str]:
        metadata = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        if self.token is not None and metadata.get("authorization") != f"Bearer {self.token}":
            self.unauthenticated += 1
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "authentication failure")
        return metadata

    def _serve(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        stream = self.stream_type(self, self._authenticate(context))
        context.add_callback(lambda: stream.out.put(_END))

        def read() -> None:
            # The client goes away in the middle of it.
            with contextlib.suppress(grpc.RpcError, Exception):
                for raw in requests:
                    with self._lock:
                        stream.receive(Request.FromString(raw))
            stream.out.put(_END)

        threading.Thread(target=read, daemon=True).start()
        with self._lock:
            self.streams.append(stream)
        try:
            while (item := stream.out.get()) is not _END:
                yield item
        finally:
            with self._lock:
                self.streams.remove(stream)
                self.past.append(stream)

    def _issue(self, raw: bytes, context: grpc.ServicerContext) -> bytes:
        metadata = self._authenticate(context)
        request = certificate_pb2.IstioCertificateRequest.FromString(raw)
        identity = dict(request.metadata.items()).get("ImpersonatedIdentity", "")
        self.certificate_requests.append((str(identity), metadata))
        if self.ca is None:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "no CA here")
            raise AssertionError
        return certificate_pb2.IstioCertificateResponse(cert_chain=self.sign(request)).SerializeToString()

    def sign(self, request: certificate_pb2.IstioCertificateRequest) -> list[str]:
        """The chain for a request."""
        assert self.ca is not None
        csr = x509.load_pem_x509_csr(request.csr.encode())
        (name,) = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        leaf = pki.make_leaf(str(name.value), csr.public_key(), self.ca.signing_root, self.ca.key, time.time(), self.lifetime_s)
        return [pki.certificate_pem(leaf).decode(), self.ca.roots_pem.decode()]


def _describe(
    message: workload_pb2.Workload | workload_pb2.Service | authorization_pb2.Authorization,
) -> tuple[str, str, list[str]]:
    if isinstance(message, workload_pb2.Workload):
        return message.uid, ADDRESS, [f"{message.network}/{ipaddress.ip_address(raw)}" for raw in message.addresses]
    if isinstance(message, workload_pb2.Service):
        vips = [f"{vip.network}/{ipaddress.ip_address(vip.address)}" for vip in message.addresses]
        return f"{message.namespace}/{message.hostname}", ADDRESS, vips
    return f"{message.namespace}/{message.name}", AUTHORIZATION, []


def pod(name: str, *ips: str, **more: Any) -> workload_pb2.Workload:
    """A workload of the mesh."""
    given = {
        "uid": f"Kubernetes//Pod/ns/{name}",
        "name": name,
        "namespace": "ns",
        "tunnel_protocol": "HBONE",
        "workload_type": "POD",
    }
    return workload_pb2.Workload(addresses=[ipaddress.ip_address(ip).packed for ip in ips], **{**given, **more})


def policy(name: str, **more: Any) -> authorization_pb2.Authorization:
    """A DENY policy of the namespace "ns"."""
    return authorization_pb2.Authorization(**{"name": name, "namespace": "ns", "scope": "NAMESPACE", "action": "DENY", **more})


def write_root(path: Path, *roots: Root) -> Path:
    """The file that the client knows the server by; replaced at once, as Kubernetes does."""
    temporary = path.with_suffix(".new")
    temporary.write_bytes(b"".join(root.pem for root in roots))
    temporary.replace(path)
    return path
