"""A CONNECT stream as one half of a relay.

Invariant: what DATA brought is credited to the stream's window only when the application took it, so that a slow reader slows
its own writer.  The connection's window is credited at once while the worker holds little (`Budget`): one reader that stands
still must not stop the tunnel's other streams.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from nodeproxy.model.reason import Reason, Refusal
from nodeproxy.proxy import buffers
from nodeproxy.proxy.half import BLOCKED, GONE, Half
from nodeproxy.wire.frames import ErrorCode

if TYPE_CHECKING:
    from nodeproxy.proxy.session import Session
    from nodeproxy.proxy.tunnel import Tunnel
    from nodeproxy.wire.stream import Stream

_HEADER_BYTES = 9  # RFC 9113, section 4.1: "All frames begin with a fixed 9-octet header"

# A peer that takes larger frames than this is sent one for each read: with gaps, too little of the buffer would be used.
_MAX_GAPPED_BYTES = buffers.SHARED_BYTES // 4

_MEMORY_FULL = Refusal(
    Reason.MEMORY_FULL, "the worker holds as many bytes as it may that applications do not read; this connection brought more"
)

_MAX_READ_BYTES = buffers.SHARED_BYTES - _HEADER_BYTES
_behind_header = buffers.application[_HEADER_BYTES:]
_gaps: dict[int, list[memoryview]] = {}


def _gapped(frame_bytes: int) -> list[memoryview]:
    """Slices of the application buffer of `frame_bytes` each, with room for a frame header before each."""
    views = _gaps.get(frame_bytes)
    if views is None:
        step = frame_bytes + _HEADER_BYTES
        count = buffers.SHARED_BYTES // step
        views = [buffers.application[i * step + _HEADER_BYTES : (i + 1) * step] for i in range(count)]
        if len(_gaps) < 8:  # peers choose this size: do not let them choose how much is remembered
            _gaps[frame_bytes] = views
    return views


class TunnelStream:
    """One half of a relay, over a stream of `tunnel`."""

    __slots__ = (
        "_bulk",
        "_early",
        "_ended_in",
        "_ended_out",
        "_held",
        "_held_credited",
        "_joined",
        "peer",
        "read_bytes",
        "session",
        "stream",
        "tunnel",
    )

    def __init__(self, tunnel: Tunnel, session: Session) -> None:
        self.tunnel = tunnel
        self.session = session
        self.stream: Stream | None = None
        self.read_bytes = 0
        self._joined = False
        self._early: bytearray | None = None  # what came before there was a peer
        self._held = 0  # bytes not delivered yet, given back to neither window
        self._held_credited = 0  # bytes not delivered yet, given back to the connection's window only
        self._ended_in = False
        self._ended_out = False
        self._bulk = False  # the last read filled its frame: more is probably there
        self.peer: Half

    def joined(self) -> None:
        """There is a peer now: it gets what came before."""
        self._joined = True
        if self._early is not None:
            early, self._early = self._early, None
            self._deliver_early(early)
        if self._ended_in and not self.session.ended:
            self.peer.finish()
            self.session.half_ended()

    # ── what the tunnel calls ──

    def on_data(self, chunk: memoryview) -> None:
        """DATA came."""
        length = len(chunk)
        self.read_bytes += length
        if not self._joined:
            if self._early is None:
                self._early = bytearray()
            self._early += chunk  # bounded by the stream's window
            self._hold(length)
            return
        try:
            sent = self.peer.deliver(chunk)
        except OSError:
            self.tunnel.codec.credit(None, length)
            self.session.reset_by(self.peer)
            return
        if sent:
            self.tunnel.codec.credit(self.stream, sent)
        if sent < length:
            self._hold(length - sent)

    def on_end(self) -> None:
        """END_STREAM came."""
        self._ended_in = True
        if self._joined:
            self.peer.finish()
            self.session.half_ended()

    def ask_again(self) -> bool:
        """The peer did not begin to serve the stream: try elsewhere; False: that is not to be tried."""
        return False

    def ask_elsewhere(self, refusal: Refusal) -> bool:
        """The peer did not serve the stream: try another one that serves the same; False: there is none."""
        return False

    def let_go(self) -> bool:
        """The stream was reset without an error: if its peer had said all, that is an orderly end, and what came is delivered."""
        if not (self._joined and self._ended_in):
            return False
        self.stream = None
        self._ended_out = True
        self.peer.hang_up()
        self.session.half_ended()
        return True

    def on_gone(self) -> None:
        """The stream was reset, or its tunnel is lost: nothing can be said on it any more."""
        self._drop_holdings()
        self.tunnel.waiting.pop(self, None)
        self._early = None
        self.stream = None

    # ── what the peer calls ──

    def fill_from(self, source: socket.SocketType) -> int:
        """See `Half.fill_from`: reads straight behind frame headers, one TLS write for all frames."""
        tunnel, stream = self.tunnel, self.stream
        if stream is None:  # the session has ended
            return BLOCKED
        if tunnel.unsent is not None:
            tunnel.wait(self)
            return BLOCKED
        codec = tunnel.codec
        room = codec.sendable(stream)
        if room <= 0:
            tunnel.wait(self)
            return BLOCKED
        frame_bytes = codec.peer_max_frame_size
        if self._bulk and room > frame_bytes and frame_bytes <= _MAX_GAPPED_BYTES:
            return self._fill_frames(source, frame_bytes, room)
        buffer = buffers.application
        limit = frame_bytes if frame_bytes < room else room
        if limit > _MAX_READ_BYTES:
            limit = _MAX_READ_BYTES
        count = source.recv_into(_behind_header, limit)
        if count == 0:
            return 0
        self._bulk = count == limit
        codec.data_header_into(buffer, 0, stream, count)
        tunnel.write(buffer[: _HEADER_BYTES + count])
        return count

    def deliver(self, chunk: memoryview) -> int:
        """A stream is always filled by `fill_from`: two tunnels are never joined."""
        raise NotImplementedError("streams are filled from sockets")

    def delivered(self, count: int) -> None:
        """See `Half.delivered`: gives `count` held bytes back, to the connection's window where that was not done early."""
        late = min(count, self._held)
        early = count - late
        codec = self.tunnel.codec
        if late:
            self._held -= late
            self.tunnel.budget.settle(late)
            codec.credit(self.stream, late)
        if early:
            self._held_credited -= early
            self.tunnel.budget.give(early)
            if self.stream is not None:
                codec.credit_stream(self.stream, early)
        self.tunnel.mark_dirty()

    def finish(self) -> None:
        """See `Half.finish`."""
        self._ended_out = True
        if self.stream is not None:
            self.tunnel.codec.end_stream(self.stream)
            self.tunnel.mark_dirty()

    def resume(self) -> None:
        """The peer has room again: windows say so, by `delivered`."""

    def hang_up(self) -> None:
        """See `deliver`: the peer is a socket, which does not refuse bytes in good order."""
        raise NotImplementedError("only a tunnel hangs up, and two are never joined")

    def abort(self, code: int = ErrorCode.CONNECT_ERROR) -> None:
        """Reset the stream.

        RFC 9113, section 8.5: "A proxy treats any error in the TCP connection, which includes receiving a TCP segment with the
        RST bit set, as a stream error of type CONNECT_ERROR".
        """
        if self.stream is not None:
            self.tunnel.codec.reset(self.stream, code)
            self.tunnel.mark_dirty()
            self.on_gone()
        self.tunnel.released(self)

    def close(self) -> None:
        """Both directions have ended."""
        if self._held or self._held_credited:
            self._drop_holdings()
        self.tunnel.waiting.pop(self, None)
        self.tunnel.released(self)

    def forget(self) -> None:
        """The connection has ended, and nothing is on the stack that knew it."""
        self.peer = GONE
        self.stream = None

    @property
    def done(self) -> bool:
        """Ended in both directions."""
        return self._ended_in and self._ended_out

    # ── inside ──

    def _fill_frames(self, source: socket.SocketType, frame_bytes: int, room: int) -> int:
        views = _gapped(frame_bytes)
        count = source.recvmsg_into(views[: room // frame_bytes])[0]
        if count == 0:
            return 0
        codec, stream, buffer = self.tunnel.codec, self.stream, buffers.application
        if stream is None:
            return BLOCKED
        offset, left = 0, count
        while left:
            length = min(left, frame_bytes)
            codec.data_header_into(buffer, offset, stream, length)
            offset += _HEADER_BYTES + length
            left -= length
        self._bulk = count >= frame_bytes
        self.tunnel.write(buffer[:offset])
        return count

    def _deliver_early(self, early: bytearray) -> None:
        try:
            sent = self.peer.deliver(memoryview(early))
        except OSError:
            self.session.reset_by(self.peer)
        else:
            self.delivered(sent)

    def _hold(self, count: int) -> None:
        if self.tunnel.budget.take(count):
            self._held_credited += count
            self.tunnel.codec.credit(None, count)
        else:
            self._held += count
            if not self.tunnel.budget.owe(count):
                self.session.refuse(_MEMORY_FULL)

    def _drop_holdings(self) -> None:
        self.tunnel.budget.give(self._held_credited)
        self._held_credited = 0
        if self._held:
            self.tunnel.codec.credit(None, self._held)
            self.tunnel.budget.settle(self._held)
            self._held = 0
            self.tunnel.mark_dirty()
