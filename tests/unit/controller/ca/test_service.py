"""Certificate requests over real gRPC and TLS on loopback: what honest callers get, and what the others do not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from nodeproxy.controller.ca import keys as ca_keys
from nodeproxy.controller.ca import service as ca_service
from nodeproxy.controller.ca.keys import CaKeys
from nodeproxy.controller.ca.rotation import next_step
from nodeproxy.controller.ca.service import METHOD, SERVICE, CertificateService
from nodeproxy.controller.ca.serving import ServingCertificate
from nodeproxy.controller.ca.settings import CaSettings
from nodeproxy.controller.callers import Callers
from nodeproxy.identity import pki
from nodeproxy.proto.certificate_pb2 import IstioCertificateRequest, IstioCertificateResponse
from tests.unit.controller.fakes import Pods, Reviewer, review, token
from tests.unit.controller.material import KEYS, ca_certificate, verifies

SETTINGS = CaSettings(placement_wait_s=0.0)
AGENT, WAYPOINT = token(mark="agent"), token(mark="waypoint")
CART = "spiffe://cluster.local/ns/shop/sa/cart"
KEY = KEYS[0]


def csr(key: Any = KEY, *extensions: x509.ExtensionType) -> str:
    builder = x509.CertificateSigningRequestBuilder(x509.Name([]))
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


class World:
    """A controller's CA on a port, and callers that ask it."""

    def __init__(self, settings: CaSettings = SETTINGS) -> None:
        self.now = time.time()
        self.api = Reviewer({AGENT: review(), WAYPOINT: review("shop/waypoint", "waypoint-1", "w1", "n1")})
        self.pods = Pods(
            {
                ("nodeproxy-system", "agent", "u1"): ("n1", "nodeproxy"),
                ("shop", "waypoint-1", "w1"): ("n1", "waypoint"),
                ("shop", "cart-1", "c1"): ("n1", "cart"),
                ("shop", "till-1", "t1"): ("n2", "till"),
            }
        )
        self.keys: CaKeys | None = ca_keys.create("cluster.local", self.now)
        self.callers = Callers(self.api, clock=lambda: self.now)
        self.service = CertificateService(self.callers, self.pods, lambda: self.keys, settings, clock=lambda: self.now)
        self.serving = ServingCertificate(lambda: self.keys, ["localhost"])
        self.port = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[World]:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((self.service.handler(),))
        self.port = server.add_secure_port("127.0.0.1:0", self.serving.credentials())
        await server.start()
        try:
            yield self
        finally:
            await server.stop(None)
            await self.callers.close()

    @asynccontextmanager
    async def channel(self, roots: bytes | None = None) -> AsyncIterator[grpc.aio.Channel]:
        credentials = grpc.ssl_channel_credentials(roots or (self.keys.roots_pem() if self.keys else None))
        async with grpc.aio.secure_channel(f"localhost:{self.port}", credentials) as channel:
            yield channel

    async def ask(
        self, text: str, bearer: str = AGENT, impersonate: Any = None, lifetime_s: int = 0, raw: bytes | None = None
    ) -> list[str]:
        """The certificate chain that is answered."""
        request = IstioCertificateRequest(csr=text, validity_duration=lifetime_s)
        if impersonate is not None:
            request.metadata.update({"ImpersonatedIdentity": impersonate})
        async with self.channel() as channel:
            call = channel.unary_unary(f"/{SERVICE}/{METHOD}", response_deserializer=IstioCertificateResponse.FromString)
            body = request.SerializeToString() if raw is None else raw
            metadata = (("authorization", f"Bearer {bearer}"), ("clusterid", "Kubernetes"))
            answer = await call(body, metadata=metadata, timeout=20)
        return list(answer.cert_chain)

    async def refused(self, *args: Any, **options: Any) -> tuple[str, str]:
        """Status and text of a request that must fail."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.ask(*args, **options)
        return caught.value.code().name, caught.value.details() or ""


def leaf_of(chain: list[str]) -> x509.Certificate:
    return x509.load_pem_x509_certificate(chain[0].encode())


def names_of(leaf: x509.Certificate) -> list[str]:
    return [name.value for name in leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value]


def extensions_of(leaf: x509.Certificate) -> set[str]:
    return {type(extension.value).__name__ for extension in leaf.extensions}


@pytest.fixture(autouse=True)
def _no_leak(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    for bearer in (AGENT, WAYPOINT):
        assert bearer not in caplog.text
        assert bearer.split(".")[1] not in caplog.text


def test_its_own_and_that_of_a_pod_of_its_node() -> None:
    async def run() -> None:
        async with World().running() as world:
            own, cart = leaf_of(await world.ask(csr(), WAYPOINT)), leaf_of(await world.ask(csr(), impersonate=CART))
            assert names_of(own) == ["spiffe://cluster.local/ns/shop/sa/waypoint"]
            assert names_of(cart) == [CART]
            assert cart.public_key() == KEY.public_key()
            assert world.keys is not None
            assert verifies(cart, (), world.keys.roots, world.now)
            assert world.service.statistics().results == {"signed": 2}
            assert 0 < world.service.statistics().signing_s < 1

    asyncio.run(run())


def test_a_node_is_refused_what_does_not_run_on_it(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with World().running() as world:
            code, text = await world.refused(csr(), impersonate="spiffe://cluster.local/ns/shop/sa/till")
            assert code == "PERMISSION_DENIED"
            assert "shop/till runs on node n1" in text
            assert (await world.refused(csr(), WAYPOINT, impersonate=CART))[0] == "PERMISSION_DENIED"
            assert (await world.refused(csr(), token(mark="forged")))[0] == "UNAUTHENTICATED"
            assert world.service.statistics().results == {"not_on_node": 1, "not_trusted": 1, "token_rejected": 1}
            async with asyncio.timeout(10):  # the answer is with the caller before the handler has returned
                while world.service.statistics().waiting:
                    await asyncio.sleep(0)

    asyncio.run(run())
    line = next(record.message for record in caplog.records if "not_on_node" in record.message)
    for part in ("nodeproxy-system/agent", "nodeproxy-system/nodeproxy", "node n1", "spiffe://cluster.local/ns/shop/sa/till"):
        assert part in line


def test_nothing_that_a_request_asks_for_gets_into_the_certificate() -> None:
    wishes = (
        x509.SubjectAlternativeName([x509.UniformResourceIdentifier(CART), x509.DNSName("istiod.istio-system.svc")]),
        x509.BasicConstraints(ca=True, path_length=None),
        x509.KeyUsage(True, True, True, True, True, True, True, False, False),
        x509.NameConstraints([x509.DNSName("x")], None),
    )

    async def run() -> None:
        async with World().running() as world:
            plain = leaf_of(await world.ask(csr(), WAYPOINT))
            wishing = leaf_of(await world.ask(csr(KEY, *wishes), WAYPOINT))
            assert names_of(wishing) == names_of(plain)
            assert extensions_of(wishing) == extensions_of(plain)
            assert not wishing.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
            assert not wishing.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign

    asyncio.run(run())


def test_requests_that_are_none() -> None:
    async def run() -> None:
        async with World().running() as world:
            for text in ("", "garbage", csr()[:-60], "x" * 20_000):
                assert (await world.refused(text))[0] == "INVALID_ARGUMENT"
            for raw in (b"\xff\xff", b"\x0a\xff", b"x" * 200_000):
                assert (await world.refused("", raw=raw))[0] == "INVALID_ARGUMENT"
            for identity in ("", "x" * 3000, "spiffe://cluster.local/ns/a/sa/b/c", 7, {"a": "b"}, [CART]):
                if identity:
                    assert (await world.refused(csr(), impersonate=identity))[0] == "INVALID_ARGUMENT"
            assert set(world.service.statistics().results) == {"bad_csr", "bad_request", "bad_identity"}

    asyncio.run(run())


def test_lifetimes_are_bounded() -> None:
    async def run() -> None:
        async with World().running() as world:
            for asked, given in ((0, 86_400), (-5, 86_400), (3600, 3600), (1, 60), (2**62, 86_400)):
                leaf = leaf_of(await world.ask(csr(), WAYPOINT, lifetime_s=asked))
                assert leaf.not_valid_after_utc.timestamp() == int(world.now + given)

    asyncio.run(run())


def test_the_chain_of_an_intermediate_and_during_a_change_of_root() -> None:
    async def run() -> None:
        async with World().running() as world:
            assert world.keys is not None
            first = world.keys.certificate
            for later in (0.0, SETTINGS.root_overlap_s):
                world.keys = next_step(world.keys, SETTINGS, world.now + later, asked=True)
                assert world.keys is not None
            leaf, cross, roots = await world.ask(csr(), WAYPOINT)
            assert len(x509.load_pem_x509_certificates(roots.encode())) == 2
            between = x509.load_pem_x509_certificate(cross.encode())
            assert verifies(leaf_of([leaf]), [between], [first], world.now)
            root = ca_certificate("root", KEYS[1])
            lower = ca_certificate("lower", KEYS[2], root, KEYS[1])
            world.keys = CaKeys(certificate=lower, key=KEYS[2], chain=(lower,), roots=(root,))
            chain = await world.ask(csr(), WAYPOINT)
            assert [part.encode() for part in chain[1:]] == [pki.certificate_pem(lower), pki.certificate_pem(root)]

    asyncio.run(run())


def test_without_a_key_or_with_one_that_has_ended() -> None:
    async def run() -> None:
        async with World().running() as world:
            assert world.keys is not None
            roots, root = world.keys.roots_pem(), ca_certificate("root", KEYS[1], days=(-9, -1))
            body, metadata = IstioCertificateRequest(csr=csr()).SerializeToString(), (("authorization", f"Bearer {WAYPOINT}"),)
            for keys in (None, CaKeys(certificate=root, key=KEYS[1], roots=(root,))):
                world.keys = keys
                async with world.channel(roots) as channel:
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await channel.unary_unary(f"/{SERVICE}/{METHOD}")(body, metadata=metadata)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert world.service.statistics().results == {"no_key": 2}

    asyncio.run(run())


def test_a_node_may_ask_so_often_and_all_so_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ca_service, "PER_CALLER_BURST", 3.0)
    monkeypatch.setattr(ca_service, "PER_CALLER_RATE", 0.001)

    async def run() -> None:
        async with World().running() as world:
            for _ in range(3):
                await world.ask(csr())
            assert (await world.refused(csr()))[0] == "RESOURCE_EXHAUSTED"
            await world.ask(csr(), WAYPOINT)
            monkeypatch.setattr(ca_service, "MAX_CALLERS", 1)
            await world.ask(csr(), WAYPOINT)
            monkeypatch.setattr(ca_service, "MAX_REQUESTS", 0)
            assert (await world.refused(csr(), WAYPOINT))[0] == "UNAVAILABLE"
            assert world.service.statistics().results == {"signed": 5, "rate": 1, "busy": 1}

    asyncio.run(run())


def test_a_new_serving_certificate_ends_no_connection() -> None:
    async def run() -> None:
        async with World().running() as world, world.channel() as standing:
            call = standing.unary_unary(f"/{SERVICE}/{METHOD}", response_deserializer=IstioCertificateResponse.FromString)
            body = IstioCertificateRequest(csr=csr()).SerializeToString()
            metadata = (("authorization", f"Bearer {WAYPOINT}"),)
            await call(body, metadata=metadata)
            assert world.keys is not None
            old_roots = world.keys.roots_pem()
            for later in (0.0, SETTINGS.root_overlap_s):
                world.keys = next_step(world.keys, SETTINGS, world.now + later, asked=True)
                assert world.keys is not None
            answer = await call(body, metadata=metadata)
            async with world.channel(old_roots) as late, world.channel(pki.certificate_pem(world.keys.certificate)) as early:
                for channel in (late, early):
                    await channel.unary_unary(f"/{SERVICE}/{METHOD}")(body, metadata=metadata)
            assert len(answer.cert_chain) == 3

    asyncio.run(run())
