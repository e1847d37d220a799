"""What a watch of the API server counts.  It must not know how the numbers are shown."""

from __future__ import annotations

import enum
import time
from collections import Counter

import msgspec


class Trouble(enum.StrEnum):
    """Why a list or a watch did not go on: the label of a metric."""

    UNREACHED = "unreached"  # refused, timed out, or cut
    THROTTLED = "throttled"  # 429
    DENIED = "denied"  # 401, 403
    GONE = "gone"  # 410: the version asked for is compacted away
    REFUSED = "refused"  # any other 4xx
    FAILED = "failed"  # 5xx
    OVERSIZED = "oversized"
    GARBAGE = "garbage"  # not what the protocol says; cut within a line among it


class WatchStatistics(msgspec.Struct):
    """Of one resource.  Read it, only its reflector writes.

    synced: everything was told once, or the resource is not defined.  present: the resource is defined.  objects: how many are
    known.  lists: how often all of them were asked for.  unusable: objects that could not be decoded, each version once.
    heard_at: when the server last said something good (`time.monotonic`).
    """

    synced: bool = False
    present: bool = True
    objects: int = 0
    lists: int = 0
    events: int = 0
    unusable: int = 0
    heard_at: float = msgspec.field(default_factory=time.monotonic)
    troubles: Counter[Trouble] = msgspec.field(default_factory=Counter)
