"""A tunnel that a pod of this node opened: it asks for CONNECT streams and reads the answers."""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING, ClassVar, Protocol

from nodeproxy.identity.tls import verify_server
from nodeproxy.model.reason import Reason, Refusal
from nodeproxy.proxy.buffers import Budget
from nodeproxy.proxy.poller import Poller
from nodeproxy.proxy.pool import MAX_STREAMS_A_TUNNEL, Pool, PoolKey
from nodeproxy.proxy.tunnel import Headers, Tunnel
from nodeproxy.proxy.tunnel_stream import TunnelStream
from nodeproxy.wire.connection import Role
from nodeproxy.wire.frames import ErrorCode
from nodeproxy.wire.stream import Stream

if TYPE_CHECKING:
    from nodeproxy.proxy.attempt import Attempt

_OK = b"200"
_UNAUTHORIZED = b"401"


class Asker(Protocol):
    """Who asks for streams, and hears what comes of it."""

    def answered(self, half: ClientStream, refusal: Refusal | None) -> None:
        """The peer said 200, or what `refusal` says; called once."""

    def unserved(self, attempt: Attempt) -> None:
        """The peer did not begin to serve the stream: ask for it by another tunnel."""

    def unreached(self, attempt: Attempt, refusal: Refusal) -> bool:
        """The peer does not serve it: ask another endpoint.  False: there is none to ask."""


class ClientStream(TunnelStream):
    """A CONNECT that was asked for, and the `attempt` that it is of, until the peer has answered."""

    __slots__ = ("_asker", "attempt")

    def __init__(self, tunnel: Tunnel, asker: Asker, attempt: Attempt) -> None:
        super().__init__(tunnel, attempt.session)
        self._asker: Asker | None = asker
        self.attempt: Attempt | None = attempt

    def answered(self, refusal: Refusal | None) -> None:
        """The peer said yes or no."""
        asker, self._asker = self._asker, None
        if asker is not None:
            asker.answered(self, refusal)
        self.attempt = None

    def ask_again(self) -> bool:
        """See `TunnelStream.ask_again`."""
        asker, attempt = self._asker, self.attempt
        if asker is None or attempt is None or attempt.unserved or self.session.ended:
            return False
        self._asker = None
        asker.unserved(attempt)
        return True

    def ask_elsewhere(self, refusal: Refusal) -> bool:
        """See `TunnelStream.ask_elsewhere`."""
        asker, self._asker = self._asker, None
        return asker is not None and self.attempt is not None and asker.unreached(self.attempt, refusal)


class ClientTunnel(Tunnel):
    """Established, it belongs to the pool under `key` until it is lost, drained by GOAWAY or idle.  Call `start_handshake`."""

    role: ClassVar[Role] = Role.CLIENT

    def __init__(
        self, poller: Poller, budget: Budget, sock: socket.SocketType, context: ssl.SSLContext, key: PoolKey, pool: Pool
    ) -> None:
        self._key = key
        self._pool = pool
        self._ready = False  # the peer's SETTINGS have come, so that how many streams it takes is known
        self.idle_since = poller.clock()
        self.peer_identity = ""
        super().__init__(poller, budget, sock, context)

    # ── what the pool asks ──

    @property
    def free_streams(self) -> int:
        """See `PooledTunnel`."""
        if not self.established or self.closed or not self.codec.can_open:
            return 0
        return MAX_STREAMS_A_TUNNEL - self.codec.active_streams

    @property
    def active_streams(self) -> int:
        """See `PooledTunnel`."""
        return self.codec.active_streams

    def leave_pool(self) -> None:
        """Take no new stream; end with the last one."""
        self._leaving = True
        self._shut_if_idle()

    # ── opening ──

    def connect(self, half: ClientStream, block: bytes) -> None:
        """Ask for a stream by the encoded header `block`; `half.answered` follows."""
        half.stream = self.codec.open_stream(block, half)
        self.mark_dirty()

    # ── what the tunnel says ──

    def verify_peer(self) -> None:
        """The server must be whom the state says it is."""
        self.peer_identity = verify_server(self.tls, self._key.identities)

    def on_established(self) -> None:
        """Serve who waits first; the others wait for SETTINGS, as the peer may take fewer streams than there are."""
        self._pool.established(self._key, self)

    def on_settings(self) -> None:
        """Serve who waits."""
        super().on_settings()
        if not self._ready:
            self._ready = True
            self._pool.ready(self._key, self)

    def on_lost(self, refusal: Refusal) -> None:
        """Tell who waits, or leave the pool."""
        if self._ready:
            self._pool.drop(self._key, self)
        else:
            self._pool.failed(self._key, refusal)

    def on_response(self, stream: Stream, headers: Headers, end_stream: bool) -> None:
        """The answer to a CONNECT."""
        half: ClientStream = stream.owner
        status = headers[0][1]  # RFC 9113, section 8.3.2: of pseudo-header fields a response has `:status`, and no other
        if status == _OK:
            half.answered(None)
            return
        peer = f"{self._key.peer[0]}:{self._key.peer[1]}"
        if status == _UNAUTHORIZED:
            half.answered(
                Refusal(
                    Reason.HBONE_DENIED,
                    f"the destination's policy denied it ({peer} answered 401); `why` on its node names the policy",
                )
            )
        else:
            text = status[:8].decode("ascii", "replace") or "no status"
            half.answered(Refusal(Reason.HBONE_REFUSED, f"{peer} answered {text}; its own log says why"))

    def on_reset(self, stream: Stream, code: int) -> None:
        """See `Tunnel.on_reset`; but a peer that has answered in full may hear no more (Envoy, when the application ends first).

        RFC 9113, section 8.1: "Clients MUST NOT discard responses as a result of receiving such a RST_STREAM".
        """
        half: ClientStream = stream.owner
        if code != ErrorCode.NO_ERROR or not half.let_go():
            super().on_reset(stream, code)

    def on_goaway(self, last_stream_id: int, code: int) -> None:
        """The peer drains: open streams go on, new ones go elsewhere."""
        self._pool.drop(self._key, self)
        self.leave_pool()

    def released(self, half: TunnelStream) -> None:
        """A relay has ended."""
        self.idle_since = self._poller.clock()
        if self._leaving:
            self._shut_if_idle()
