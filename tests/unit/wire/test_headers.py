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
