"""What the delta xDS server counts, for Prometheus.

Invariant: labels come from closed lists; what a client says is never one.  It must not know streams or tables.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from nodeproxy.controller.xds.limits import StreamEnd
from nodeproxy.xds.names import ADDRESS, AUTHORIZATION, MESH_NAMESPACE, NODE_POD

KINDS = {ADDRESS: "address", AUTHORIZATION: "authorization", NODE_POD: "node_pod", MESH_NAMESPACE: "mesh_namespace"}
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class XdsMetrics:
    """The counters; the gauges are set by functions that are asked at each scrape."""

    def __init__(self, registry: CollectorRegistry) -> None:
        prefix = "nodeproxy_controller_xds"
        kind = ("kind",)
        self.clients = Gauge(f"{prefix}_clients", "Streams that are open", registry=registry)
        self.pending = Gauge(f"{prefix}_pending", "Changes that clients have yet to be told of, in all", registry=registry)
        self.resources = Gauge(f"{prefix}_resources", "Resources that are served", kind, registry=registry)
        self.streams = Counter(f"{prefix}_streams", "Streams that were accepted", registry=registry)
        self.ended = Counter(
            f"{prefix}_streams_ended", "Streams that were refused or ended by us", ("reason",), registry=registry
        )
        self.subscribed = Counter(
            f"{prefix}_subscriptions", "Subscriptions that began", ("kind", "mode", "resumed"), registry=registry
        )
        self.changes = Counter(f"{prefix}_changes", "Resources that came, changed or went", kind, registry=registry)
        self.pushes = Counter(f"{prefix}_pushes", "Responses sent", kind, registry=registry)
        self.push_bytes = Counter(f"{prefix}_push_bytes", "Bytes of the responses sent", kind, registry=registry)
        self.nacks = Counter(f"{prefix}_nacks", "Responses of which a client rejected something", kind, registry=registry)
        self.passed_over = Counter(f"{prefix}_requests_passed_over", "Requests without effect", ("why",), registry=registry)
        self.unsendable = Counter(
            f"{prefix}_unsendable", "Changes that can't be encoded; the resource is served as it was", kind, registry=registry
        )
        self.seconds = Histogram(
            f"{prefix}_ack_seconds", "From a change to a client's acknowledgement", kind, buckets=_SECONDS, registry=registry
        )
        for name in KINDS.values():
            for counter in (self.changes, self.pushes, self.push_bytes, self.nacks, self.unsendable):
                counter.labels(name)
            self.seconds.labels(name)
        for reason in StreamEnd:
            self.ended.labels(reason)
        for why in ("type", "nonce"):
            self.passed_over.labels(why)
