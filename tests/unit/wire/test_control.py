"""Hostile peers: each violation has its name and its HTTP/2 code, and memory stays bounded."""

from __future__ import annotations

import itertools

import pytest

from nodeproxy.errors import ProtocolError
from nodeproxy.model.reason import Reason
from nodeproxy.wire import frames
from nodeproxy.wire.connection import HboneConnection, Role
from nodeproxy.wire.frames import ErrorCode, Setting
from nodeproxy.wire.headers import encode_block
from nodeproxy.wire.limits import (
    MAX_CONTINUATION_FRAMES,
    MAX_IDLE_FRAMES,
    MAX_UNSENT_CONTROL_BYTES,
    MAX_WASTED_STREAMS,
)
from nodeproxy.wire.stream import Headers, Stream
from tests.unit.wire.recorder import CONNECT, OK, Recorder, make

pytestmark = pytest.mark.unit

END, ALL, PAD, PRIO, ACK = frames.END_STREAM, frames.END_HEADERS, frames.PADDED, frames.PRIORITY, frames.ACK


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    return frames.frame_header(kind, flags, stream_id, len(payload)) + payload


def request(stream_id: int) -> bytes:
    return frames.headers(stream_id, CONNECT, end_stream=False, max_frame_bytes=16384)


def server(**settings: int) -> tuple[HboneConnection, Recorder]:
    codec, recorder = make(Role.SERVER, **settings)
    codec.receive(memoryview(frames.PREFACE + frames.settings({}) + frames.SETTINGS_ACK))
    codec.take_out()
    return codec, recorder


def client() -> tuple[HboneConnection, Recorder]:
    """With one stream open."""
    codec, recorder = make(Role.CLIENT)
    codec.receive(memoryview(frames.settings({}) + frames.SETTINGS_ACK))
    codec.open_stream(CONNECT, None)
    codec.take_out()
    return codec, recorder


def refused(codec: HboneConnection, data: bytes) -> tuple[Reason, int]:
    with pytest.raises(ProtocolError) as caught:
        codec.receive(memoryview(data))
    assert bytes(codec.out).endswith(frames.goaway(codec._last_peer_stream, caught.value.code))
    return caught.value.reason, caught.value.code


H2, FLOW = Reason.H2_PROTOCOL, Reason.H2_FLOW_CONTROL
SERVER_VIOLATIONS = {
    "frame too long": (frames.frame_header(0x77, 0, 0, (1 << 20) + 1), H2, ErrorCode.FRAME_SIZE_ERROR),
    "DATA too long": (request(1) + frames.frame_header(0, 0, 1, (1 << 20) + 1), H2, ErrorCode.FRAME_SIZE_ERROR),
    "DATA for stream 0": (frame(0, 0, 0, b"x"), H2, ErrorCode.PROTOCOL_ERROR),
    "DATA for an idle stream": (frame(0, 0, 1, b"x"), H2, ErrorCode.PROTOCOL_ERROR),
    "DATA padding": (request(1) + frame(0, PAD, 1, b"\5abcd"), H2, ErrorCode.PROTOCOL_ERROR),
    "DATA amid a block": (request(1) + frame(1, 0, 3, b"") + frame(0, 0, 1, b"x"), H2, ErrorCode.PROTOCOL_ERROR),
    "HEADERS for stream 0": (frame(1, ALL, 0, CONNECT), H2, ErrorCode.PROTOCOL_ERROR),
    "HEADERS for an even stream": (frame(1, ALL, 2, CONNECT), H2, ErrorCode.PROTOCOL_ERROR),
    "HEADERS for a lower stream": (request(5) + request(3), H2, ErrorCode.STREAM_CLOSED),
    "HEADERS padding": (frame(1, ALL | PAD, 1, b"\5abcd"), H2, ErrorCode.PROTOCOL_ERROR),
    "HEADERS padding, empty": (frame(1, ALL | PAD, 1), H2, ErrorCode.PROTOCOL_ERROR),
    "HEADERS priority, short": (frame(1, ALL | PRIO, 1, b"1234"), H2, ErrorCode.PROTOCOL_ERROR),
    "HEADERS amid a block": (frame(1, 0, 1, CONNECT) + request(3), H2, ErrorCode.PROTOCOL_ERROR),
    "CONTINUATION alone": (frame(9, ALL, 1, b""), H2, ErrorCode.PROTOCOL_ERROR),
    "CONTINUATION of another": (frame(1, 0, 1, CONNECT) + frame(9, ALL, 3), H2, ErrorCode.PROTOCOL_ERROR),
    "PUSH_PROMISE": (frame(5, ALL, 1, b"\0\0\0\2"), H2, ErrorCode.PROTOCOL_ERROR),
    "PRIORITY length": (frame(2, 0, 1, b"1234"), H2, ErrorCode.FRAME_SIZE_ERROR),
    "PRIORITY for stream 0": (frame(2, 0, 0, b"12345"), H2, ErrorCode.PROTOCOL_ERROR),
    "RST_STREAM length": (request(1) + frame(3, 0, 1, b"12345"), H2, ErrorCode.FRAME_SIZE_ERROR),
    "RST_STREAM for an idle stream": (frames.rst_stream(1, 0), H2, ErrorCode.PROTOCOL_ERROR),
    "RST_STREAM for stream 0": (frames.rst_stream(0, 0), H2, ErrorCode.PROTOCOL_ERROR),
    "SETTINGS for a stream": (frame(4, 0, 1), H2, ErrorCode.PROTOCOL_ERROR),
    "SETTINGS length": (frame(4, 0, 0, b"12345"), H2, ErrorCode.FRAME_SIZE_ERROR),
    "SETTINGS ACK with payload": (frame(4, ACK, 0, b"123456"), H2, ErrorCode.FRAME_SIZE_ERROR),
    "SETTINGS without end": (frame(4, 0, 0, b"\xff\xff\0\0\0\0" * 65), Reason.H2_CONTROL_FLOOD, ErrorCode.ENHANCE_YOUR_CALM),
    "INITIAL_WINDOW_SIZE": (frames.settings({Setting.INITIAL_WINDOW_SIZE: 1 << 31}), FLOW, ErrorCode.FLOW_CONTROL_ERROR),
    "MAX_FRAME_SIZE, small": (frames.settings({Setting.MAX_FRAME_SIZE: 16383}), H2, ErrorCode.PROTOCOL_ERROR),
    "MAX_FRAME_SIZE, large": (frames.settings({Setting.MAX_FRAME_SIZE: 1 << 24}), H2, ErrorCode.PROTOCOL_ERROR),
    "ENABLE_PUSH": (frames.settings({Setting.ENABLE_PUSH: 2}), H2, ErrorCode.PROTOCOL_ERROR),
    "PING length": (frame(6, 0, 0, b"1234567"), H2, ErrorCode.FRAME_SIZE_ERROR),
    "PING for a stream": (frame(6, 0, 1, b"12345678"), H2, ErrorCode.PROTOCOL_ERROR),
    "GOAWAY length": (frame(7, 0, 0, b"1234567"), H2, ErrorCode.FRAME_SIZE_ERROR),
    "GOAWAY for a stream": (frame(7, 0, 1, b"12345678"), H2, ErrorCode.PROTOCOL_ERROR),
    "WINDOW_UPDATE length": (frame(8, 0, 0, b"123"), H2, ErrorCode.FRAME_SIZE_ERROR),
    "WINDOW_UPDATE of 0": (frames.window_update(0, 0), H2, ErrorCode.PROTOCOL_ERROR),
    "WINDOW_UPDATE, too large": (frames.window_update(0, (1 << 31) - 1), FLOW, ErrorCode.FLOW_CONTROL_ERROR),
    "WINDOW_UPDATE for an idle stream": (frames.window_update(1, 1), H2, ErrorCode.PROTOCOL_ERROR),
    "window made too large": (
        request(1) + frames.window_update(1, (1 << 31) - 1 - 65535) + frames.settings({Setting.INITIAL_WINDOW_SIZE: 65536}),
        FLOW,
        ErrorCode.FLOW_CONTROL_ERROR,
    ),
    "DATA after RST_STREAM": (request(1) + frames.rst_stream(1, 0) + frame(0, 0, 1, b"x"), H2, ErrorCode.STREAM_CLOSED),
    "block with index 0": (frame(1, ALL, 1, b"\x80"), H2, ErrorCode.COMPRESSION_ERROR),
    "block with a dynamic entry": (frame(1, ALL, 1, b"\xbe"), H2, ErrorCode.COMPRESSION_ERROR),
    "block cut short": (frame(1, ALL, 1, b"\x00\x05ab"), H2, ErrorCode.COMPRESSION_ERROR),
}


class TestConnectionErrors:
    @pytest.mark.parametrize("name", SERVER_VIOLATIONS)
    @pytest.mark.parametrize("step", [1, 1 << 20])
    def test_server(self, name: str, step: int) -> None:
        data, reason, code = SERVER_VIOLATIONS[name]
        codec, _ = server()
        caught = None
        try:
            for start in range(0, len(data), step):
                codec.receive(memoryview(data[start : start + step]))
        except ProtocolError as error:
            caught = error
        assert caught is not None
        assert (caught.reason, caught.code) == (reason, code)
        assert bytes(codec.out).endswith(frames.goaway(codec._last_peer_stream, code))

    @pytest.mark.parametrize(
        ("data", "code"),
        [
            (frame(1, ALL, 3, OK), ErrorCode.PROTOCOL_ERROR),  # idle
            (frame(1, ALL, 2, OK), ErrorCode.PROTOCOL_ERROR),  # a push
            (frames.settings({Setting.ENABLE_PUSH: 1}), ErrorCode.PROTOCOL_ERROR),
            (frame(1, ALL, 1, OK) + frames.rst_stream(1, 0) + frame(0, END, 1), ErrorCode.STREAM_CLOSED),
        ],
    )
    def test_client(self, data: bytes, code: ErrorCode) -> None:
        codec, _ = client()
        assert refused(codec, data) == (H2, code)

    def test_first_frame_must_be_settings(self) -> None:
        codec, _ = make(Role.SERVER)
        assert refused(codec, frames.PREFACE + frames.ping(b"12345678", ack=False)) == (H2, ErrorCode.PROTOCOL_ERROR)

    def test_more_than_the_connections_window(self) -> None:
        codec, recorder = server(connection_window_bytes=65535)
        recorder.credits = False
        full = frame(0, 0, 1, bytes(65535))
        codec.receive(memoryview(request(1) + full))
        assert refused(codec, frame(0, 0, 1, b"x")) == (FLOW, ErrorCode.FLOW_CONTROL_ERROR)

    def test_more_than_the_streams_window(self) -> None:
        codec, recorder = server(stream_window_bytes=100_000)
        recorder.credits = False
        codec.receive(memoryview(request(1) + frame(0, 0, 1, bytes(100_000))))
        assert refused(codec, frame(0, 0, 1, b"x")) == (FLOW, ErrorCode.FLOW_CONTROL_ERROR)


class TestStreamErrors:
    @pytest.mark.parametrize(
        ("data", "code"),
        [
            (frames.window_update(1, 0), ErrorCode.PROTOCOL_ERROR),
            (frames.window_update(1, (1 << 31) - 1), ErrorCode.FLOW_CONTROL_ERROR),
            (frame(1, ALL, 1, CONNECT), ErrorCode.PROTOCOL_ERROR),  # a second HEADERS without END_STREAM
            (frame(1, ALL | END, 1, CONNECT), ErrorCode.PROTOCOL_ERROR),  # trailers with pseudo-header fields
            (frame(0, END, 1) + frame(0, 0, 1, b"x"), ErrorCode.STREAM_CLOSED),
            (frame(0, END, 1) + frame(1, ALL | END, 1), ErrorCode.STREAM_CLOSED),
        ],
    )
    def test_server_resets_the_stream_alone(self, data: bytes, code: ErrorCode) -> None:
        codec, recorder = server()
        codec.receive(memoryview(request(1) + request(3) + data))
        assert codec.take_out() == frames.rst_stream(1, code)
        assert recorder.events[-1] == ("reset", 1, code)
        assert set(codec.streams) == {3}

    @pytest.mark.parametrize(
        "data",
        [
            frame(0, 0, 1, b"DATA before the response"),
            frame(1, ALL, 1, encode_block([(b":status", b"abc")])),
            frame(1, ALL, 1, encode_block([(b":status", b"101")])),
            frame(1, ALL | END, 1, encode_block([(b":status", b"103")])),
            frame(1, ALL, 1, encode_block([(b"x", b"1")])),
            frame(1, ALL, 1, OK) + frame(1, ALL, 1, encode_block([(b"x", b"1")])),
        ],
    )
    def test_client_resets_the_stream(self, data: bytes) -> None:
        codec, recorder = client()
        codec.receive(memoryview(data))
        assert codec.take_out() == frames.rst_stream(1, ErrorCode.PROTOCOL_ERROR)
        assert recorder.events[-1] == ("reset", 1, ErrorCode.PROTOCOL_ERROR)

    def test_frames_under_way_when_we_reset_are_no_fault(self) -> None:
        codec, recorder = server(connection_window_bytes=65535)
        codec.receive(memoryview(request(1)))
        codec.reset(recorder.streams[1], ErrorCode.CANCEL)
        late = frame(0, 0, 1, bytes(16384)) + frames.window_update(1, 5) + frame(1, ALL | END, 1) + frames.rst_stream(1, 8)
        codec.receive(memoryview(late))
        assert codec.take_out() == frames.rst_stream(1, ErrorCode.CANCEL) + frames.window_update(0, 16384)
        assert [event[0] for event in recorder.events] == ["settings", "request"]


class TestFloods:
    def test_headers_too_large_by_their_frame(self) -> None:
        codec, _ = server()
        data = frames.frame_header(1, ALL, 1, 64 * 1024 + 300)
        assert refused(codec, data) == (Reason.H2_HEADERS_TOO_LARGE, ErrorCode.ENHANCE_YOUR_CALM)

    def test_headers_too_large_by_their_number(self) -> None:
        codec, _ = server()
        block = CONNECT + b"\x90" * 2000  # accept-encoding: gzip, deflate: 60 bytes each
        assert refused(codec, frame(1, ALL, 1, block)) == (Reason.H2_HEADERS_TOO_LARGE, ErrorCode.ENHANCE_YOUR_CALM)

    def test_continuation_that_grows(self) -> None:
        codec, _ = server()
        data = frame(1, 0, 1, bytes(16384)) + b"".join(frame(9, 0, 1, bytes(16384)) for _ in range(4))
        assert refused(codec, data) == (Reason.H2_HEADERS_TOO_LARGE, ErrorCode.ENHANCE_YOUR_CALM)
        assert len(codec._block) <= 64 * 1024

    def test_empty_continuations(self) -> None:
        codec, _ = server()
        data = frame(1, 0, 1, CONNECT) + frame(9, 0, 1) * (MAX_CONTINUATION_FRAMES + 1)
        assert refused(codec, data) == (Reason.H2_CONTINUATION_FLOOD, ErrorCode.ENHANCE_YOUR_CALM)

    def test_long_block_in_continuations_is_taken(self) -> None:
        codec, recorder = server()
        block = CONNECT + encode_block([(b"x", b"y" * 60_000)])
        codec.receive(memoryview(frames.headers(1, block, end_stream=False, max_frame_bytes=16384)))
        assert recorder.named("request")[0][2][-1] == (b"x", b"y" * 60_000)

    @pytest.mark.parametrize("flood", [frames.ping(b"12345678", ack=False), frames.settings({})], ids=["PING", "SETTINGS"])
    def test_answers_that_nobody_reads(self, flood: bytes) -> None:
        codec, _ = server()
        answer = len(frames.SETTINGS_ACK) if flood == frames.settings({}) else len(flood)
        allowed = MAX_UNSENT_CONTROL_BYTES // answer
        for _ in range(3):
            for _ in range(allowed):
                codec.receive(memoryview(flood))
            codec.take_out()
        for _ in range(allowed):
            codec.receive(memoryview(flood))
        assert refused(codec, flood) == (Reason.H2_CONTROL_FLOOD, ErrorCode.ENHANCE_YOUR_CALM)
        assert len(codec.out) < MAX_UNSENT_CONTROL_BYTES + 100

    @pytest.mark.parametrize(
        "flood",
        [
            frame(0, 0, 1),
            frames.window_update(0, 1),
            frames.window_update(1, 1),
            frame(2, 0, 1, b"12345"),
            frame(0xAA, 0, 0),
            frames.SETTINGS_ACK,
        ],
        ids=["DATA", "WINDOW_UPDATE", "WINDOW_UPDATE of a stream", "PRIORITY", "unknown", "ACK"],
    )
    def test_frames_that_move_nothing(self, flood: bytes) -> None:
        codec, _ = server()
        codec.receive(memoryview(request(1)))
        codec.receive(memoryview(flood * MAX_IDLE_FRAMES))
        assert refused(codec, flood * MAX_IDLE_FRAMES) == (Reason.H2_CONTROL_FLOOD, ErrorCode.ENHANCE_YOUR_CALM)

    def test_idle_frames_are_forgiven_by_data_and_by_time(self) -> None:
        codec, recorder = server()
        codec.receive(memoryview(request(1)))
        updates = frames.window_update(1, 1) * 6000
        codec.receive(memoryview(updates + frame(0, 0, 1, b"x") + updates))
        for _ in range(6):
            codec.receive(memoryview(frames.window_update(1, 1) * 4000))
        assert bytes(recorder.data[1]) == b"x"

    def test_rapid_reset(self) -> None:
        codec, _ = server()
        for number in range(MAX_WASTED_STREAMS):
            codec.receive(memoryview(request(1 + 2 * number) + frames.rst_stream(1 + 2 * number, 8)))
        last = 1 + 2 * MAX_WASTED_STREAMS
        assert refused(codec, request(last) + frames.rst_stream(last, 8)) == (Reason.H2_RAPID_RESET, ErrorCode.ENHANCE_YOUR_CALM)

    def test_rapid_reset_is_one_however_fast_we_answer(self) -> None:
        class Fast(Recorder):
            def on_request(self, stream: Stream, headers: Headers, end_stream: bool) -> None:
                self.codec.respond(stream, OK)

        codec, _ = make(Role.SERVER, Fast())
        codec.receive(memoryview(frames.PREFACE + frames.settings({})))
        for number in range(MAX_WASTED_STREAMS):
            codec.receive(memoryview(request(1 + 2 * number) + frames.rst_stream(1 + 2 * number, 8)))
            codec.take_out()
        last = 1 + 2 * MAX_WASTED_STREAMS
        assert refused(codec, request(last) + frames.rst_stream(last, 8)) == (Reason.H2_RAPID_RESET, ErrorCode.ENHANCE_YOUR_CALM)

    def test_streams_that_end_as_they_should_make_up_for_resets(self) -> None:
        codec, recorder = server()
        for stream_id in range(1, 8 * MAX_WASTED_STREAMS, 4):
            codec.receive(memoryview(request(stream_id) + frames.rst_stream(stream_id, 8) + request(stream_id + 2)))
            stream = recorder.streams[stream_id + 2]
            codec.respond(stream, OK)
            codec.end_stream(stream)
            codec.receive(memoryview(frames.frame_header(0, frames.END_STREAM, stream_id + 2, 0)))
            codec.take_out()

    def test_rapid_reset_is_forgiven_by_pings_of_ours_alone(self) -> None:
        codec, recorder = server()
        pong = frames.ping(b"12345678", ack=True)
        codec.receive(memoryview(pong))
        assert not recorder.named("pong")
        stream_ids = iter(range(1, 10_000, 2))

        def waste() -> None:
            for stream_id in itertools.islice(stream_ids, MAX_WASTED_STREAMS // 2):
                codec.receive(memoryview(request(stream_id) + frames.rst_stream(stream_id, 8)))

        waste()
        for _ in range(5):
            waste()
            codec.ping(b"12345678")
            codec.receive(memoryview(pong + pong))
        assert len(recorder.named("pong")) == 5
        waste()
        with pytest.raises(ProtocolError, match="reset more than"):
            waste()

    def test_making_us_reset_is_rapid_reset_too(self) -> None:
        codec, _ = server()
        attacks = [request(i) + frames.window_update(i, 0) for i in range(1, 2 * MAX_WASTED_STREAMS + 2, 2)]
        for attack in attacks[:-1]:
            codec.receive(memoryview(attack))
            codec.take_out()
        assert refused(codec, attacks[-1])[0] is Reason.H2_RAPID_RESET

    def test_resets_after_an_answer_are_no_flood(self) -> None:
        codec, recorder = server()
        for stream_id in range(1, 4 * MAX_WASTED_STREAMS, 2):
            codec.receive(memoryview(request(stream_id)))
            codec.respond(recorder.streams[stream_id], OK)
            codec.receive(memoryview(frames.rst_stream(stream_id, 8)))
            codec.take_out()
        assert codec.streams == {}

    def test_refused_streams_are_bounded_by_unsent_answers(self) -> None:
        codec, _ = server(max_streams=1)
        data = b"".join(request(stream_id) for stream_id in range(1, 12_001, 2))
        assert refused(codec, data)[0] is Reason.H2_CONTROL_FLOOD
        assert len(codec.out) < MAX_UNSENT_CONTROL_BYTES + 100

    def test_long_debug_data_is_not_kept(self) -> None:
        codec, recorder = server()
        debug = frame(7, 0, 0, bytes(8) + bytes(1_000_000))
        for start in range(0, len(debug), 10_000):
            codec.receive(memoryview(debug[start : start + 10_000]))
        assert recorder.events[-1] == ("goaway", 0, 0)
        assert len(codec._pending) == 0

    def test_unknown_frames_are_skipped(self) -> None:
        codec, recorder = server()
        codec.receive(memoryview(frame(0xAA, 0xFF, 7, bytes(100_000)) + request(1)))
        assert [event[0] for event in recorder.events] == ["settings", "request"]


def test_priority_and_padding_around_headers_are_removed() -> None:
    codec, recorder = server()
    around = frame(1, ALL | PAD | PRIO, 1, b"\x03" + b"\0\0\0\0\x10" + CONNECT + b"\0\0\0")
    codec.receive(memoryview(around + frame(2, 0, 9, b"12345")))
    assert recorder.named("request")[0][2] == ((b":method", b"CONNECT"), (b":authority", b"10.0.0.1:80"))
