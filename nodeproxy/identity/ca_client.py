"""A CA at the other end of gRPC, istiod or nodeproxy's controller: IstioCertificateService/CreateCertificate.

Invariants: a certificate is used only if it is what was asked for (`chain`); the trusted roots are those that came with the last
certificate, as with ztunnel, and never those of the file that the CA's own server is checked by.  It must not know who asks or
when to renew.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import grpc
import grpc.aio

from nodeproxy.errors import IdentityError
from nodeproxy.identity import pki
from nodeproxy.identity.certificate import IssuedCertificate
from nodeproxy.identity.chain import check_answer, signing_request
from nodeproxy.identity.control_plane import ControlPlane, describe
from nodeproxy.proto import certificate_pb2

METHOD = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
# With the certificate manager's limit for a request, 10 s, two servers can be asked.
REQUEST_TIMEOUT_S = 4.5
# Another server may do better; anything else is an answer.
_NO_ANSWER = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})

log = logging.getLogger(__name__)


class CaClient:
    """A `CertificateAuthority`.  One channel is kept as long as it is good and the file of roots stays as it was."""

    def __init__(self, control: ControlPlane, *, ttl_s: int, roots: bytes = b"", clock: Callable[[], float] = time.time) -> None:
        """ttl_s: the lifetime to ask for.  roots: those that are trusted until the CA says others, b"": none."""
        self._control = control
        self._ttl_s = ttl_s
        self._roots = roots
        self._clock = clock
        self._channel: grpc.aio.Channel | None = None
        self._channel_roots = b""
        self._vouched: bytes | None = None  # the file of roots as it was when the CA was last asked
        self._closing: set[asyncio.Task[None]] = set()

    async def issue(self, identity: str) -> IssuedCertificate:
        """See `CertificateAuthority`."""
        key = pki.new_key()
        request = certificate_pb2.IstioCertificateRequest(
            csr=signing_request(identity, key).decode("ascii"), validity_duration=self._ttl_s
        )
        request.metadata["ImpersonatedIdentity"] = identity
        answer = await self._ask(request)
        issued, roots = check_answer(identity, key, answer.cert_chain, self._clock())
        if roots != self._roots:
            log.info("the CA says new trusted roots" if self._roots else "the CA says the trusted roots")
            self._roots = roots
        return issued

    def roots(self) -> bytes:
        """See `CertificateAuthority`."""
        return self._roots

    def rotated(self) -> bool:
        """See `CertificateAuthority`: when the roots that vouch for the CA change, those that it gives out may, too.

        What was kept from a former agent is asked for again once: nobody watched meanwhile.
        """
        if self._vouched is None and not self._roots:
            return False  # nothing was asked for yet
        try:
            roots = self._control.roots()
        except IdentityError:
            return False  # the next request says so
        if roots == self._vouched:
            return False
        self._vouched = roots
        return True

    async def close(self) -> None:
        """Let go of the channels."""
        self._drop()
        await asyncio.gather(*self._closing)

    async def _ask(self, request: certificate_pb2.IstioCertificateRequest) -> certificate_pb2.IstioCertificateResponse:
        failures = []
        for _ in range(len(self._control)):
            server = self._control.current()
            try:
                return await self._call(request)
            except grpc.aio.AioRpcError as exc:
                if exc.code() not in _NO_ANSWER:
                    raise IdentityError(f"the CA {server} refused: {describe(exc)}") from exc
                failures.append(f"{server}: {describe(exc)}")
                if self._control.current() is server:  # else another request has turned already
                    self._drop()
                    self._control.turn()
        raise IdentityError(f"no CA can be reached: {'; '.join(failures)}")

    async def _call(self, request: certificate_pb2.IstioCertificateRequest) -> certificate_pb2.IstioCertificateResponse:
        roots = self._control.roots()
        if self._channel is None or roots != self._channel_roots:
            self._drop()
            self._channel, self._channel_roots = self._control.channel(roots), roots
        self._vouched = roots
        call = self._channel.unary_unary(
            METHOD,
            request_serializer=certificate_pb2.IstioCertificateRequest.SerializeToString,
            response_deserializer=certificate_pb2.IstioCertificateResponse.FromString,
        )
        response: certificate_pb2.IstioCertificateResponse = await call(
            request, timeout=REQUEST_TIMEOUT_S, metadata=self._control.metadata()
        )
        return response

    def _drop(self) -> None:
        """Ask by another channel from now on; what is under way may end."""
        channel, self._channel = self._channel, None
        if channel is not None:
            task = asyncio.get_running_loop().create_task(channel.close(REQUEST_TIMEOUT_S))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
