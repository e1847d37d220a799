"""The controller's CA against a real API server: replicas with the least rights that they need, and real tokens."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from nodeproxy.controller.ca.authority import Ca
from nodeproxy.controller.ca.keys import CaKeys
from nodeproxy.controller.ca.service import METHOD, SERVICE
from nodeproxy.controller.ca.settings import CaSettings
from nodeproxy.identity import pki
from nodeproxy.kube.client import KubeClient
from nodeproxy.kube.reflector import Reflector
from nodeproxy.proto.certificate_pb2 import IstioCertificateRequest, IstioCertificateResponse
from tests.cluster.apiserver import ApiServer
from tests.cluster.kinds import make

HOME = "nodeproxy-system"
SECRET = "nodeproxy-ca"
DEADLINE_S = 30.0
# What the CA needs of the API server, and nothing more.
CLUSTER_RULES = [
    {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]},
    {
        "apiGroups": [""],
        "resources": ["configmaps"],
        "resourceNames": ["nodeproxy-ca-root-cert"],
        "verbs": ["list", "watch", "create", "patch"],
    },
]
HOME_RULES = [
    {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]},
    {"apiGroups": [""], "resources": ["secrets"], "resourceNames": [SECRET], "verbs": ["get", "patch"]},
]
# Which pods there are is watched by another part of the controller.
POD_RULES = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]}]


def install(api: ApiServer) -> None:
    """The controller's namespace, account and rights."""
    subject = [{"kind": "ServiceAccount", "name": "controller", "namespace": HOME}]
    group = "rbac.authorization.k8s.io"
    role, cluster_role = ({"apiGroup": group, "kind": kind, "name": "controller"} for kind in ("Role", "ClusterRole"))
    api.create(
        make("Namespace", HOME),
        make("ServiceAccount", "controller", HOME),
        make("ClusterRole", "controller", rules=CLUSTER_RULES + POD_RULES),
        make("Role", "controller", HOME, rules=HOME_RULES),
        make("ClusterRoleBinding", "controller", subjects=subject, roleRef=cluster_role),
        make("RoleBinding", "controller", HOME, subjects=subject, roleRef=role),
    )


class _Meta(msgspec.Struct):
    uid: str


class _Spec(msgspec.Struct):
    nodeName: str = ""
    serviceAccountName: str = "default"


class _Pod(msgspec.Struct):
    metadata: _Meta
    spec: _Spec


class WatchedPods:
    """A placement that a watch fills."""

    def __init__(self) -> None:
        self.pods: dict[str, _Pod] = {}
        self.is_synced = False

    def sync(self) -> None:
        self.is_synced = True

    def observe(self, key: str, pod: _Pod | None) -> None:
        if pod is None:
            self.pods.pop(key, None)
        else:
            self.pods[key] = pod

    def synced(self) -> bool:
        return self.is_synced

    def node_of(self, namespace: str, pod: str, uid: str) -> str:
        found = self.pods.get(f"{namespace}/{pod}")
        return found.spec.nodeName if found is not None and found.metadata.uid == uid else ""

    def runs_on(self, node: str, namespace: str, service_account: str) -> bool:
        return any(
            key.startswith(namespace + "/") and (pod.spec.nodeName, pod.spec.serviceAccountName) == (node, service_account)
            for key, pod in self.pods.items()
        )


class Replica:
    """One controller's CA at work.  shift_s: how far its clock is ahead, which a test changes.  leads: whether it leads."""

    def __init__(self, client: KubeClient, settings: CaSettings, own: bool = True) -> None:
        self.shift_s = 0.0
        self.leads = False
        self.pods = WatchedPods()
        self.port = 0
        lists = asyncio.Semaphore(2)
        self.ca = Ca(client, self.pods, settings, namespace=HOME, own=own, lists=lists, clock=self.now)
        self._watch = Reflector(
            client, ["/api/v1/pods"], _Pod, on_change=self.pods.observe, on_synced=self.pods.sync, lists=lists
        )

    def now(self) -> float:
        return time.time() + self.shift_s

    @property
    def keys(self) -> CaKeys:
        assert self.ca.store.keys is not None
        return self.ca.store.keys

    def callers(self) -> dict[str, int]:
        """Authentications, by what came of them."""
        return dict(self.ca.callers.statistics().results)

    def results(self) -> dict[str, int]:
        """Requests, by what came of them."""
        return dict(self.ca.service.statistics().results)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        await self.ca.load()
        server = grpc.aio.server()
        self.port = self.ca.open_port(server, "127.0.0.1:0", ["localhost"])
        await server.start()
        tasks = [asyncio.create_task(coroutine) for coroutine in (self._watch.run(), self.ca.run(lambda: self.leads, poll_s=0.1))]
        try:
            await until(self.pods.synced, "the pods are seen")
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await server.stop(None)
            await self.ca.close()

    async def ask(self, token: str, impersonate: str = "") -> list[x509.Certificate]:
        """Leaf and chain, without the roots; grpc.aio.AioRpcError."""
        request = IstioCertificateRequest(csr=csr())
        if impersonate:
            request.metadata.update({"ImpersonatedIdentity": impersonate})
        credentials = grpc.ssl_channel_credentials(self.keys.roots_pem())
        async with grpc.aio.secure_channel(f"localhost:{self.port}", credentials) as channel:
            call = channel.unary_unary(f"/{SERVICE}/{METHOD}", response_deserializer=IstioCertificateResponse.FromString)
            answer = await call(request.SerializeToString(), metadata=(("authorization", f"Bearer {token}"),), timeout=20)
        return [x509.load_pem_x509_certificate(part.encode()) for part in answer.cert_chain[:-1]]

    async def refused(self, token: str, impersonate: str = "") -> str:
        """The status that a request fails with."""
        try:
            await self.ask(token, impersonate)
        except grpc.aio.AioRpcError as exc:
            return exc.code().name
        raise AssertionError("it was not refused")


@asynccontextmanager
async def client_of(api: ApiServer) -> AsyncIterator[KubeClient]:
    """A connection with the controller's own account."""
    client = await KubeClient.connect(api.kubeconfig(api.token(HOME, "controller"), "controller"))
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def replica_of(api: ApiServer, settings: CaSettings | None = None, **options: Any) -> AsyncIterator[Replica]:
    """A replica at work."""
    async with client_of(api) as client:
        replica = Replica(client, settings or CaSettings(), **options)
        async with replica.running():
            yield replica


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"it never came to be that {what}"
        await asyncio.sleep(0.02)


def csr() -> str:
    """A request of a new key."""
    builder = x509.CertificateSigningRequestBuilder(x509.Name([]))
    return builder.sign(pki.new_key(), hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def account_key(api: ApiServer) -> ec.EllipticCurvePrivateKey:
    """What the API server signs tokens with."""
    key = load_pem_private_key((api.directory / "accounts.pem").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def changed_token(token: str, key: ec.EllipticCurvePrivateKey, **claims: Any) -> str:
    """The token with other claims, signed (ES256) by `key`."""
    header, payload, _ = token.split(".")
    body = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))) | claims
    return signed_token(json.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4))), body, key)


def signed_token(header: dict[str, Any], body: dict[str, Any], key: ec.EllipticCurvePrivateKey) -> str:
    """A JWT."""
    text = ".".join(_encoded(json.dumps(part).encode()) for part in (header, body))
    r, s = decode_dss_signature(key.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{text}.{_encoded(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")
