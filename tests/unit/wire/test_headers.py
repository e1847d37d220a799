from __future__ import annotations

import hpack
import pytest

from nodeproxy.errors import ProtocolError
from nodeproxy.model.reason import Reason
from nodeproxy.wire import headers, hpack_static
from nodeproxy.wire.frames import ErrorCode
from nodeproxy.wire.headers import BlockDecoder, encode_block

pytestmark = pytest.mark.unit

FIELDS = (
    (b":method", b"CONNECT"),
    (b":authority", b"10.0.0.1:8080"),
    (b"baggage", b"k8s.cluster.name=Kubernetes,k8s.namespace.name=default"),
    (b"forwarded", b'for="10.0.0.2:1234"'),
    (b"x-empty", b""),
    (b"x-long", b"v" * 1000),
)


def acknowledged(limit: int = 64 * 1024) -> BlockDecoder:
    decoder = BlockDecoder(limit)
    decoder.settings_acknowledged()
    return decoder


def stateless_encoder() -> hpack.Encoder:
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    encoder.encode([])
    return encoder


def test_what_we_encode_every_decoder_reads() -> None:
    block = encode_block(FIELDS)
    assert tuple(hpack.Decoder().decode(block, raw=True)) == FIELDS
    assert acknowledged().decode(block).headers == FIELDS
    assert BlockDecoder(64 * 1024).decode(block).headers == FIELDS


@pytest.mark.parametrize("status", [b"200", b"204", b"401", b"503"])
def test_status(status: bytes) -> None:
    block = encode_block([(b":status", status)])
    assert len(block) == (1 if status in {b"200", b"204"} else 5)
    assert acknowledged().decode(block).status == int(status)


@pytest.mark.parametrize("huffman", [True, False])
def test_what_an_independent_encoder_says(huffman: bool) -> None:
    block = stateless_encoder().encode(FIELDS, huffman=huffman)
    assert acknowledged().decode(block).headers == FIELDS


def test_dynamic_table_is_taken_until_our_settings_are_acknowledged() -> None:
    """A client's first requests may come before it has read our SETTINGS."""
    encoder, decoder = hpack.Encoder(), BlockDecoder(64 * 1024)
    first, second = encoder.encode(FIELDS), encoder.encode(FIELDS)
    assert len(second) == len(FIELDS)  # all by index
    assert decoder.decode(first).headers == FIELDS
    assert decoder.decode(second).headers == FIELDS
    encoder.header_table_size = 0
    decoder.settings_acknowledged()
    assert decoder.decode(encoder.encode(FIELDS)).headers == FIELDS
    assert decoder._dynamic is None
    assert decoder.decode(encoder.encode(FIELDS)).headers == FIELDS


def test_dynamic_table_that_is_not_emptied_after_the_acknowledgement() -> None:
    encoder, decoder = hpack.Encoder(), BlockDecoder(64 * 1024)
    decoder.decode(encoder.encode(FIELDS))
    decoder.settings_acknowledged()
    with pytest.raises(ProtocolError) as caught:
        decoder.decode(encode_block(FIELDS))  # refers to nothing, and yet the update is missing
    assert caught.value.code == ErrorCode.COMPRESSION_ERROR


def test_first_block_of_a_connection_may_shrink_the_table() -> None:
    for decoder in (BlockDecoder(64 * 1024), acknowledged()):
        assert decoder.decode(hpack_static.TABLE_SIZE_ZERO + encode_block(FIELDS)).headers == FIELDS


def test_memory_of_blocks_is_bounded_and_skips_long_ones() -> None:
    decoder = acknowledged()
    for number in range(headers.MAX_MEMO_BLOCKS + 50):
        decoder.decode(encode_block([(b"x", b"%d" % number)]))
        assert len(headers._memo) <= headers.MAX_MEMO_BLOCKS
    block = encode_block([(b"x", b"y" * headers.MAX_MEMO_BLOCK_BYTES)])
    decoder.decode(block)
    assert block not in headers._memo
    many = b"\x90" * (headers.MAX_MEMO_FIELDS + 1)
    decoder.decode(many)
    assert many not in headers._memo
    known = encode_block([(b"x", b"%d" % (headers.MAX_MEMO_BLOCKS + 49))])
    assert decoder.decode(known) is acknowledged().decode(known)


def test_memory_of_strings_is_bounded() -> None:
    decoder, encoder = acknowledged(), stateless_encoder()
    for number in range(hpack_static.MAX_MEMO_STRINGS + 50):
        decoder.decode(encoder.encode([("x", f"value-{number}")]))
        assert 0 < len(hpack_static._huffman_memo) <= hpack_static.MAX_MEMO_STRINGS


@pytest.mark.parametrize("dynamic", [True, False])
def test_list_size_is_limited_as_it_is_decoded(dynamic: bool) -> None:
    decoder = BlockDecoder(1000) if dynamic else acknowledged(1000)
    decoder.decode(encode_block([(b"x", b"y" * 960)]))
    with pytest.raises(ProtocolError) as caught:
        decoder.decode(encode_block([(b"x", b"y" * 968)]))
    assert caught.value.reason is Reason.H2_HEADERS_TOO_LARGE


@pytest.mark.parametrize(
    "block",
    [
        b"\x80",  # index 0
        b"\xbe",  # index 62: dynamic
        b"\xff\x80",  # an integer cut short
        b"\x7f\xff\xff\xff\xff\xff\x0f",  # an integer without end
        b"\x00",
        b"\x00\x01",
        b"\x00\x01x",
        b"\x00\x01x\x05ab",
        b"\x0f\x30\x01x",  # name index 63
        b"\x21",  # enlarges the table
        b"\x88\x20",  # resizes it after a field
        b"\x00\x81\xff\x01x",  # Huffman: padding longer than 7 bits
        b"\x00\x84\xff\xff\xff\xff\x01x",  # Huffman: EOS
    ],
)
def test_broken_blocks(block: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        acknowledged().decode(block)
    assert (caught.value.reason, caught.value.code) == (Reason.H2_PROTOCOL, ErrorCode.COMPRESSION_ERROR)
    if block != b"\x21":  # 1 is a legal size before the acknowledgement
        with pytest.raises(ProtocolError):
            BlockDecoder(1000).decode(block)


def connect(authority: bytes, port: int, *more: tuple[bytes, bytes]) -> tuple[tuple[bytes, bytes], ...]:
    own = (b"forwarded", b'for="10.0.0.2:%d"' % port), (b"traceparent", b"00-%032x-%016x-00" % (port, port))
    return (b":method", b"CONNECT"), (b":authority", authority), (b"baggage", b"a=b"), *own, *more


def test_the_begin_of_requests_is_remembered() -> None:
    headers._begins.clear()
    decoder = acknowledged()
    for port in range(1, 50):
        for authority in (b"10.0.0.1:80", b"10.0.0.1:81"):
            fields = decoder.decode(encode_block(connect(authority, port)))
            assert fields.headers == connect(authority, port)
            assert (fields.request_fault, fields.status) == ("", 0)
            assert fields.response_fault
            assert fields.trailer_fault
    assert len(headers._begins) == 2


@pytest.mark.parametrize(
    "more",
    [
        (b":authority", b"10.0.0.9:80"),
        (b":path", b"/"),
        (b"connection", b"close"),
        (b"x-bad", b"a\nb"),
        (b"x-bad", b" a"),
        (b"x-bad", b"a\t"),
        (b"X-Bad", b"a"),
        (b"", b"a"),
    ],
)
def test_what_is_wrong_behind_a_known_begin_is_seen(more: tuple[bytes, bytes]) -> None:
    decoder = acknowledged()
    decoder.decode(encode_block(connect(b"10.0.0.1:80", 1)))
    fields = decoder.decode(encode_block(connect(b"10.0.0.1:80", 2, more)))
    assert fields.headers == connect(b"10.0.0.1:80", 2, more)
    assert fields.request_fault


def test_what_looks_like_a_field_within_a_value_is_none() -> None:
    headers._begins.clear()
    decoder = acknowledged()
    for port in (1, 2):
        for value in (b"x\x00\x09forwarded\x01a", headers._OWN_FIELD, b"%d" % port + headers._OWN_FIELD):
            fields = (b":method", b"CONNECT"), (b":authority", b"a:1"), (b"x", value), (b"y", b"%d" % port)
            assert decoder.decode(encode_block(fields)).headers == fields


def test_a_begin_that_lacks_something_is_not_remembered() -> None:
    """It may be completed by what follows, which is not looked at together with it."""
    headers._begins.clear()
    decoder = acknowledged()
    for _ in range(2):
        late = decoder.decode(encode_block(((b":method", b"CONNECT"), (b"forwarded", b"x"), (b":authority", b"a:1"))))
        assert late.request_fault
        only = decoder.decode(encode_block(((b":method", b"CONNECT"), (b":authority", b"a:1"), (b"forwarded", b"x"))))
        assert only.request_fault == ""
    assert headers._begins == {}


def test_the_begin_counts_for_the_lists_size() -> None:
    decoder, small = acknowledged(), acknowledged(200)
    decoder.decode(encode_block(connect(b"10.0.0.1:80", 1)))
    with pytest.raises(ProtocolError) as caught:
        small.decode(encode_block(connect(b"10.0.0.1:80", 2)))
    assert caught.value.reason is Reason.H2_HEADERS_TOO_LARGE


def test_memory_of_begins_is_bounded() -> None:
    decoder = acknowledged()
    for number in range(headers.MAX_MEMO_BLOCKS + 50):
        decoder.decode(encode_block(connect(b"10.0.0.1:%d" % (number + 1), 1)))
        assert len(headers._begins) <= headers.MAX_MEMO_BLOCKS
    headers._begins.clear()
    decoder.decode(encode_block(connect(b"a" * headers.MAX_MEMO_BLOCK_BYTES + b":1", 1)))
    assert headers._begins == {}
