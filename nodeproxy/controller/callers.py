"""Who calls the controller: each gRPC request's bearer token, judged by the API server (TokenReview).

Invariants: without the API server nobody new is let in (closed); an answer is kept for a minute at most and never beyond the
token's end, under a hash of the token; tokens are never kept, logged or said.  It must not know what a caller asks for.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping

import msgspec

from nodeproxy.controller import token_review
from nodeproxy.controller.api import Api
from nodeproxy.controller.bucket import Bucket
from nodeproxy.controller.refusals import Refused, passes, refuse
from nodeproxy.controller.token_review import Caller, Claims
from nodeproxy.errors import CallerError, ClusterError

__all__ = ["Caller", "CallerStatistics", "Callers"]

log = logging.getLogger(__name__)

# What istiod's clients mount: the audience of the projected token `istio-token`.
DEFAULT_AUDIENCE = "istio-ca"
# A pod that is deleted is known for this long at most; a node's agent asks for some 100 certificates within it as it starts.
KEEP_S = 60.0
# A pod's token may be refused because the API server's cache has not seen the pod yet: it is soon asked about again.
KEEP_REFUSAL_S = 2.0
# 5,000 nodes with two tokens each, during a renewal.
MAX_KEPT = 10_000
# A review takes the API server 3 ms [measured, one core's worth]: 1,000 nodes that come back at once are known within seconds.
MAX_REVIEWS = 16
MAX_WAITING = 2048
# Of one address: who sends forged tokens without end keeps 8 turns ahead of the others waiting, which is 25 ms.
MAX_WAITING_OF_A_PEER = 128
REVIEW_TIMEOUT_S = 5.0
# Whoever can reach the port can be refused as often as it likes.
_LOG_LINES_PER_S = 5.0
_LOG_BURST = 50.0

_Outcome = Caller | CallerError


class CallerStatistics(msgspec.Struct, frozen=True):
    """results: authentications by what came of them ("authenticated" or a refusal's name).

    reviews: how often the API server was asked.  kept: answers in the cache.
    """

    results: Mapping[str, int]
    reviews: int
    kept: int


class _Kept(msgspec.Struct, frozen=True):
    outcome: _Outcome
    since: float
    until: float


class Callers:
    """Authenticates callers.  clock: seconds since the epoch; it is compared with the tokens' end."""

    def __init__(self, api: Api, *, audience: str = DEFAULT_AUDIENCE, clock: Callable[[], float] = time.time) -> None:
        self._api = api
        self._audience = audience
        self._clock = clock
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()
        self._reviews: dict[bytes, asyncio.Task[_Outcome]] = {}
        self._peers: Counter[str] = Counter()  # reviews under way, by who was the first to want them
        self._turns = asyncio.Semaphore(MAX_REVIEWS)
        self._log_lines = Bucket(_LOG_LINES_PER_S, _LOG_BURST)
        self._results: Counter[str] = Counter()
        self._asked = 0

    async def authenticate(self, metadata: Iterable[tuple[str, str | bytes]], peer: str = "") -> Caller:
        """Who sent a request with this metadata.  peer: its address, for the log.  CallerError: nobody that is let in."""
        try:
            caller = await self._authenticate(metadata, peer.rpartition(":")[0])
        except CallerError as exc:
            self._results[exc.reason] += 1
            if self._log_lines.take():
                log.warning("a caller from %s is refused: %s (%s)", peer or "an unknown address", exc.reason, exc)
            raise
        self._results["authenticated"] += 1
        return caller

    def statistics(self) -> CallerStatistics:
        """For metrics."""
        return CallerStatistics(dict(self._results), self._asked, len(self._kept))

    async def close(self) -> None:
        """End what is under way; its callers get a CallerError."""
        reviews = list(self._reviews.values())
        for review in reviews:
            review.cancel()
        await asyncio.gather(*reviews, return_exceptions=True)

    async def _authenticate(self, metadata: Iterable[tuple[str, str | bytes]], host: str) -> Caller:
        token = _bearer(metadata)
        key = hashlib.sha256(token.encode()).digest()
        outcome = self._known(key)
        if outcome is None:
            review = self._reviews.get(key)
            if review is None:
                review = self._begin(key, token, host)
            # Several wait for one review; that one of them goes away does not end it for the others.
            await asyncio.wait([review])
            if review.cancelled():
                raise refuse(Refused.REVIEW_UNAVAILABLE, "the controller ends: ask another replica")
            outcome = review.result()
        if isinstance(outcome, CallerError):
            raise _copy(outcome)
        return outcome

    def _known(self, key: bytes) -> _Outcome | None:
        kept = self._kept.get(key)
        if kept is None:
            return None
        # A clock that was set back makes an answer unknown, not younger.
        if kept.since <= self._clock() < kept.until:
            return kept.outcome
        del self._kept[key]
        return None

    def _begin(self, key: bytes, token: str, host: str) -> asyncio.Task[_Outcome]:
        claims = token_review.claims_of(token)
        if len(self._reviews) >= MAX_WAITING or self._peers[host] >= MAX_WAITING_OF_A_PEER:
            raise refuse(Refused.BUSY, "too many callers wait for the API server: try again")
        review = asyncio.create_task(self._review(key, token, claims), name="token review")
        self._reviews[key] = review
        self._peers[host] += 1

        def ended(_: object) -> None:
            del self._reviews[key]
            self._peers[host] -= 1
            if not self._peers[host]:
                del self._peers[host]

        review.add_done_callback(ended)
        return review

    async def _review(self, key: bytes, token: str, claims: Claims) -> _Outcome:
        try:
            caller = await self._ask(token, claims)
        except CallerError as exc:
            refused = _copy(exc)
            if not passes(refused):
                self._keep(key, refused, self._clock() + KEEP_REFUSAL_S)
            return refused
        until = self._clock() + KEEP_S
        self._keep(key, caller, until if claims.exp is None else min(until, claims.exp))
        return caller

    async def _ask(self, token: str, claims: Claims) -> Caller:
        async with self._turns:
            self._asked += 1
            try:
                answer = await self._api.request(
                    "POST",
                    token_review.PATH,
                    body=token_review.encode(token, self._audience),
                    timeout_s=REVIEW_TIMEOUT_S,
                )
            except ClusterError as exc:
                if self._log_lines.take():
                    log.warning("nobody new can be authenticated: %s", exc)
                raise refuse(Refused.REVIEW_UNAVAILABLE, "the API server can't be asked about the token: try again") from exc
        return token_review.judge(answer, claims, self._audience, self._clock())

    def _keep(self, key: bytes, outcome: _Outcome, until: float) -> None:
        self._kept[key] = _Kept(outcome, self._clock(), until)
        if len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)


def _copy(error: CallerError) -> CallerError:
    """The same that was never raised: a raised error holds its frames, and they hold the token."""
    return CallerError(error.reason, str(error), error.code)


def _bearer(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """The token of the one `authorization` entry."""
    values = [value for name, value in metadata if name == "authorization"]
    if len(values) == 1 and isinstance(values[0], str) and values[0].isascii():
        scheme, _, token = values[0].partition(" ")
        if scheme.lower() == "bearer" and token.strip():  # RFC 7235, section 2.1: the scheme's case does not matter
            return token.strip()
    raise refuse(Refused.NO_TOKEN, "send one bearer token in the metadata `authorization`")
