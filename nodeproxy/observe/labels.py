"""The labels of Istio's TCP metrics, from a connection: names, order and values that dashboards made for ztunnel expect.

Invariant: a value is never empty, "unknown" stands for what is not known.  It must not know counters or Prometheus.  Workers
import it.
"""

from __future__ import annotations

from enum import StrEnum

from nodeproxy.model.connection import Connection, Direction, Party
from nodeproxy.model.reason import response_flags
from nodeproxy.model.workload import Workload

UNKNOWN = "unknown"
_PARTY = (
    "workload",
    "canonical_service",
    "canonical_revision",
    "workload_namespace",
    "principal",
    "app",
    "version",
    "cluster",
    "region",
    "zone",
)

LABELS: tuple[str, ...] = (
    "reporter",
    *(f"source_{name}" for name in _PARTY),
    *(f"destination_{name}" for name in _PARTY),
    "destination_service",
    "destination_service_namespace",
    "destination_service_name",
    "request_protocol",
    "response_flags",
    "connection_security_policy",
)
FLAGS_INDEX = LABELS.index("response_flags")
REPORTER_INDEX = LABELS.index("reporter")

Labels = tuple[str, ...]
_NOBODY = (UNKNOWN,) * len(_PARTY)
_NO_SERVICE = (UNKNOWN,) * 3


class Reporter(StrEnum):
    """Which side of a connection tells of it."""

    SOURCE = "source"
    DESTINATION = "destination"


def tcp_labels(connection: Connection, reporter: Reporter | None = None) -> Labels:
    """The values of `LABELS`.  reporter: who tells; by default the side that this node's pod is on."""
    if reporter is None:
        reporter = Reporter.SOURCE if connection.direction is Direction.OUTBOUND else Reporter.DESTINATION
    service = connection.service
    return (
        reporter.value,
        *_source(connection.source),
        *_destination(connection.destination),
        *(
            (service.hostname or UNKNOWN, service.namespace or UNKNOWN, service.name or UNKNOWN)
            if service is not None
            else _NO_SERVICE
        ),
        "tcp",
        response_flags(connection.reason),
        connection.security.value,
    )


def _source(party: Party) -> Labels:
    # ztunnel names a source's principal only if it was proved by TLS ...
    return _party(party.workload, party.identity) if party.workload is not None else _unknown(party.identity)


def _destination(party: Party) -> Labels:
    # ... and a destination's as its workload says, whatever the transport.
    workload = party.workload
    return _party(workload, party.identity or workload.identity) if workload is not None else _unknown(party.identity)


def _unknown(principal: str) -> Labels:
    return (*_NOBODY[:4], principal, *_NOBODY[5:]) if principal else _NOBODY


def _party(workload: Workload, principal: str) -> Labels:
    canonical = workload.canonical_name or UNKNOWN
    revision = workload.canonical_revision or UNKNOWN
    locality = workload.locality
    return (
        workload.workload_name or workload.name or UNKNOWN,
        canonical,
        revision,
        workload.namespace or UNKNOWN,
        principal or UNKNOWN,
        canonical,
        revision,
        workload.cluster or UNKNOWN,
        locality.region or UNKNOWN,
        locality.zone or UNKNOWN,
    )
