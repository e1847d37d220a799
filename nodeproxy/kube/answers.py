"""The envelope of what the API server says: lists, events, and the metadata by which an object is known.

Invariant: an object stays raw bytes until somebody asks for it, so that one that can't be read costs neither its page nor its
watch.  It must not know kinds.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from nodeproxy.errors import ClusterError

_T = TypeVar("_T")


class GarbageError(ClusterError):
    """What came is not what the API's protocol says."""


class Metadata(msgspec.Struct, rename="camel", gc=False):
    """Which object, and which version of it."""

    name: str
    namespace: str = ""
    resource_version: str = ""

    @property
    def key(self) -> str:
        """ "namespace/name", or "name" where there is no namespace."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class _Head(msgspec.Struct, gc=False):
    metadata: Metadata


class ListMetadata(msgspec.Struct, rename="camel"):
    """The version that a list shows, and how to ask for its next page ("" after the last one)."""

    resource_version: str
    continue_: str = msgspec.field(default="", name="continue")


class Page(msgspec.Struct):
    """A page of a list."""

    metadata: ListMetadata
    items: list[msgspec.Raw] | None = None  # Go writes an empty list as null


class Event(msgspec.Struct):
    """A line of a watch: ADDED, MODIFIED, DELETED, BOOKMARK with an object, ERROR with a Status."""

    type: str
    object: msgspec.Raw


class _BookmarkMetadata(msgspec.Struct, rename="camel"):
    resource_version: str


class _Bookmark(msgspec.Struct):
    metadata: _BookmarkMetadata


class _Status(msgspec.Struct):
    code: int = 500
    message: str = ""


_page = msgspec.json.Decoder(Page)
_event = msgspec.json.Decoder(Event)
_head = msgspec.json.Decoder(_Head)
_bookmark = msgspec.json.Decoder(_Bookmark)
_status = msgspec.json.Decoder(_Status)


def page(content: bytes, path: str) -> Page:
    """Decode a page.  Raises GarbageError."""
    return _decoded(_page, content, path, "no list")


def event(line: bytes, path: str) -> Event:
    """Decode a line of a watch.  Raises GarbageError."""
    return _decoded(_event, line, path, "no event")


def metadata(raw: bytes | msgspec.Raw, path: str) -> Metadata:
    """An object's metadata.  Raises GarbageError."""
    return _decoded(_head, raw, path, "no object with a name").metadata


def bookmark(raw: msgspec.Raw, path: str) -> str:
    """The version that a bookmark stands at.  Raises GarbageError."""
    return _decoded(_bookmark, raw, path, "no bookmark").metadata.resource_version


def failure(raw: msgspec.Raw, path: str) -> ClusterError:
    """The error that an ERROR event tells of.  Raises GarbageError."""
    status = _decoded(_status, raw, path, "no status")
    return ClusterError(f"watch of {path}: the API server ends it with {status.code} {status.message}", status.code)


def _decoded(decoder: msgspec.json.Decoder[_T], content: bytes | msgspec.Raw, path: str, lacking: str) -> _T:
    try:
        return decoder.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise GarbageError(f"{path}: what came from the API server is {lacking}: {exc}; is there a proxy in between?") from exc
