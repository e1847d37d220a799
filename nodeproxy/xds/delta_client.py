"""The client's side of delta xDS (xDS protocol, "Incremental xDS") without I/O: responses in, requests out.

A type is watched whole (wildcard) or by name.  Types begin in their order, each when the one before has answered: so policies
are known before the workloads that they hold for.
Invariants: the first request of a type on a stream says what is known of it, so that the server sends what differs and names what
is gone; each response is answered once, by an ACK or a NACK, with its nonce; a change of names rides in a request of its own,
without a nonce, as istiod wants it.  What was subscribed outlives the stream.
Knows neither what resources mean, nor where what is known is kept, nor time.  Requests are bytes: what is known of 100,000
resources is encoded piece by piece (`encode_known`), wherever there is time for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import msgspec

from nodeproxy.errors import ResourceError
from nodeproxy.proto import discovery_pb2
from nodeproxy.xds.names import WILDCARD

_INVALID_ARGUMENT = 3  # google.rpc.Code: what a NACK is
# A NACK names so many resources; it is read by people, and a stream of bad ones must not make it grow.
MAX_NAMED = 16
_MAX_WHY_CHARACTERS = 200
# So many are encoded without letting others have their turn: half a millisecond.
_KNOWN_A_PIECE = 500


class Rejected(msgspec.Struct, frozen=True):
    """A resource that could not be used.  name: "" if not even that could be read.  reason: for the metric.  why: for people."""

    name: str
    reason: str
    why: str


class _Watch:
    """One type, on this stream and the ones before."""

    def __init__(self, type_url: str, *, wildcard: bool) -> None:
        self.type_url = type_url
        self.wildcard = wildcard
        self.names: set[str] = set()  # subscribed, if not wildcard
        self.begun = False
        self.answered = False
        self.added: set[str] = set()  # subscribed or unsubscribed, and not told yet
        self.dropped: set[str] = set()
        self.again: set[str] = set()  # the server knows that they are subscribed, and is to answer for them once more

    def untold(self) -> bool:
        return bool(self.added or self.dropped or self.again)

    def told(self) -> None:
        self.added.clear()
        self.dropped.clear()
        self.again.clear()


class DeltaClient:
    """All types of one client.  `take` has what is to be sent."""

    def __init__(self, node: discovery_pb2.Node, types: Sequence[str], *, on_demand: Iterable[str] = ()) -> None:
        """types: in the order in which they begin.  on_demand: those that are watched by name."""
        self._node = node
        self._watches = {type_url: _Watch(type_url, wildcard=type_url not in on_demand) for type_url in types}
        self._replies: list[bytes] = []
        self._is_first = True
        self.lets_go_first = False  # names that are to be answered once more

    # ── a stream ──

    def open(self) -> None:
        """A new stream: nothing of what the former one said counts, but for what is subscribed."""
        self._replies.clear()
        self._is_first = True
        for watch in self._watches.values():
            watch.begun = watch.answered = False
            watch.told()

    def due(self) -> str | None:
        """The type whose first request is to be made now, by `begin`; None: all have begun, or the last one has not answered."""
        for watch in self._watches.values():
            if not watch.begun:
                return watch.type_url
            if not watch.answered:
                return None
        return None

    def begin(self, type_url: str, known: bytes = b"") -> None:
        """Ask for a type.  known: what is kept from before, by `encode_known`."""
        watch = self._watches[type_url]
        watch.begun = True
        request = self._request(type_url)
        if not watch.wildcard:
            # A first request without names would be one for all: "*" is subscribed and let go at once.
            request.resource_names_subscribe.extend([WILDCARD, *sorted(watch.names)])
            request.resource_names_unsubscribe.append(WILDCARD)
            watch.told()
        self._replies.append(request.SerializeToString() + known)

    def answered(self, type_url: str) -> bool:
        """Whether a response of this type has come on this stream, and was replied to."""
        return self._watches[type_url].answered

    @property
    def all_answered(self) -> bool:
        """Whether every type has been answered on this stream."""
        return all(watch.answered for watch in self._watches.values())

    def expect(self, type_url: str) -> None:
        """A response has come.  Raises ResourceError if it is of a type that was not asked for."""
        watch = self._watches.get(type_url)
        if watch is None or not watch.begun:
            raise ResourceError("unexpected_type", f"a response of type {type_url[:_MAX_WHY_CHARACTERS]!r} was not asked for")

    def reply(self, type_url: str, nonce: str, rejected: Sequence[Rejected] = (), count: int = 0) -> None:
        """What has become of a response: ACK or, if anything in it was rejected, NACK; what was good of it counts all the same.

        rejected: the first few will do.  count: how many there were, if more than that.
        """
        request = self._request(type_url)
        request.response_nonce = nonce
        if rejected:
            request.error_detail.code = _INVALID_ARGUMENT
            request.error_detail.message = _describe(rejected, max(count, len(rejected)))
        watch = self._watches.get(type_url)
        if watch is not None:
            watch.answered = True
        self._replies.append(request.SerializeToString())

    @property
    def waiting(self) -> int:
        """How many replies have not been taken to be sent."""
        return len(self._replies)

    def take(self) -> Iterator[bytes]:
        """The DeltaDiscoveryRequests to be sent now, in order; replies before changes of names."""
        replies, self._replies = self._replies, []
        yield from replies
        for watch in self._watches.values():
            if watch.begun and watch.untold():
                # xDS, "How the client specifies what resources to return": a name that is subscribed again is sent again.  istiod
                # answers only for names that are new to it: they are let go first, in a request of its own.
                if self.lets_go_first:
                    changes = [(sorted(watch.added), sorted(watch.dropped | watch.again)), (sorted(watch.again), [])]
                else:
                    changes = [(sorted(watch.added | watch.again), sorted(watch.dropped))]
                watch.told()  # now: who sends takes its time, and more may come meanwhile
                for subscribe, unsubscribe in changes:
                    if subscribe or unsubscribe:
                        request = self._request(watch.type_url)
                        request.resource_names_subscribe.extend(subscribe)
                        request.resource_names_unsubscribe.extend(unsubscribe)
                        yield request.SerializeToString()

    # ── names, for types on demand ──

    def subscribe(self, type_url: str, names: Iterable[str]) -> None:
        """Watch these, too; with or without a stream."""
        watch = self._watches[type_url]
        new = set(names) - watch.names
        watch.names |= new
        watch.again |= new & watch.dropped
        watch.added |= new - watch.dropped
        watch.dropped -= new

    def unsubscribe(self, type_url: str, names: Iterable[str]) -> None:
        """Watch these no more."""
        watch = self._watches[type_url]
        old = set(names) & watch.names
        watch.names -= old
        watch.dropped |= old - watch.added
        watch.added -= old
        watch.again -= old

    def ask_again(self, type_url: str, names: Iterable[str]) -> None:
        """Have those of these that are watched answered once more."""
        watch = self._watches[type_url]
        if watch.begun:  # else they are asked for in any case
            watch.again |= set(names) & watch.names - watch.added

    def subscribed(self, type_url: str) -> frozenset[str] | None:
        """The names that are watched; None: all are."""
        watch = self._watches[type_url]
        return None if watch.wildcard else frozenset(watch.names)

    def _request(self, type_url: str) -> discovery_pb2.DeltaDiscoveryRequest:
        request = discovery_pb2.DeltaDiscoveryRequest(type_url=type_url)
        if self._is_first:  # "Only the first message on a stream" needs to tell who asks
            request.node.CopyFrom(self._node)
            self._is_first = False
        return request


def encode_known(known: Iterable[tuple[str, str]]) -> bytes:
    """Names and versions of what is kept, "" for a version that is not known, as a part of a request."""
    # Protocol Buffers, "Encoding": messages that are written one after the other are read as one, with the entries of each.
    pairs, pieces = iter(known), []
    while piece := dict(islice(pairs, _KNOWN_A_PIECE)):
        pieces.append(discovery_pb2.DeltaDiscoveryRequest(initial_resource_versions=piece).SerializeToString())
    return b"".join(pieces)


def _describe(rejected: Sequence[Rejected], count: int) -> str:
    named = [f"{each.name or '?'}: {each.why[:_MAX_WHY_CHARACTERS]}" for each in rejected[:MAX_NAMED]]
    more = f"; and {count - len(named)} more" if count > len(named) else ""
    return f"{count} rejected: {'; '.join(named)}{more}"
