"""The codec against `h2`, an independent implementation, in both roles."""

from __future__ import annotations

import h2.events
import h2.exceptions
import h2.settings
import pytest

from nodeproxy.errors import ProtocolError
from nodeproxy.model.reason import Reason
from nodeproxy.wire import frames
from nodeproxy.wire.connection import HboneConnection, MisuseError, Role
from nodeproxy.wire.frames import DEFAULT_WINDOW_BYTES, LARGEST_STREAM_ID, ErrorCode, FrameType, Setting
from nodeproxy.wire.hbone import status_block
from nodeproxy.wire.headers import encode_block
from nodeproxy.wire.limits import MAX_REMEMBERED_RESETS
from tests.unit.wire.recorder import (
    CONNECT,
    OK,
    REQUEST,
    Link,
    Recorder,
    bytes_of,
    client_with_stream,
    frame_bytes,
    make,
    server_with_stream,
)

pytestmark = pytest.mark.unit


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

    def test_goaway_while_its_handler_resets_the_others(self) -> None:
        class Resets(Recorder):
            def on_reset(self, stream, code):  # type: ignore[no-untyped-def]
                super().on_reset(stream, code)
                for other in list(self.codec.streams.values()):
                    self.codec.reset(other, ErrorCode.CANCEL)

        codec, recorder = make(Role.CLIENT, Resets())
        for _ in range(3):
            codec.open_stream(CONNECT, None)
        codec.receive(memoryview(frames.settings({}) + frames.goaway(0, 0)))
        assert recorder.events[-2:] == [("reset", 1, ErrorCode.REFUSED_STREAM), ("goaway", 0, 0)]
        assert codec.streams == {}

    def test_peer_that_takes_the_dynamic_table_away(self) -> None:
        link = Link(Role.CLIENT).start()
        link.peer.update_settings({h2.settings.SettingCodes.HEADER_TABLE_SIZE: 0})
        link.pump()
        for _ in range(2):
            link.codec.open_stream(CONNECT, None)
        link.pump()
        assert len(link.of(h2.events.RequestReceived)) == 2
        link.peer.update_settings({h2.settings.SettingCodes.HEADER_TABLE_SIZE: 8192})
        link.pump()
        link.codec.open_stream(CONNECT, None)
        link.pump()
        assert len(link.of(h2.events.RequestReceived)) == 3

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
    def test_end_is_not_told_of_a_stream_that_its_request_handler_reset(self) -> None:
        class Resets(Recorder):
            def on_request(self, stream, headers, end_stream):  # type: ignore[no-untyped-def]
                super().on_request(stream, headers, end_stream)
                self.codec.reset(stream, ErrorCode.CANCEL)

        codec, recorder = make(Role.SERVER, Resets())
        ending = frames.headers(1, CONNECT, end_stream=True, max_frame_bytes=99)
        codec.receive(memoryview(frames.PREFACE + frames.settings({}) + ending))
        assert [event[0] for event in recorder.events] == ["settings", "request"]

    def test_remembered_resets_are_bounded(self) -> None:
        codec, _ = make(Role.CLIENT)
        codec.receive(memoryview(frames.settings({Setting.MAX_CONCURRENT_STREAMS: 1000})))
        for _ in range(2 * MAX_REMEMBERED_RESETS):
            codec.reset(codec.open_stream(CONNECT, None), ErrorCode.CANCEL)
        assert len(codec._resets) == MAX_REMEMBERED_RESETS
        codec.receive(memoryview(frames.frame_header(FrameType.DATA, 0, codec._next_stream - 2, 1) + b"x"))
        with pytest.raises(ProtocolError, match="which it had ended"):
            codec.receive(memoryview(frames.frame_header(FrameType.DATA, 0, 1, 1) + b"x"))

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
