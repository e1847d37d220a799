"""What is read of agents' answers, and of which type it must be: a form for each call.

Invariant: each field may be missing, as from an agent of an older version, and others may be there; what is there has its type.
It must not know what is made of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


class _State(msgspec.Struct, frozen=True, gc=False):
    error: str = ""
    workloads: int = 0


class _Pod(msgspec.Struct, frozen=True, gc=False):
    uid: str = ""
    workload: str = ""
    state: str = ""
    error: str = ""
    why: str = ""
    identity: str = ""
    certificate_until: float = 0.0
    standing_connections: int = 0


class _Status(msgspec.Struct, frozen=True):
    version: str = ""
    ready: bool = False
    pending: list[str] = []
    state: _State = _State()
    pods: list[_Pod] = []


class _Workload(msgspec.Struct, frozen=True, gc=False):
    uid: str = ""
    namespace: str = ""
    name: str = ""


class _End(msgspec.Struct, frozen=True, gc=False):
    address: str = ""
    identity: str = ""
    workload: _Workload | None = None


class _Service(msgspec.Struct, frozen=True, gc=False):
    hostname: str = ""


class _Connection(msgspec.Struct, frozen=True, gc=False):
    source: _End = _End()
    destination: _End = _End()
    service: _Service | None = None
    direction: str = ""
    security: str = ""
    direct: bool = False
    received_bytes: int = 0
    sent_bytes: int = 0
    started: float = 0.0


class _Connections(msgspec.Struct, frozen=True):
    connections: list[_Connection] = []


class _Step(msgspec.Struct, frozen=True):
    what: str = ""
    outcome: str = ""
    resource: str = ""


class _Refusal(msgspec.Struct, frozen=True):
    reason: str = ""
    detail: str = ""


class _Way(msgspec.Struct, frozen=True):
    kind: str = ""
    workload: str = ""
    node: str = ""
    via_waypoint: bool = False
    address: str = ""
    authority: str = ""
    identity: str = ""
    source_address: str = ""


class _Why(msgspec.Struct, frozen=True):
    destination: str = ""
    outcome: str = ""
    steps: list[_Step] = []
    refusal: _Refusal | None = None
    enrolled: bool | None = None
    way: _Way | None = None


class _Requirement(msgspec.Struct, frozen=True):
    name: str = ""
    ok: bool = False
    found: str = ""
    remedy: str = ""


class _Check(msgspec.Struct, frozen=True):
    requirements: list[_Requirement] = []


FORMS: Mapping[str, type[msgspec.Struct]] = {
    "/status": _Status,
    "/connections": _Connections,
    "/why": _Why,
    "/why/arrival": _Why,
    "/check": _Check,
}


def mismatch(path: str, answer: Mapping[str, Any]) -> str:
    """Where the answer to GET `path` is not of its form; "" if it is."""
    try:
        msgspec.convert(answer, FORMS[path])
    except msgspec.ValidationError as exc:
        return str(exc)
    return ""
