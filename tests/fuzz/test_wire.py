"""Whatever a peer sends, only ProtocolError comes out of the codec, and what it keeps stays bounded.

The parsers of the text that tunnels carry return values or nothing: nothing comes out of them at all.
"""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nodeproxy.errors import ProtocolError
from nodeproxy.wire import frames
from nodeproxy.wire.baggage import parse_baggage
from nodeproxy.wire.connection import HboneConnection, Role
from nodeproxy.wire.fields import FieldBlock
from nodeproxy.wire.frames import FrameType, Setting
from nodeproxy.wire.hbone import ConnectRequest, parse_authority, parse_connect
from nodeproxy.wire.headers import BlockDecoder, encode_block
from nodeproxy.wire.hpack_static import decode_static
from nodeproxy.wire.limits import MAX_REMEMBERED_RESETS, MAX_UNSENT_CONTROL_BYTES
from nodeproxy.wire.stream import Headers, Stream
from tests.unit.wire.recorder import CONNECT, OK

pytestmark = pytest.mark.fuzz

# Bounded, so that the whole file takes a few seconds, and the same on each run.
FUZZ = settings(max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
MAX_KEPT_BYTES = 64 * 1024 + 300
FRAME = 16384


class Unsteady:
    """A handler that does by chance whatever a handler may do, and checks what it is told."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.codec: HboneConnection
        self.owed: dict[int, int] = {}
        self.gone: set[int] = set()
        self.ended: set[int] = set()

    def act(self, stream: Stream) -> None:
        choice = self.random.randrange(8)
        if choice == 0:
            self.codec.reset(stream, 8)
            self.gone.add(stream.id)
        elif choice == 1:
            self.codec.end_stream(stream)
        elif choice == 2 and self.codec.role is Role.SERVER and not stream.closed and not stream.answered:
            self.codec.respond(stream, OK, end_stream=self.random.random() < 0.2)
        elif choice == 3:
            length = min(self.codec.sendable(stream), self.codec.peer_max_frame_size, 1000)
            if length > 0 and stream.local_open:
                self.codec.data_header_into(bytearray(9), 0, stream, length)

    def on_request(self, stream: Stream, headers: Headers, end_stream: bool) -> None:
        assert isinstance(headers, tuple)
        self.act(stream)

    def on_response(self, stream: Stream, headers: Headers, end_stream: bool) -> None:
        self.act(stream)

    def on_data(self, stream: Stream, chunk: memoryview) -> None:
        assert len(chunk) > 0
        assert stream.id not in self.gone | self.ended
        self.codec.credit(stream, len(chunk))
        self.act(stream)

    def on_end(self, stream: Stream) -> None:
        assert stream.id not in self.gone | self.ended
        self.ended.add(stream.id)
        self.act(stream)

    def on_reset(self, stream: Stream, code: int) -> None:
        assert stream.id not in self.gone
        assert stream.closed
        self.gone.add(stream.id)

    def on_window(self, stream: Stream | None) -> None:
        if stream is not None:
            self.act(stream)

    def on_settings(self) -> None:
        assert 16384 <= self.codec.peer_max_frame_size < 1 << 24

    def on_goaway(self, last_stream_id: int, code: int) -> None:
        assert not self.codec.can_open

    def on_pong(self, payload: bytes) -> None:
        assert len(payload) == 8


def check_bounds(codec: HboneConnection) -> None:
    assert len(codec._pending) <= MAX_KEPT_BYTES
    assert len(codec._block) <= MAX_KEPT_BYTES
    assert len(codec.streams) <= 200
    assert len(codec._resets) <= MAX_REMEMBERED_RESETS
    assert codec._patience.unsent_bytes <= MAX_UNSENT_CONTROL_BYTES + 100
    assert all(not stream.closed for stream in codec.streams.values())


def receive(codec: HboneConnection, data: memoryview) -> ProtocolError | None:
    try:
        codec.receive(data)
    except ProtocolError as error:
        return error
    return None


def run(role: Role, data: bytes, seed: int) -> None:
    """Feed `data` in pieces of every size."""
    handler = Unsteady(seed)
    codec = handler.codec = HboneConnection(role, handler, connection_window_bytes=1 << 20, stream_window_bytes=1 << 18)
    if role is Role.CLIENT:
        for _ in range(3):
            codec.open_stream(CONNECT, None)
    position = 0
    while position < len(data):
        size = handler.random.choice((1, 3, 9, 10, 100, 5000, 1 << 20))
        failure = receive(codec, memoryview(data)[position : position + size])
        check_bounds(codec)
        if failure is not None:
            assert failure.code in set(frames.ErrorCode)
            assert bytes(codec.out).endswith(frames.goaway(codec._last_peer_stream, failure.code))
            return
        position += size
        if handler.random.random() < 0.5:
            codec.take_out()


def start_of(role: Role) -> bytes:
    preface = frames.PREFACE if role is Role.SERVER else b""
    return preface + frames.settings({Setting.INITIAL_WINDOW_SIZE: 1 << 20}) + frames.SETTINGS_ACK


def raw(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    return frames.frame_header(kind, flags, stream_id, len(payload)) + payload


INTERIM, TRAILERS = encode_block([(b":status", b"103")]), encode_block([(b"x", b"y")])
BLOCKS = st.sampled_from([CONNECT, OK, b"", TRAILERS, INTERIM, b"\x20" + CONNECT, b"\x40\x01a\x01b", b"\xbe", b"\x80"])
FRAMES = st.one_of(
    st.builds(raw, st.just(FrameType.HEADERS), st.sampled_from([0, 4, 5, 12, 36, 45]), st.integers(0, 12), BLOCKS),
    st.builds(raw, st.just(FrameType.DATA), st.sampled_from([0, 0, 1, 8, 9]), st.integers(0, 9), st.binary(max_size=50)),
    st.builds(raw, st.just(FrameType.DATA), st.just(0), st.integers(1, 7), st.integers(0, 20_000).map(bytes)),
    st.builds(frames.window_update, st.integers(0, 9), st.one_of(st.integers(0, 1 << 31), st.integers(0, 9))),
    st.builds(frames.rst_stream, st.integers(0, 9), st.integers(0, 20)),
    st.builds(frames.goaway, st.integers(0, 9), st.integers(0, 20)),
    st.builds(raw, st.integers(0, 12), st.integers(0, 255), st.integers(0, 9), st.binary(max_size=20)),
    st.builds(lambda key, value: raw(4, 0, 0, frames.SETTING.pack(key, value)), st.integers(0, 7), st.integers(0, 1 << 17)),
    st.just(frames.SETTINGS_ACK),
    st.just(frames.ping(b"12345678", ack=False)),
)


@FUZZ
@given(st.sampled_from(Role), st.binary(max_size=400), st.booleans(), st.integers(0, 1 << 20))
def test_random_bytes(role: Role, data: bytes, started: bool, seed: int) -> None:
    run(role, (start_of(role) if started else b"") + data, seed)


@FUZZ
@given(st.sampled_from(Role), st.lists(FRAMES, max_size=30), st.integers(0, 1 << 20))
def test_frames_in_any_order(role: Role, session: list[bytes], seed: int) -> None:
    run(role, start_of(role) + b"".join(session), seed)


def sane_session(role: Role, rng: random.Random) -> bytes:
    said = bytearray(start_of(role))
    block = CONNECT if role is Role.SERVER else OK
    for stream_id in (1, 3, 5):
        whole = block + encode_block([(b"x", rng.randbytes(40).hex().encode())])
        said += frames.headers(stream_id, whole, end_stream=False, max_frame_bytes=30)
    for _ in range(10):
        stream_id = rng.choice((1, 3, 5))
        said += raw(0, 0, stream_id, rng.randbytes(rng.randrange(1, 300)))
        updates = frames.window_update(stream_id, 100), frames.window_update(0, 100)
        said += rng.choice((*updates, frames.ping(b"12345678", ack=True), b""))
    return bytes(said + raw(0, 1, 1, b"end") + frames.rst_stream(3, 8) + raw(0, 9, 5, b"\3end\0\0\0"))


@pytest.mark.parametrize("role", Role)
def test_mutated_sessions(role: Role) -> None:
    for seed in range(500):
        rng = random.Random(seed)
        session = bytearray(sane_session(role, rng))
        for _ in range(rng.randrange(4)):
            position = rng.randrange(len(session))
            match rng.randrange(4):
                case 0:
                    session[position] = rng.randrange(256)
                case 1:
                    session[position] ^= 1 << rng.randrange(8)
                case 2:
                    del session[position : position + rng.randrange(1, 20)]
                case _:
                    session[position:position] = session[max(0, position - rng.randrange(40)) : position]
        run(role, bytes(session), seed)


@FUZZ
@given(st.binary(max_size=200), st.booleans())
def test_header_blocks(block: bytes, dynamic: bool) -> None:
    decoder = BlockDecoder(2000)
    if not dynamic:
        decoder.settings_acknowledged()
    try:
        fields = decoder.decode(block)
    except ProtocolError:
        return
    assert sum(len(name) + len(value) + 32 for name, value in fields.headers) <= 2000
    if not fields.request_fault:
        parse_connect(fields.headers)


@FUZZ
@given(st.lists(st.tuples(st.binary(max_size=300), st.binary(max_size=300)), max_size=8))
def test_any_fields_survive_encoding(fields: list[tuple[bytes, bytes]]) -> None:
    decoder = BlockDecoder(64 * 1024)
    assert decoder.decode(encode_block(fields)).headers == tuple(fields)
    decoder.settings_acknowledged()
    assert decoder.decode(encode_block(fields)).headers == tuple(fields)


_NAMES = st.sampled_from([b":method", b":authority", b":path", b"baggage", b"forwarded", b"traceparent", b"x", b"X"])
_VALUES = st.one_of(st.binary(max_size=20), st.sampled_from([b"CONNECT", b"a:1", b"\x00\x09forwarded", b"\x00\x09forwarded\x00"]))


def _outcome(decode: Callable[[], FieldBlock]) -> object:
    try:
        return decode()
    except ProtocolError as error:
        return error.reason, error.code


@FUZZ
@given(st.lists(st.lists(st.tuples(_NAMES, _VALUES), max_size=5), min_size=2, max_size=4), st.binary(max_size=4))
def test_what_is_remembered_of_blocks_changes_nothing(parts: list[list[tuple[bytes, bytes]]], junk: bytes) -> None:
    """Blocks that begin alike, decoded by who remembers and by who does not."""
    decoder = BlockDecoder(2000)
    decoder.settings_acknowledged()
    for part in (*parts[1:], *parts[1:]):
        block = encode_block(parts[0]) + encode_block(part) + junk
        expected, found = (
            _outcome(lambda block=block: FieldBlock(decode_static(block, 2000))),
            _outcome(lambda block=block: decoder.decode(block)),
        )
        if not isinstance(expected, FieldBlock) or not isinstance(found, FieldBlock):
            assert found == expected
            continue
        assert found.headers == expected.headers
        assert (bool(found.request_fault), bool(found.response_fault), bool(found.trailer_fault), found.status) == (
            bool(expected.request_fault),
            bool(expected.response_fault),
            bool(expected.trailer_fault),
            expected.status,
        )


@FUZZ
@given(st.one_of(st.text(max_size=80), st.from_regex(r"[\[\]0-9a-f:.%]{0,30}:[0-9]{0,6}")))
def test_text_of_a_peer(text: str) -> None:
    parse_baggage(text)
    request = ConnectRequest("", "", 0, False, forwarded=text)
    assert len(request.forwarded_host) <= 253
    authority = parse_authority(text)
    if authority is not None:
        assert 0 < authority.port < 65536
        if authority.is_ip:
            assert str(ipaddress.ip_address(authority.host)) == authority.host
        else:
            assert authority.host == authority.host.lower()
