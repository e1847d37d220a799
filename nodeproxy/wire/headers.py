"""The decoder of one connection's header blocks.

Invariant: a block is remembered, or looked up, only once the peer has acknowledged HEADER_TABLE_SIZE=0, for only then does it
mean the same each time.  Until then a peer may use a dynamic table of 4,096 bytes (most clients send their first request before
they have seen our SETTINGS).
"""

from __future__ import annotations

from hpack import Decoder
from hpack.exceptions import HPACKError, OversizedHeaderListError

from nodeproxy.errors import ProtocolError
from nodeproxy.model.reason import Reason
from nodeproxy.wire.fields import FieldBlock
from nodeproxy.wire.frames import ErrorCode
from nodeproxy.wire.hpack_static import TABLE_SIZE_ZERO, decode_static, encode_block, list_bytes, too_large

__all__ = ["TABLE_SIZE_ZERO", "BlockDecoder", "FieldBlock", "encode_block"]

# A process has few kinds of blocks that come again: 200 responses of its destinations, requests without traceparent.
MAX_MEMO_BLOCKS = 256
MAX_MEMO_BLOCK_BYTES = 512
MAX_MEMO_FIELDS = 64  # with MAX_MEMO_BLOCK_BYTES at most 5 KiB of fields: less than the limit of either role

# Shared by all connections of the process: a block that uses no dynamic table means the same on each.
_memo: dict[bytes, FieldBlock] = {}
# The first field of a request of ours that is one connection's own, as we encode it.  What stands before is the same for all
# connections of a pod to one destination: decoded left to right, without a table, bytes that are the same fields here are there.
_OWN_FIELD = b"\x00\x09forwarded"
_begins: dict[bytes, tuple[FieldBlock, int]] = {}


class BlockDecoder:
    """Turns blocks into fields, in the order in which they came."""

    __slots__ = ("_dynamic", "_max_list_bytes")

    def __init__(self, max_list_bytes: int) -> None:
        self._max_list_bytes = max_list_bytes
        self._dynamic: Decoder | None = Decoder(max_list_bytes)

    def settings_acknowledged(self) -> None:
        """The peer obeys HEADER_TABLE_SIZE=0 from now on."""
        decoder = self._dynamic
        if decoder is not None and decoder.max_allowed_table_size:
            decoder.max_allowed_table_size = 0
            if not decoder.header_table.dynamic_entries:
                self._dynamic = None

    def decode(self, block: bytes) -> FieldBlock:
        """The block's fields; raises ProtocolError."""
        if self._dynamic is not None:
            return self._decode_dynamic(block, self._dynamic)
        known = _memo.get(block)
        if known is not None:
            return known
        own = block.find(_OWN_FIELD)
        if own > 0:
            return self._decode_begun(block, own)
        fields = FieldBlock(decode_static(block, self._max_list_bytes))
        if len(block) <= MAX_MEMO_BLOCK_BYTES and len(fields.headers) <= MAX_MEMO_FIELDS:
            if len(_memo) >= MAX_MEMO_BLOCKS:
                _memo.clear()  # cheaper than to know which is the oldest
            _memo[block] = fields
        return fields

    def _decode_begun(self, block: bytes, own: int) -> FieldBlock:
        """A block whose first `own` bytes are likely those of another one, too."""
        key = block[:own]
        known = _begins.get(key)
        if known is not None:
            begin, begin_bytes = known
            return FieldBlock(decode_static(block, self._max_list_bytes, own, begin.headers, begin_bytes), begin)
        fields = FieldBlock(decode_static(block, self._max_list_bytes))
        if own <= MAX_MEMO_BLOCK_BYTES and not fields.request_fault:
            # Sound only if `own` is between two fields: the bytes that we looked for may stand within a value.
            whole = _whole_fields(key, self._max_list_bytes)
            if whole is not None:
                if len(_begins) >= MAX_MEMO_BLOCKS:
                    _begins.clear()
                _begins[key] = whole, list_bytes(whole.headers)
        return fields

    def _decode_dynamic(self, block: bytes, decoder: Decoder) -> FieldBlock:
        try:
            # RFC 9113, section 4.3.1: "An endpoint MUST treat a field block that follows an acknowledgment of the reduction to
            # the maximum dynamic table size as a connection error of type COMPRESSION_ERROR if it does not start with a
            # conformant Dynamic Table Size Update instruction."  The library checks it.
            fields = tuple((bytes(name), bytes(value)) for name, value in decoder.decode(block, raw=True))
        except OversizedHeaderListError as exc:
            raise too_large(self._max_list_bytes) from exc
        except (HPACKError, IndexError) as exc:
            text = f"a header block can't be decoded: {exc}"
            raise ProtocolError(Reason.H2_PROTOCOL, text, ErrorCode.COMPRESSION_ERROR) from exc
        if not decoder.max_allowed_table_size:
            self._dynamic = None
        return FieldBlock(fields)


def _whole_fields(block: bytes, max_list_bytes: int) -> FieldBlock | None:
    """What `block` means if it ends between two fields, the last of them a regular one, and nothing is wrong with it."""
    try:
        fields = FieldBlock(decode_static(block, max_list_bytes))
    except ProtocolError:
        return None
    regular = bool(fields.headers) and len(fields.headers) <= MAX_MEMO_FIELDS and fields.headers[-1][0][:1] != b":"
    return fields if regular and not fields.request_fault else None
