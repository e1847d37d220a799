"""HPACK without a dynamic table (RFC 7541): a block means the same on every connection.

So it can be built once and its decoding remembered.

Invariant: nothing is kept between two blocks but decoded Huffman strings, which depend on nothing else.  Refuses whatever
refers to a dynamic table. This is not only simpler but 3 times faster than a decoder that keeps one, and a unique field
(traceparent) costs only its own decoding.
"""

from __future__ import annotations

from collections.abc import Iterable

from hpack.exceptions import HPACKDecodingError
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

from nodeproxy.errors import ProtocolError
from nodeproxy.model.reason import Reason
from nodeproxy.wire.frames import ErrorCode

# RFC 7541, section 4.3: sets the dynamic table's size to 0.  Legal at the start of any block, so it starts the first block of a
# connection, whatever the peer's HEADER_TABLE_SIZE is or becomes.
TABLE_SIZE_ZERO = b"\x20"
ENTRY_OVERHEAD_BYTES = 32  # RFC 9113, section 6.5.2, SETTINGS_MAX_HEADER_LIST_SIZE
# Decoded strings that are remembered: baggage and addresses come again and again; longer ones are rare.  At most 0.4 MiB a
# process.
MAX_MEMO_STRINGS = 512
MAX_MEMO_STRING_BYTES = 256
# RFC 7541, section 5.1: "Integer encodings that exceed implementation limits [...] MUST be treated as decoding errors."
MAX_INTEGER_SHIFT = 28

_STATIC: tuple[tuple[bytes, bytes], ...] = tuple((bytes(name), bytes(value)) for name, value in HeaderTable.STATIC_TABLE)
_FIELD_INDEX = {field: index for index, field in reversed(tuple(enumerate(_STATIC, 1)))}
_NAME_INDEX = {field[0]: index for index, field in reversed(tuple(enumerate(_STATIC, 1)))}
_OCTETS = tuple(bytes((octet,)) for octet in range(128))
_huffman_memo: dict[bytes, bytes] = {}


def encode_block(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A block that may be sent on any connection: static table or literals without indexing, no Huffman coding."""
    parts = bytearray()
    for field in headers:
        name, value = field
        index = _FIELD_INDEX.get(field)
        if index is not None:
            parts.append(0x80 | index)
            continue
        parts += encode_unindexed(encode_name(name), value)
    return bytes(parts)


def encode_name(name: bytes) -> bytes:
    """What a field with this name begins with, if it stands for itself and is not to be indexed (section 6.2.2)."""
    index = _NAME_INDEX.get(name)
    return b"\0" + _integer(len(name), 0x7F) + name if index is None else _integer(index, 0x0F)


def encode_unindexed(encoded_name: bytes, value: bytes) -> bytes:
    """A whole field."""
    return encoded_name + _integer(len(value), 0x7F) + value


def list_bytes(fields: Iterable[tuple[bytes, bytes]]) -> int:
    """The size of a header list as SETTINGS_MAX_HEADER_LIST_SIZE counts it."""
    return sum([len(name) + len(value) + ENTRY_OVERHEAD_BYTES for name, value in fields])


def decode_static(
    block: bytes, max_list_bytes: int, start: int = 0, begin: tuple[tuple[bytes, bytes], ...] = (), begin_bytes: int = 0
) -> tuple[tuple[bytes, bytes], ...]:
    """The fields of a block that uses no dynamic table.  Raises ProtocolError.

    begin, begin_bytes: those up to `start`, known already, and their `list_bytes`.
    """
    try:
        return _decode(block, max_list_bytes, start, begin, begin_bytes)
    except IndexError as exc:
        raise _broken("a header block ends amid a field or refers to a table entry that is not there") from exc
    except HPACKDecodingError as exc:
        raise _broken(f"a header block's Huffman coding is wrong: {exc}") from exc


def _decode(
    block: bytes, max_list_bytes: int, position: int, begin: tuple[tuple[bytes, bytes], ...], size: int
) -> tuple[tuple[bytes, bytes], ...]:
    fields = list(begin)
    end = len(block)
    while position < end:
        first = block[position]
        if first & 0x80:  # section 6.1, indexed
            # Section 6.1: "The index value of 0 is not used.  It MUST be treated as a decoding error".
            index = first & 0x7F
            position += 1
            field = _STATIC[index - 1] if index else _zero_index()
        elif first & 0xE0 == 0x20:  # section 6.3, size update
            # Section 4.2: "This dynamic table size update MUST occur at the beginning of the first header block".
            if fields or first != 0x20:
                raise _broken("a header block enlarges the dynamic table, or resizes it after a field")
            position += 1
            continue
        else:  # section 6.2, literal; an entry to be added is at once larger than the table (section 4.4) and so not kept
            mask = 0x3F if first & 0x40 else 0x0F
            index = first & mask
            if index < mask:
                position += 1
            else:
                index, position = _read_integer(block, position, mask)
            if index:
                name = _STATIC[index - 1][0]
            else:
                name, position = _read_string(block, position)
            value, position = _read_string(block, position)
            field = (name, value)
        size += len(field[0]) + len(field[1]) + ENTRY_OVERHEAD_BYTES
        if size > max_list_bytes:
            raise too_large(max_list_bytes)
        fields.append(field)
    return tuple(fields)


def too_large(max_list_bytes: int) -> ProtocolError:
    """A header list is longer than we said that we take."""
    text = f"the peer's header list is longer than {max_list_bytes} bytes"
    return ProtocolError(Reason.H2_HEADERS_TOO_LARGE, text, ErrorCode.ENHANCE_YOUR_CALM)


def _broken(text: str) -> ProtocolError:
    return ProtocolError(Reason.H2_PROTOCOL, text, ErrorCode.COMPRESSION_ERROR)


def _zero_index() -> tuple[bytes, bytes]:
    raise _broken("a header block uses index 0")


def _integer(value: int, mask: int) -> bytes:
    """RFC 7541, section 5.1, with the bits above the prefix zero."""
    if value < mask:
        return _OCTETS[value]
    value -= mask
    octets = bytearray((mask,))
    while value > 0x7F:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    octets.append(value)
    return bytes(octets)


def _read_integer(block: bytes, position: int, mask: int) -> tuple[int, int]:
    value = block[position] & mask
    position += 1
    if value < mask:
        return value, position
    shift = 0
    while True:
        octet = block[position]
        position += 1
        value += (octet & 0x7F) << shift
        if octet < 0x80:
            return value, position
        shift += 7
        if shift > MAX_INTEGER_SHIFT:
            raise _broken("a header block has an integer without end")


def _read_string(block: bytes, position: int) -> tuple[bytes, int]:
    first = block[position]
    length = first & 0x7F
    if length < 0x7F:
        position += 1
    else:
        length, position = _read_integer(block, position, 0x7F)
    end = position + length
    if end > len(block):
        raise _broken("a header block ends amid a string")
    text = block[position:end]
    if first < 0x80:
        return text, end
    decoded = _huffman_memo.get(text)
    if decoded is None:
        decoded = bytes(decode_huffman(text))
        if length <= MAX_MEMO_STRING_BYTES:
            if len(_huffman_memo) >= MAX_MEMO_STRINGS:
                _huffman_memo.clear()  # cheaper than to know which is the oldest
            _huffman_memo[text] = decoded
    return decoded, end
