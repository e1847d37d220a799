"""What nodeproxy needs of the machine, as `nodeproxy check` shows it: a row each."""

from __future__ import annotations

import msgspec


class Requirement(msgspec.Struct, frozen=True):
    """name: what is needed.  found: what is there.  remedy: what to do when `ok` is False, else empty."""

    name: str
    ok: bool
    found: str
    remedy: str = ""
