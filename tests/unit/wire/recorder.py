"""A handler that writes down what it is told, and a link between our codec and `h2` as an independent peer."""

from __future__ import annotations

import random
from typing import Any

import h2.config
import h2.connection
import h2.events

from nodeproxy.wire.connection import HboneConnection, Role
from nodeproxy.wire.hbone import connect_block, ok_block
from nodeproxy.wire.stream import Headers, Stream

REQUEST = [(":method", "CONNECT"), (":authority", "10.0.0.1:80")]
CONNECT = connect_block("10.0.0.1:80")
OK = ok_block()


class Recorder:
    """Credits what it gets at once, unless `credits` is False."""

    def __init__(self) -> None:
        self.codec: HboneConnection
        self.credits = True
        self.events: list[tuple[Any, ...]] = []
        self.streams: dict[int, Stream] = {}
        self.data: dict[int, bytearray] = {}

    def on_request(self, stream: Stream, headers: Headers, end_stream: bool) -> None:
        self.streams[stream.id] = stream
        self.events.append(("request", stream.id, headers, end_stream))

    def on_response(self, stream: Stream, headers: Headers, end_stream: bool) -> None:
        self.events.append(("response", stream.id, headers, end_stream))

    def on_data(self, stream: Stream, chunk: memoryview) -> None:
        assert len(chunk) > 0
        self.data.setdefault(stream.id, bytearray()).extend(chunk)
        if self.credits:
            self.codec.credit(stream, len(chunk))

    def on_end(self, stream: Stream) -> None:
        self.events.append(("end", stream.id))

    def on_reset(self, stream: Stream, code: int) -> None:
        self.events.append(("reset", stream.id, code))

    def on_window(self, stream: Stream | None) -> None:
        self.events.append(("window", None if stream is None else stream.id))

    def on_settings(self) -> None:
        self.events.append(("settings",))

    def on_goaway(self, last_stream_id: int, code: int) -> None:
        self.events.append(("goaway", last_stream_id, code))

    def on_pong(self, payload: bytes) -> None:
        self.events.append(("pong", payload))

    def named(self, name: str) -> list[tuple[Any, ...]]:
        return [event for event in self.events if event[0] == name]


def make(role: Role, handler: Recorder | None = None, **settings: int) -> tuple[HboneConnection, Recorder]:
    """A codec with its recorder."""
    recorder = handler or Recorder()
    codec = HboneConnection(role, recorder, **settings)
    recorder.codec = codec
    return codec, recorder


def frame_bytes(codec: HboneConnection, stream: Stream, payload: bytes) -> bytes:
    """DATA as a user of the codec makes it."""
    buffer = bytearray(9 + len(payload))
    codec.data_header_into(buffer, 0, stream, len(payload))
    buffer[9:] = payload
    return bytes(buffer)


class Link:
    """Our codec on one side, `h2` on the other; `pump` carries bytes until both are silent."""

    def __init__(self, role: Role, *, step: int = 1 << 20, **settings: int) -> None:
        self.codec, self.recorder = make(role, **settings)
        config = h2.config.H2Configuration(client_side=role is Role.SERVER, header_encoding=None, validate_outbound_headers=False)
        self.peer = h2.connection.H2Connection(config)
        self.events: list[h2.events.Event] = []
        self.step = step
        self.queued = bytearray()
        self.auto_credit = True

    def start(self) -> Link:
        self.peer.initiate_connection()
        self.pump()
        return self

    def send(self, stream: Stream, payload: bytes) -> None:
        """As much DATA as windows allow at once must be enough for `payload`."""
        self.queued += self.codec.take_out()
        for start in range(0, len(payload), self.codec.peer_max_frame_size):
            self.queued += frame_bytes(self.codec, stream, payload[start : start + self.codec.peer_max_frame_size])

    def pump(self) -> None:
        while True:
            ours = bytes(self.queued) + self.codec.take_out()
            self.queued.clear()
            if ours:
                for event in self.peer.receive_data(ours):
                    self.events.append(event)
                    if isinstance(event, h2.events.DataReceived) and self.auto_credit:
                        self.peer.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            theirs = self.peer.data_to_send()
            for start in range(0, len(theirs), self.step):
                self.codec.receive(memoryview(theirs[start : start + self.step]))
            if not (ours or theirs):
                return

    def of(self, kind: type[h2.events.Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def received(self, stream_id: int) -> bytes:
        return b"".join(event.data for event in self.of(h2.events.DataReceived) if event.stream_id == stream_id)


def bytes_of(count: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(count)


def client_with_stream(**settings: int) -> tuple[Link, int]:
    """Our client with an answered stream to h2's server."""
    link = Link(Role.CLIENT, **settings).start()
    stream = link.codec.open_stream(CONNECT, "owner")
    link.pump()
    link.peer.send_headers(stream.id, [(":status", "200")])
    link.pump()
    return link, stream.id


def server_with_stream(**settings: int) -> tuple[Link, int]:
    """Our server with an answered stream from h2's client."""
    link = Link(Role.SERVER, **settings).start()
    stream_id = link.peer.get_next_available_stream_id()
    link.peer.send_headers(stream_id, REQUEST)
    link.pump()
    link.codec.respond(link.recorder.streams[stream_id], OK)
    link.pump()
    return link, stream_id
