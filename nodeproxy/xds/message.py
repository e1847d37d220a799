"""A response of delta xDS, resource by resource.

protobuf takes a message in at once: one of 100,000 workloads (30 MiB) holds the interpreter for 30 ms and takes 45 MB, one of 200
MiB 0.2 s and 300 MB [measured]; and one bad byte in it is all that there is to say of it.  So the outer message is walked here,
and resources are made one at a time.
Invariant: what this says of a message is what protobuf would; a message that protobuf refuses is refused before its first
resource is handed out, except for what is wrong within a resource, which is that resource's error.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from google.protobuf.message import DecodeError

from nodeproxy.errors import ResourceError
from nodeproxy.proto import discovery_pb2
from nodeproxy.xds.names import MAX_NAME_BYTES

# Parts (resources, names of removed ones) that a message may have: ten times the largest mesh that was measured.
MAX_PARTS = 1_000_000
# A policy of 10,000 principals takes 1 MiB.
MAX_RESOURCE_BYTES = 4 << 20
_RESOURCE_TAG = (2 << 3) | 2  # field 2, length-delimited
_NAME_TAG = (3 << 3) | 2  # of a Resource
# Among so many parts of a resource that can't be read its name is looked for: before it stand version and content.
_MAX_NAME_PARTS = 16
# Protocol Buffers, "Encoding": wire types, and the length of those that have a fixed one.
_VARINT, _LENGTH_DELIMITED = 0, 2
_FIXED_BYTES = {1: 8, 5: 4}
_MAX_VARINT_BITS = 70


class Response:
    """One DeltaDiscoveryResponse, from its bytes."""

    def __init__(self, raw: bytes) -> None:
        """Raises ResourceError if it is not one."""
        self._raw = raw
        self.bytes = len(raw)
        rest = bytearray()
        for index, (tag, _, end, part_begin) in enumerate(_parts(raw)):
            if index >= MAX_PARTS:
                raise ResourceError("malformed", f"the message has more than {MAX_PARTS} parts")
            if tag != _RESOURCE_TAG:
                rest += memoryview(raw)[part_begin:end]
        header = discovery_pb2.DeltaDiscoveryResponse()
        try:
            header.ParseFromString(bytes(rest))
        except DecodeError as exc:
            raise ResourceError("malformed", f"the message is no DeltaDiscoveryResponse: {exc}") from exc
        self.type_url, self.nonce = header.type_url, header.nonce
        self.removed = tuple(header.removed_resources)
        self.server = header.control_plane.identifier  # who it says that it is, "" if it does not

    def resources(self) -> Iterator[discovery_pb2.Resource | ResourceError]:
        """Each resource, or why it can't be read, with its name if that much can be."""
        for tag, begin, end, _ in _parts(self._raw):
            if tag != _RESOURCE_TAG:
                continue
            if end - begin > MAX_RESOURCE_BYTES:
                why = f"a resource of {end - begin} bytes: {MAX_RESOURCE_BYTES} is the limit"
                yield ResourceError("too_large", why, _name_within(memoryview(self._raw)[begin:end]))
                continue
            resource = discovery_pb2.Resource()
            try:
                resource.ParseFromString(self._raw[begin:end])
            except DecodeError as exc:
                name = _name_within(memoryview(self._raw)[begin:end])
                yield ResourceError("malformed", f"a resource can't be read: {exc}", name)
            else:
                yield resource


def _name_within(resource: memoryview) -> str:
    """The name of a resource that can't be taken in, "" if not even that can be read."""
    try:
        for tag, begin, end, _ in islice(_parts(resource), _MAX_NAME_PARTS):
            if tag == _NAME_TAG and end - begin <= MAX_NAME_BYTES:
                return bytes(resource[begin:end]).decode()
    except (ResourceError, UnicodeDecodeError):
        pass  # what is wrong with the resource is told already
    return ""


def _parts(raw: bytes | memoryview) -> Iterator[tuple[int, int, int, int]]:
    """(tag, begin and end of the content, begin of the part) of each field.  Raises ResourceError."""
    position, size = 0, len(raw)
    try:
        while position < size:
            start = position
            tag = raw[position]
            position += 1
            if tag & 0x80:
                tag, position = _varint(raw, start)
            kind = tag & 7
            if kind == _LENGTH_DELIMITED:
                length = raw[position]
                position += 1
                if length & 0x80:
                    length, position = _varint(raw, position - 1)
                end = position + length
            elif kind == _VARINT:
                end = _varint(raw, position)[1]
            elif kind in _FIXED_BYTES:
                end = position + _FIXED_BYTES[kind]
            else:
                raise ResourceError("malformed", f"the message has a field of an unknown kind at byte {start}")
            if end > size:
                raise ResourceError("malformed", f"the message ends {end - size} bytes early")
            yield tag, position, end, start
            position = end
    except IndexError:
        raise ResourceError("malformed", "the message ends within a field's head") from None


def _varint(raw: bytes | memoryview, position: int) -> tuple[int, int]:
    """A number of 7 bits a byte, and where it ends.  Raises IndexError, ResourceError."""
    value = shift = 0
    while True:
        byte = raw[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, position
        shift += 7
        if shift >= _MAX_VARINT_BITS:
            raise ResourceError("malformed", f"the message has a number without end at byte {position}")
