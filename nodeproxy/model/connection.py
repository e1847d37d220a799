"""One connection as metrics, access log and `connections` see it."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from nodeproxy.model.reason import Reason
from nodeproxy.model.workload import Service, Workload


class Direction(StrEnum):
    """Seen from the pod on this node."""

    OUTBOUND = "outbound"
    INBOUND = "inbound"


class Security(StrEnum):
    """The value of the label `connection_security_policy`."""

    MUTUAL_TLS = "mutual_tls"
    NONE = "unknown"


class Party(msgspec.Struct, frozen=True, omit_defaults=True):
    """One end of a connection: its address "ip:port" ("[v6]:port"), its workload if it has one, its identity if it proved one."""

    address: str
    workload: Workload | None = None
    identity: str = ""


class Connection(msgspec.Struct, kw_only=True):
    """A connection, live or ended.

    received_bytes, sent_bytes: as Istio's TCP metrics count them: received is what came from the source, sent what went back to
    it.
    direct: the kernel carries it without the proxy.
    hbone_address: the tunnel's other end, "" without a tunnel.  started, ended: seconds since the epoch; ended 0.0 while live.
    """

    id: int
    direction: Direction
    source: Party
    destination: Party
    security: Security = Security.NONE
    service: Service | None = None
    hbone_address: str = ""
    received_bytes: int = 0
    sent_bytes: int = 0
    started: float = 0.0
    ended: float = 0.0
    reason: Reason | None = None
    detail: str = ""
    direct: bool = False
