"""The certificate service that nodes and waypoints ask, Istio's by name and form: `CreateCertificate`.

Invariants: nothing of a request gets into a certificate but its public key; who is refused is told, counted and logged by one
name; nothing is signed for longer than the settings say.  It must not know where keys come from, nor how pods are watched.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import NoReturn, Protocol

import grpc
import msgspec
from google.protobuf.message import DecodeError

from nodeproxy.controller.bucket import Bucket
from nodeproxy.controller.ca.identity import Authorizer
from nodeproxy.controller.ca.keys import CaKeys
from nodeproxy.controller.ca.settings import CaSettings
from nodeproxy.controller.placement import Placement
from nodeproxy.controller.refusals import Refused, refuse
from nodeproxy.controller.token_review import Caller
from nodeproxy.errors import CallerError, IdentityError
from nodeproxy.identity.csr import MAX_CSR_BYTES, public_key_of
from nodeproxy.identity.pki import PublicKey, certificate_pem
from nodeproxy.proto.certificate_pb2 import IstioCertificateRequest, IstioCertificateResponse

log = logging.getLogger(__name__)

SERVICE = "istio.v1.auth.IstioCertificateService"
METHOD = "CreateCertificate"
IMPERSONATED_IDENTITY = "ImpersonatedIdentity"
MAX_REQUEST_BYTES = MAX_CSR_BYTES + (16 << 10)
# Under way in all.  One takes 0.5 ms of CPU [measured: P-256 request and CA; 2.1 ms with an RSA CA of 4096 bits], so they are
# signed where they come in; what is long is the wait for the API server or for a pod to be seen.
MAX_REQUESTS = 1024
# A node of 500 pods, each with an identity of its own, that starts anew; and what it may ask for after that.
PER_CALLER_BURST = 500.0
PER_CALLER_RATE = 10.0
MAX_CALLERS = 10_000
_LOG_LINES_PER_S = 10.0
_LOG_BURST = 100.0


class Authenticator(Protocol):
    """What says who calls: `callers.Callers`."""

    async def authenticate(self, metadata: tuple[tuple[str, str | bytes], ...], peer: str = "") -> Caller:
        """The caller; CallerError if it is nobody."""
        ...


class CertificateStatistics(msgspec.Struct, frozen=True):
    """results: requests by what came of them ("signed" or a refusal's name).  signing_s: CPU's time spent on requests, in all."""

    results: Mapping[str, int]
    signing_s: float
    waiting: int


class CertificateService:
    """Answers certificate requests.

    keys: the CA's as they are now, None before there are any.  clock: seconds since the epoch.
    """

    def __init__(
        self,
        callers: Authenticator,
        placement: Placement,
        keys: Callable[[], CaKeys | None],
        settings: CaSettings,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._callers = callers
        self._authorizer = Authorizer(placement, settings)
        self._keys = keys
        self._settings = settings
        self._clock = clock
        self._results: Counter[str] = Counter()
        self._signing_s = 0.0
        self._waiting = 0
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()
        self._log_lines = Bucket(_LOG_LINES_PER_S, _LOG_BURST)

    def handler(self) -> grpc.GenericRpcHandler:
        """For `grpc.aio.Server.add_generic_rpc_handlers`."""
        method: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(self.create_certificate)
        return grpc.method_handlers_generic_handler(SERVICE, {METHOD: method})

    def statistics(self) -> CertificateStatistics:
        """For metrics."""
        return CertificateStatistics(dict(self._results), self._signing_s, self._waiting)

    async def create_certificate(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        """One request, as bytes; the answer as bytes."""
        if self._waiting >= MAX_REQUESTS:
            await self._abort(context, refuse(Refused.BUSY, "the CA has too many requests: try again"))
        self._waiting += 1
        try:
            caller = await self._callers.authenticate(tuple(context.invocation_metadata() or ()), context.peer())
            answer = await self._answer(caller, request)
        except CallerError as exc:
            await self._abort(context, exc)
        finally:
            self._waiting -= 1
        self._results["signed"] += 1
        return answer

    async def _abort(self, context: grpc.aio.ServicerContext[bytes, bytes], error: CallerError) -> NoReturn:
        self._results[error.reason] += 1
        await context.abort(getattr(grpc.StatusCode, error.code), str(error))
        raise error  # abort() has raised already, which its type does not say

    async def _answer(self, caller: Caller, body: bytes) -> bytes:
        impersonated = ""
        try:
            self._check_rate(caller)
            request = _parse(body)
            impersonated = _impersonated(request)
            begin = time.thread_time()
            try:
                key = public_key_of(request.csr)
            except IdentityError as exc:
                raise refuse(Refused.BAD_CSR, str(exc)) from exc
            self._signing_s += time.thread_time() - begin
            identity = await self._authorizer.identity(caller, impersonated)
            return self._sign(str(identity), key, request.validity_duration)
        except CallerError as exc:
            if self._log_lines.take():
                log.warning("no certificate for %s, asked for %.200r: %s (%s)", caller, impersonated or "itself", exc.reason, exc)
            raise

    def _check_rate(self, caller: Caller) -> None:
        """One bucket for each pod that calls: so nobody uses up what is its node proxy's, of which a node has one."""
        bucket = self._buckets.get(caller.pod_uid)
        if bucket is None:
            bucket = self._buckets[caller.pod_uid] = Bucket(PER_CALLER_RATE, PER_CALLER_BURST)
            if len(self._buckets) > MAX_CALLERS:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(caller.pod_uid)
        if not bucket.take():
            raise refuse(Refused.RATE, f"this pod asks for more than {PER_CALLER_RATE:.0f} certificates a second: wait")

    def _sign(self, identity: str, key: PublicKey, asked_s: int) -> bytes:
        keys = self._keys()
        if keys is None:
            raise refuse(Refused.NO_KEY, "the CA has no key yet: try again")
        begin = time.thread_time()
        try:
            leaf = keys.sign(identity, key, self._clock(), self._lifetime_s(asked_s))
        except IdentityError as exc:
            log.error("the CA can't sign: %s", exc)
            raise refuse(Refused.NO_KEY, "the CA's certificate has ended: its operator must renew it") from exc
        chain = [certificate_pem(certificate).decode() for certificate in (leaf, *keys.chain)]
        self._signing_s += time.thread_time() - begin
        # "the root cert is the last element", and in one piece however many roots there are (istio's certificate service).
        return IstioCertificateResponse(cert_chain=[*chain, keys.roots_pem().decode()]).SerializeToString()

    def _lifetime_s(self, asked_s: int) -> float:
        if asked_s <= 0:
            return self._settings.default_lifetime_s
        return min(max(float(asked_s), self._settings.min_lifetime_s), self._settings.max_lifetime_s)


def _parse(body: bytes) -> IstioCertificateRequest:
    if len(body) > MAX_REQUEST_BYTES:
        raise refuse(Refused.BAD_REQUEST, f"the request has more than {MAX_REQUEST_BYTES} bytes")
    try:
        return IstioCertificateRequest.FromString(body)
    except DecodeError as exc:
        raise refuse(Refused.BAD_REQUEST, "the request is no IstioCertificateRequest") from exc


def _impersonated(request: IstioCertificateRequest) -> str:
    """The identity that is asked for, "" for the caller's own."""
    if IMPERSONATED_IDENTITY not in request.metadata.fields:
        return ""
    value = request.metadata.fields[IMPERSONATED_IDENTITY]
    if value.WhichOneof("kind") != "string_value":
        raise refuse(Refused.BAD_REQUEST, f"{IMPERSONATED_IDENTITY} is no string")
    return value.string_value
