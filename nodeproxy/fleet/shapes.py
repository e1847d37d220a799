"""The form of what is read of an agent's answers.  What stands in them beside that is handed on as it is.

Invariant: an answer that passes can be read without a surprise.  An agent of another version may leave out what it does not
know: each field has a default.  One that gives another form is no agent that we can speak with, and its node's error says where.
It must not know what the fields mean.
"""

from __future__ import annotations

from typing import Any

import msgspec


class _Shape(msgspec.Struct, frozen=True):
    """Nothing is made of these: they say what may stand where."""


class _State(_Shape, frozen=True):
    error: str = ""
    workloads: int = 0


class _Pod(_Shape, frozen=True):
    uid: str = ""
    workload: str = ""
    state: str = ""
    error: str = ""
    why: str = ""
    identity: str = ""
    certificate_until: float = 0.0
    standing_connections: int = 0


class _Status(_Shape, frozen=True):
    version: str = ""
    ready: bool = False
    pending: tuple[str, ...] = ()
    state: _State = _State()
    pods: tuple[_Pod, ...] = ()


class _Requirement(_Shape, frozen=True):
    name: str = ""
    ok: bool = False
    found: str = ""
    remedy: str = ""


class _Check(_Shape, frozen=True):
    requirements: tuple[_Requirement, ...] = ()


class _Workload(_Shape, frozen=True):
    uid: str = ""
    namespace: str = ""
    name: str = ""


class _End(_Shape, frozen=True):
    address: str = ""
    identity: str = ""
    workload: _Workload | None = None


class _Service(_Shape, frozen=True):
    hostname: str = ""


class _Connection(_Shape, frozen=True):
    source: _End = _End()
    destination: _End = _End()
    service: _Service | None = None
    direction: str = ""
    security: str = ""
    direct: bool = False
    received_bytes: int = 0
    sent_bytes: int = 0
    started: float = 0.0


class _Connections(_Shape, frozen=True):
    connections: tuple[_Connection, ...] = ()


class _Step(_Shape, frozen=True):
    what: str = ""
    outcome: str = ""
    resource: str = ""


class _Refusal(_Shape, frozen=True):
    reason: str = ""
    detail: str = ""


class _Way(_Shape, frozen=True):
    kind: str = ""
    address: str = ""
    authority: str = ""
    workload: str = ""
    node: str = ""
    via_waypoint: bool = False
    identity: str = ""
    source_address: str = ""


class _Why(_Shape, frozen=True):
    destination: str = ""
    steps: tuple[_Step, ...] = ()
    outcome: str = ""
    refusal: _Refusal | None = None
    enrolled: bool | None = None
    way: _Way | None = None


_BY_PATH: dict[str, type[_Shape]] = {
    "/status": _Status,
    "/check": _Check,
    "/connections": _Connections,
    "/why": _Why,
    "/why/arrival": _Why,
}


def fault(path: str, answer: dict[str, Any]) -> str:
    """Where the answer of GET `path` has not the form that is read here; "" if it has."""
    try:
        msgspec.convert(answer, _BY_PATH[path])
    except msgspec.ValidationError as exc:
        return str(exc)
    return ""
