"""What counters are added up and travel in: apart from `counters`, which is compiled, as msgspec's structs can't be.

Workers import it.
"""

from __future__ import annotations

import msgspec


class Counts(msgspec.Struct):
    """What is added to a series."""

    opened: int = 0
    closed: int = 0
    failed: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0


class CounterPage(msgspec.Struct, array_like=True):
    """What goes up.  A label's value is written once a page and referred to by its place: series share most of theirs."""

    strings: list[str]
    series: list[tuple[tuple[int, ...], int, int, int, int, int]]
    refused: list[tuple[str, str, int]] = []
    dry_run: list[tuple[str, bool, int]] = []
    sockets: dict[str, int] = {}
    passed_over: dict[str, int] = {}
