"""A TokenReview of the Kubernetes API: what is asked, and what its answer says of the caller.

The API server alone judges a token.  What stands in the token itself is read for two things only: to give a refusal its name, and
to keep no answer for longer than the token lives.  Invariant: neither token nor anything that a caller chose is in a message.  It
must not know connections, caches or gRPC.
"""

from __future__ import annotations

import base64
import binascii

import msgspec

from nodeproxy.controller.refusals import Refused, refuse
from nodeproxy.errors import CallerError

PATH = "/apis/authentication.k8s.io/v1/tokenreviews"
# A bound service account token has some 1.2 KiB; an HTTP/2 header list of gRPC is 16 KiB at most.
MAX_TOKEN_BYTES = 8 << 10
_ACCOUNT_PREFIX = "system:serviceaccount:"
# The keys of `extra`: k8s.io/apiserver/pkg/authentication/serviceaccount, since Kubernetes 1.21 (pod) and 1.30 (node).
_POD = "authentication.kubernetes.io/pod-name"
_POD_UID = "authentication.kubernetes.io/pod-uid"
_NODE = "authentication.kubernetes.io/node-name"


class Caller(msgspec.Struct, frozen=True):
    """A pod that proved who it is.  node: where it runs, "" if the API server's tokens do not say (before Kubernetes 1.30)."""

    namespace: str
    service_account: str
    pod: str
    pod_uid: str
    node: str = ""

    @property
    def account(self) -> str:
        """`namespace/service account`."""
        return f"{self.namespace}/{self.service_account}"

    def __str__(self) -> str:
        return f"pod {self.namespace}/{self.pod} ({self.account})" + (f" on node {self.node}" if self.node else "")


class Claims(msgspec.Struct, frozen=True):
    """What a token says of itself, unproven.  exp: when it ends, seconds since the epoch."""

    exp: float | None = None
    aud: str | list[str] = []

    def audiences(self) -> list[str]:
        """The audiences that it names."""
        return [self.aud] if isinstance(self.aud, str) else self.aud


class _User(msgspec.Struct, frozen=True):
    username: str = ""
    extra: dict[str, list[str]] = {}


class _Status(msgspec.Struct, frozen=True):
    authenticated: bool = False
    user: _User = _User()
    audiences: list[str] = []


class _Review(msgspec.Struct, frozen=True):
    status: _Status = _Status()


def claims_of(token: str) -> Claims:
    """What the token says of itself, unproven; CallerError if it is no JWT (RFC 7519)."""
    parts = token.split(".")
    if len(token) <= MAX_TOKEN_BYTES and len(parts) == 3 and all(parts):
        try:
            payload = base64.b64decode(parts[1] + "=" * (-len(parts[1]) % 4), altchars=b"-_", validate=True)
            return msgspec.json.decode(payload, type=Claims)
        except (binascii.Error, ValueError, msgspec.DecodeError, RecursionError):
            pass  # said below: whatever is wrong with it, it is no token of this API server
    raise refuse(Refused.TOKEN_MALFORMED, "the bearer token is no service account token: send the one mounted into the pod")


def encode(token: str, audience: str) -> bytes:
    """The request's body."""
    return msgspec.json.encode(
        {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token, "audiences": [audience]}}
    )


def judge(answer: bytes, claims: Claims, audience: str, now_s: float) -> Caller:
    """Who the API server says it is; CallerError if it does not say, or if it is no pod."""
    try:
        status = msgspec.json.decode(answer, type=_Review).status
    except msgspec.DecodeError as exc:
        raise refuse(Refused.REVIEW_UNAVAILABLE, "the API server's TokenReview can't be read: try again") from exc
    if not status.authenticated:
        raise _rejected(claims, audience, now_s)
    # "A client […] must verify that a compatible audience identifier is returned in the status.audiences field to ensure that the
    # TokenReview server is audience aware." (TokenReviewSpec)
    if audience not in status.audiences:
        raise refuse(Refused.TOKEN_AUDIENCE, f"the token is not made for {audience}: mount one with this audience")
    namespace, _, account = status.user.username.removeprefix(_ACCOUNT_PREFIX).partition(":")
    pod, uid = _first(status.user, _POD), _first(status.user, _POD_UID)
    if not status.user.username.startswith(_ACCOUNT_PREFIX) or not namespace or not account or not pod or not uid:
        raise refuse(Refused.NOT_A_POD, "the token is bound to no pod: send the projected token that is mounted into the pod")
    return Caller(namespace, account, pod, uid, _first(status.user, _NODE))


def _rejected(claims: Claims, audience: str, now_s: float) -> CallerError:
    if claims.exp is not None and claims.exp <= now_s:
        return refuse(Refused.TOKEN_EXPIRED, "the token has expired: read its file again, the kubelet renews it")
    if audience not in claims.audiences():
        return refuse(Refused.TOKEN_AUDIENCE, f"the token is not made for {audience}: mount one with this audience")
    return refuse(Refused.TOKEN_REJECTED, "the API server does not accept the token: it is forged, or its pod is gone")


def _first(user: _User, key: str) -> str:
    values = user.extra.get(key)
    return values[0] if values else ""
