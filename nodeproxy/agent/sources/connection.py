"""How a source stands that is reached over a network: for `status`."""

from __future__ import annotations

import msgspec


class SourceConnection(msgspec.Struct, frozen=True):
    """address: of the server that is connected or tried.  since: when it was connected, or lost (seconds since the epoch).

    error: why the last connection ended or the last attempt failed, "" while connected.
    rejected: resources that can't be used now, the first of them, each with type, name, reason and why.
    """

    address: str
    connected: bool
    since: float
    error: str
    rejected: list[dict[str, str]]
