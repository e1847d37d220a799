"""The codec against `h2`, an independent implementation, in both roles."""

from __future__ import annotations

import random

import h2.events
import h2.exceptions
import h2.settings
import pytest

from nodeproxy.errors import ProtocolError
from nodeproxy.model.reason import Reason
from nodeproxy.wire import frames
from nodeproxy.wire.connection import HboneConnection, MisuseError, Role
from nodeproxy.wire.frames import DEFAULT_WINDOW_BYTES, LARGEST_STREAM_ID, ErrorCode, FrameType
from nodeproxy.wire.hbone import status_block
from nodeproxy.wire.headers import encode_block
from tests.unit.wire.recorder import CONNECT, OK, REQUEST, Link, Recorder, frame_bytes, make

pytestmark = pytest.mark.unit


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


class TestClient:
    def test_request_response_data_and_half_closes(self) -> None:
        link = Link(Role.CLIENT).start()
        stream = link.codec.open_stream(CONNECT, "owner")
        assert stream.owner == "owner"
        link.pump()
        (request,) = link.of(h2.events.RequestReceived)
        assert request.headers == [(b":method", b"CONNECT"), (b":authority", b"10.0.0.1:80")]
        link.peer.send_headers(stream.id, [(":status", "200"), ("baggage", "a=b")])
        link.pump()
        assert link.recorder.named("response") == [("response", 1, ((b":status", b"200"), (b"baggage", b"a=b")), False)]
        link.send(stream, b"hello")
        link.codec.end_stream(stream)
        link.pump()
        assert link.received(1) == b"hello"
        assert link.of(h2.events.StreamEnded)
        assert link.codec.active_streams == 1
        link.peer.send_data(1, b"world", end_stream=True)
        link.pump()
        assert bytes(link.recorder.data[1]) == b"world"
        assert link.recorder.named("end") == [("end", 1)]
        assert stream.closed
        assert link.codec.active_streams == 0

    def test_server_ends_first_and_client_goes_on(self) -> None:
        link, stream_id = client_with_stream()
        stream = link.codec.streams[stream_id]
        link.peer.end_stream(stream_id)
        link.pump()
        assert link.recorder.named("end") == [("end", stream_id)]
        for _ in range(10):
            link.send(stream, bytes_of(5000))
        link.codec.end_stream(stream)
        link.pump()
        assert link.received(stream_id) == bytes_of(5000) * 10
        assert link.codec.streams == {}
        link.codec.end_stream(stream)
        link.codec.reset(stream, ErrorCode.CANCEL)
        assert link.codec.take_out() == b""

    def test_interim_responses_are_ignored_and_trailers_end(self) -> None:
        link = Link(Role.CLIENT).start()
        stream = link.codec.open_stream(CONNECT, None)
        link.pump()
        link.peer.send_headers(1, [(":status", "103")])
        link.pump()
        assert not link.recorder.named("response")
        link.peer.send_headers(1, [(":status", "200")])
        link.peer.send_data(1, b"x")
        link.peer.send_headers(1, [("grpc-status", "0")], end_stream=True)
        link.pump()
        assert [event[0] for event in link.recorder.events if event[0] in {"response", "end"}] == ["response", "end"]
        assert not stream.remote_open

    def test_refusal_with_end_stream(self) -> None:
        link = Link(Role.CLIENT).start()
        stream = link.codec.open_stream(CONNECT, None)
        link.pump()
        link.peer.send_headers(1, [(":status", "401")], end_stream=True)
        link.pump()
        assert link.recorder.events[-2:] == [("response", 1, ((b":status", b"401"),), True), ("end", 1)]
        link.codec.reset(stream, ErrorCode.CANCEL)
        link.pump()
        assert [event.error_code for event in link.of(h2.events.StreamReset)] == [ErrorCode.CANCEL]

    def test_peer_limits_streams(self) -> None:
        link = Link(Role.CLIENT).start()
        link.peer.update_settings({h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 2})
        link.pump()
        assert link.codec.peer_max_streams == 2
        first = link.codec.open_stream(CONNECT, None)
        link.codec.open_stream(CONNECT, None)
        assert not link.codec.can_open
        with pytest.raises(MisuseError):
            link.codec.open_stream(CONNECT, None)
        link.codec.reset(first, ErrorCode.CANCEL)
        assert link.codec.can_open
        link.pump()

    def test_goaway_of_the_peer_resets_what_it_did_not_serve(self) -> None:
        link = Link(Role.CLIENT).start()
        streams = [link.codec.open_stream(CONNECT, None) for _ in range(3)]
        link.pump()
        link.peer.close_connection(ErrorCode.NO_ERROR, last_stream_id=3)
        link.pump()
        assert link.recorder.events[-2:] == [("reset", 5, ErrorCode.REFUSED_STREAM), ("goaway", 3, 0)]
        assert [stream.closed for stream in streams] == [False, False, True]
        assert not link.codec.can_open

    def test_ping_both_ways(self) -> None:
        link, _ = client_with_stream()
        link.codec.ping(b"12345678")
        link.peer.ping(b"abcdefgh")
        link.pump()
        assert link.recorder.named("pong") == [("pong", b"12345678")]
        assert [event.ping_data for event in link.of(h2.events.PingAckReceived)] == [b"abcdefgh"]

    def test_pushes_are_refused(self) -> None:
        link, stream_id = client_with_stream()
        push = frames.frame_header(FrameType.PUSH_PROMISE, frames.END_HEADERS, stream_id, 4) + b"\0\0\0\2"
        with pytest.raises(ProtocolError, match="PUSH_PROMISE"):
            link.codec.receive(memoryview(push))

    def test_identifiers_run_out(self) -> None:
        codec, _ = make(Role.CLIENT)
        codec._next_stream = LARGEST_STREAM_ID
        codec.open_stream(CONNECT, None)
        assert not codec.can_open

    def test_misuse_is_named(self) -> None:
        codec, _ = make(Role.CLIENT)
        stream = codec.open_stream(CONNECT, None)
        with pytest.raises(MisuseError):
            codec.respond(stream, OK)
        with pytest.raises(MisuseError):
            codec.data_header_into(bytearray(9), 0, stream, DEFAULT_WINDOW_BYTES + 1)
        with pytest.raises(MisuseError):
            codec.ping(b"short")


class TestServer:
    def test_request_response_data_and_half_closes(self) -> None:
        link, stream_id = server_with_stream()
        (request,) = link.recorder.named("request")
        assert request[2:] == (((b":method", b"CONNECT"), (b":authority", b"10.0.0.1:80")), False)
        link.peer.send_data(stream_id, b"ping", end_stream=True)
        link.pump()
        assert bytes(link.recorder.data[stream_id]) == b"ping"
        assert link.recorder.named("end") == [("end", stream_id)]
        stream = link.codec.streams[stream_id]
        link.send(stream, b"pong")
        link.codec.end_stream(stream)
        link.pump()
        assert link.received(stream_id) == b"pong"
        assert link.of(h2.events.StreamEnded)
        assert link.codec.active_streams == 0

    def test_status_with_end_stream_then_reset_no_error(self) -> None:
        link = Link(Role.SERVER).start()
        link.peer.send_headers(1, REQUEST)
        link.pump()
        stream = link.recorder.streams[1]
        link.codec.respond(stream, status_block(503), end_stream=True)
        link.codec.reset(stream, ErrorCode.NO_ERROR)
        assert link.codec.active_streams == 0
        link.peer.send_data(1, b"early")  # h2 has not read the answer yet
        link.pump()
        assert [event.headers for event in link.of(h2.events.ResponseReceived)] == [[(b":status", b"503")]]
        assert 1 not in link.recorder.data

    def test_request_that_ends_at_once(self) -> None:
        link = Link(Role.SERVER).start()
        request = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a")]
        link.peer.send_headers(1, request, end_stream=True)
        link.pump()
        assert [event[0] for event in link.recorder.events if event[0] in {"request", "end"}] == ["request", "end"]
        link.codec.respond(link.recorder.streams[1], status_block(400), end_stream=True)
        link.pump()
        assert link.codec.active_streams == 0
        with pytest.raises(MisuseError):
            link.codec.respond(link.recorder.streams[1], OK)

    @pytest.mark.parametrize(
        "request_headers",
        [
            [(":method", "CONNECT")],
            [(":method", "CONNECT"), (":authority", "a:1"), (":path", "/")],
            [(":method", "CONNECT"), (":authority", "a:1"), (":scheme", "https")],
            [(":method", "CONNECT"), (":authority", "a:1"), (":protocol", "websocket"), (":scheme", "https"), (":path", "/")],
            [(":method", "CONNECT"), (":authority", "a:1"), (":authority", "b:1")],
            [("x", "1"), (":method", "CONNECT"), (":authority", "a:1")],
            [(":method", "CONNECT"), (":authority", "a:1"), ("connection", "close")],
            [(":method", "CONNECT"), (":authority", "a:1"), ("te", "gzip")],
            [(":method", "CONNECT"), (":authority", "a:1"), ("x", "a\nb")],
            [(":method", "CONNECT"), (":authority", "a:1"), ("X-Upper", "1")],
            [(":method", "GET"), (":scheme", "http")],
            [(":status", "200")],
            [],
        ],
    )
    def test_malformed_requests_are_reset_alone(self, request_headers: list[tuple[str, str]]) -> None:
        codec, recorder = make(Role.SERVER)
        block = encode_block([(name.encode(), value.encode()) for name, value in request_headers])
        codec.take_out()
        session = frames.PREFACE + frames.settings({}) + frames.headers(1, block, end_stream=False, max_frame_bytes=16384)
        session += frames.headers(3, CONNECT, end_stream=False, max_frame_bytes=16384)
        codec.receive(memoryview(session))
        assert codec.take_out() == frames.SETTINGS_ACK + frames.rst_stream(1, ErrorCode.PROTOCOL_ERROR)
        assert [event[1] for event in recorder.named("request")] == [3]

    def test_streams_above_the_limit_are_refused(self) -> None:
        link = Link(Role.SERVER, max_streams=2)
        link.peer.initiate_connection()
        for stream_id in (1, 3, 5):
            link.peer.send_headers(stream_id, REQUEST)
            link.peer.send_data(stream_id, b"early")
        link.pump()
        assert [event[1] for event in link.recorder.named("request")] == [1, 3]
        (reset,) = link.of(h2.events.StreamReset)
        assert (reset.stream_id, reset.error_code) == (5, ErrorCode.REFUSED_STREAM)
        assert set(link.recorder.data) == {1, 3}

    def test_goaway_discards_later_streams_and_gives_their_bytes_back(self) -> None:
        link = Link(Role.SERVER, connection_window_bytes=65535).start()
        link.peer.send_headers(1, REQUEST)
        link.pump()
        link.codec.goaway(ErrorCode.NO_ERROR, LARGEST_STREAM_ID)
        link.codec.goaway(ErrorCode.NO_ERROR)
        link.peer.send_headers(3, REQUEST)
        link.peer.send_data(3, bytes_of(16384))
        theirs = link.peer.data_to_send()
        link.codec.receive(memoryview(theirs))
        out = link.codec.take_out()
        assert out.startswith(frames.goaway(LARGEST_STREAM_ID, 0) + frames.goaway(1, 0))
        assert frames.window_update(0, 16384) in out
        assert [event[1] for event in link.recorder.named("request")] == [1]

    def test_peer_resets(self) -> None:
        link, stream_id = server_with_stream()
        link.peer.reset_stream(stream_id, ErrorCode.CONNECT_ERROR)
        link.pump()
        assert link.recorder.named("reset") == [("reset", stream_id, ErrorCode.CONNECT_ERROR)]
        assert link.codec.streams == {}


class TestWindows:
    @pytest.mark.parametrize("step", [1, 7, 1000, 1 << 20])
    @pytest.mark.parametrize("size", [1, 16384, 16385, 60000])
    def test_sizes_and_splits(self, step: int, size: int) -> None:
        if step == 1 and size > 16384:
            size = 20000
        link, stream_id = server_with_stream(step=step, stream_window_bytes=65535, connection_window_bytes=65535)
        payload = bytes_of(size)
        for start in range(0, size, 16384):
            link.peer.send_data(stream_id, payload[start : start + 16384])
        link.peer.end_stream(stream_id)
        link.pump()
        assert bytes(link.recorder.data[stream_id]) == payload
        assert link.recorder.named("end") == [("end", stream_id)]

    def test_megabytes_flow_with_small_windows_both_ways(self) -> None:
        link, stream_id = server_with_stream(stream_window_bytes=65535, connection_window_bytes=65535)
        payload = bytes_of(300_000)
        sent = 0
        while sent < len(payload):
            count = min(link.peer.local_flow_control_window(stream_id), 16384, len(payload) - sent)
            assert count > 0
            link.peer.send_data(stream_id, payload[sent : sent + count])
            sent += count
            link.pump()
        assert bytes(link.recorder.data[stream_id]) == payload
        stream, sent = link.codec.streams[stream_id], 0
        while sent < len(payload):
            count = min(link.codec.sendable(stream), 16384, len(payload) - sent)
            assert count > 0
            link.send(stream, payload[sent : sent + count])
            sent += count
            link.pump()
        assert link.received(stream_id) == payload

    def test_blocked_stream_goes_on_when_the_peer_gives_credit(self) -> None:
        link, stream_id = client_with_stream()
        link.auto_credit = False
        stream = link.codec.streams[stream_id]
        link.send(stream, bytes_of(link.codec.sendable(stream)))
        link.pump()
        assert link.codec.sendable(stream) == 0
        link.recorder.events.clear()
        link.peer.acknowledge_received_data(40_000, stream_id)
        link.pump()
        assert {("window", None), ("window", stream_id)} == set(link.recorder.events)
        assert link.codec.sendable(stream) == 40_000

    def test_initial_window_change_applies_to_open_streams_and_may_go_negative(self) -> None:
        link, stream_id = client_with_stream()
        link.auto_credit = False
        stream = link.codec.streams[stream_id]
        link.send(stream, bytes(50_000))
        link.peer.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 10_000})
        link.pump()
        assert stream.send_window == 10_000 - 50_000
        assert link.codec.sendable(stream) < 0
        link.recorder.events.clear()
        codes = h2.settings.SettingCodes
        link.peer.update_settings({codes.INITIAL_WINDOW_SIZE: 100_000, codes.MAX_FRAME_SIZE: 20_000})
        link.pump()
        assert stream.send_window == 50_000
        assert link.codec.peer_max_frame_size == 20_000
        assert link.recorder.events == [("settings",), ("window", None)]

    def test_window_before_the_acknowledgement_is_the_rfcs(self) -> None:
        """A peer that has not read our SETTINGS yet may send 65,535 bytes though we ask for less."""
        link = Link(Role.SERVER, stream_window_bytes=1000)
        link.peer.initiate_connection()
        link.peer.send_headers(1, REQUEST)
        link.recorder.credits = False
        for _ in range(3):
            link.peer.send_data(1, bytes(16384))
        link.pump()
        assert len(link.recorder.data[1]) == 3 * 16384
        assert link.recorder.streams[1].receive_window == 1000 - 3 * 16384
        link.peer.send_headers(3, REQUEST)
        link.pump()
        assert link.recorder.streams[3].receive_window == 1000

    def test_credit_comes_by_quarters(self) -> None:
        link, stream_id = server_with_stream(stream_window_bytes=80_000, connection_window_bytes=160_000)
        link.recorder.credits = False
        link.peer.send_data(stream_id, bytes(16384))
        link.pump()
        stream = link.codec.streams[stream_id]
        link.codec.credit(stream, 16384)
        assert link.codec.take_out() == b""
        link.codec.credit_stream(stream, 4000)
        assert link.codec.take_out() == frames.window_update(stream_id, 20_384)
        link.codec.credit(None, 40_000)
        assert link.codec.take_out() == frames.window_update(0, 56_384)

    def test_padding_is_removed_and_credited(self) -> None:
        link, stream_id = server_with_stream(stream_window_bytes=65535, connection_window_bytes=65535)
        for _ in range(400):
            link.peer.send_data(stream_id, b"abc", pad_length=255)
            link.pump()
        assert bytes(link.recorder.data[stream_id]) == b"abc" * 400


class TestFormerBugs:
    def test_a_stream_closed_amid_its_data(self) -> None:
        class Closes(Recorder):
            def on_data(self, stream, chunk):  # type: ignore[no-untyped-def]
                super().on_data(stream, chunk)
                self.codec.reset(stream, ErrorCode.CANCEL)

        codec, recorder = make(Role.SERVER, Closes(), connection_window_bytes=65535)
        start = frames.PREFACE + frames.settings({}) + frames.headers(1, CONNECT, end_stream=False, max_frame_bytes=16384)
        codec.receive(memoryview(start))
        codec.take_out()
        frame = frames.frame_header(FrameType.DATA, frames.END_STREAM, 1, 20_000) + bytes(20_000)
        codec.receive(memoryview(frame[:5000]))
        codec.receive(memoryview(frame[5000:]))
        codec.receive(memoryview(frames.headers(3, CONNECT, end_stream=False, max_frame_bytes=16384)))
        assert len(recorder.data[1]) == 4991
        assert recorder.named("end") == []
        assert set(codec.streams) == {3}
        assert codec.take_out() == frames.rst_stream(1, ErrorCode.CANCEL) + frames.window_update(0, 20_000)

    @pytest.mark.parametrize("padding", [None, 0, 5])
    def test_end_stream_of_a_frame_that_spans_reads(self, padding: int | None) -> None:
        reference, stream_id = server_with_stream()
        reference.peer.send_data(stream_id, b"0123456789", end_stream=True, pad_length=padding)
        frame = reference.peer.data_to_send()
        for cut in range(len(frame) + 1):
            link, _ = server_with_stream()
            link.codec.receive(memoryview(frame[:cut]))
            link.codec.receive(memoryview(frame[cut:]))
            assert bytes(link.recorder.data[stream_id]) == b"0123456789"
            assert link.recorder.named("end") == [("end", stream_id)]

    def test_discarded_bytes_are_credited_so_that_no_stream_stalls(self) -> None:
        link = Link(Role.SERVER, connection_window_bytes=65535, stream_window_bytes=65535).start()
        for number in range(40):  # 40 × 16 KiB is ten windows
            stream_id = 1 + 2 * number
            link.peer.send_headers(stream_id, REQUEST)
            link.pump()
            link.codec.respond(link.recorder.streams[stream_id], OK)
            link.codec.reset(link.recorder.streams[stream_id], ErrorCode.CONNECT_ERROR)
            assert link.peer.local_flow_control_window(stream_id) >= 16384
            link.peer.send_data(stream_id, bytes(16384))
            link.pump()
        assert link.recorder.data == {}


class TestLife:
    def test_failure_is_told_once_and_stays(self) -> None:
        codec, _ = make(Role.SERVER)
        codec.take_out()
        with pytest.raises(ProtocolError) as caught:
            codec.receive(memoryview(b"GET / HTTP/1.1\r\n\r\n"))
        assert caught.value.reason is Reason.H2_PROTOCOL
        assert codec.take_out() == frames.goaway(0, ErrorCode.PROTOCOL_ERROR)
        with pytest.raises(ProtocolError):
            codec.receive(memoryview(b"anything"))
        assert codec.take_out() == b""

    def test_nothing_is_called_after_close(self) -> None:
        class Closes(Recorder):
            def on_data(self, stream, chunk):  # type: ignore[no-untyped-def]
                super().on_data(stream, chunk)
                self.codec.close()

        codec, recorder = make(Role.SERVER, Closes())
        session = frames.PREFACE + frames.settings({}) + frames.headers(1, CONNECT, end_stream=False, max_frame_bytes=16384)
        session += frames.frame_header(FrameType.DATA, frames.END_STREAM, 1, 3) + b"abc"
        session += frames.headers(3, CONNECT, end_stream=False, max_frame_bytes=16384)
        codec.receive(memoryview(session))
        assert [event[0] for event in recorder.events] == ["settings", "request"]
        assert codec.streams == {}

    def test_two_of_ours(self) -> None:
        client, ours = make(Role.CLIENT)
        server, theirs = make(Role.SERVER)
        stream = client.open_stream(CONNECT, None)
        for _ in range(3):
            server.receive(memoryview(client.take_out()))
            client.receive(memoryview(server.take_out()))
        server.respond(theirs.streams[1], OK)
        client.receive(memoryview(server.take_out()))
        assert client.peer_max_frame_size == 1 << 20
        assert client.peer_max_streams == 200
        payload = bytes_of(1 << 20)
        server.receive(memoryview(frame_bytes(client, stream, payload)))
        assert bytes(theirs.data[1]) == payload
        assert ours.named("response")


Outcome = tuple[list[tuple[object, ...]], dict[int, bytes], bytes]


def every_callback(data: bytes, cut: int | None) -> Outcome:
    codec, recorder = make(Role.SERVER)
    parts = [data] if cut is None else [data[:cut], data[cut:]]
    for part in parts:
        codec.receive(memoryview(part))
    return recorder.events, {key: bytes(value) for key, value in recorder.data.items()}, codec.take_out()


def recorded_session() -> bytes:
    """What h2's client says in a session with everything in it."""
    link = Link(Role.SERVER)
    said = bytearray()
    link.peer.initiate_connection()
    for stream_id in (1, 3, 5):
        link.peer.send_headers(stream_id, [*REQUEST, ("x-long", "v" * 9 * stream_id)])
        link.peer.send_data(stream_id, b"d" * 12, pad_length=stream_id)
    said += link.peer.data_to_send()
    server: HboneConnection = link.codec
    server.receive(memoryview(bytes(said)))
    link.peer.receive_data(server.take_out())
    link.peer.ping(b"pingpong")
    link.peer.increment_flow_control_window(1000)
    link.peer.send_headers(1, [("trailer", "1")], end_stream=True)
    link.peer.reset_stream(3, ErrorCode.CANCEL)
    link.peer.send_data(5, b"last", end_stream=True)
    said += link.peer.data_to_send()
    long_block = encode_block([(b":method", b"CONNECT"), (b":authority", b"b:2"), (b"x", b"y" * 130)])
    said += frames.headers(7, long_block, end_stream=False, max_frame_bytes=50)
    said += frames.frame_header(0xEE, 0, 0, 20) + bytes(20)
    said += frames.frame_header(FrameType.GOAWAY, 0, 0, 13) + bytes(8) + b"debug"
    return bytes(said)


def test_every_split_of_a_recorded_session_means_the_same() -> None:
    session = recorded_session()
    whole = every_callback(session, None)
    assert [event[0] for event in whole[0]].count("request") == 4
    assert whole[0][-1] == ("goaway", 0, 0)
    for cut in range(len(session) + 1):
        assert every_callback(session, cut) == whole
