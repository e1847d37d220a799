"""The agent's Prometheus endpoint: Istio's TCP metrics by their exact names, and nodeproxy's own.

It turns what others know (`Totals`, providers of statistics) into families at each scrape and keeps no count itself.  Invariant:
a scrape changes nothing.  It must not know HTTP, workers or the CA.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import msgspec
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector

from nodeproxy.identity.schedule import CertificateStatistics
from nodeproxy.observe.cni_metrics import CniStatistics, cni_families
from nodeproxy.observe.counters import Totals
from nodeproxy.observe.event_metrics import EventStatistics, event_families
from nodeproxy.observe.labels import LABELS, Labels, Reporter
from nodeproxy.observe.on_demand_metrics import OnDemandStatistics, on_demand_families
from nodeproxy.observe.xds_metrics import XdsStatistics, xds_families
from nodeproxy.observe.zds_metrics import ZdsStatistics, zds_families

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
CONTENT_TYPE_OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

# In the order of the numbers in `Totals.series`.
_TCP = (
    ("istio_tcp_connections_opened", "The total number of TCP connections opened"),
    ("istio_tcp_connections_closed", "The total number of TCP connections closed"),
    ("istio_tcp_connections_failed", "The total number of TCP connections that were refused or ended by an error"),
    ("istio_tcp_received_bytes", "The total number of bytes received from the source of TCP connections"),
    ("istio_tcp_sent_bytes", "The total number of bytes sent back to the source of TCP connections"),
)


class StateStatistics(msgspec.Struct, frozen=True):
    """What the agent knows of the mesh.  received: when it last changed (seconds since the epoch, 0.0 never)."""

    source: str
    received: float
    epoch: int
    workloads: int
    services: int
    policies: int


class DirectStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """The direct path.  openings: how often it was opened; closed_s: how long it was not, in all.

    destroyed: live connections that were ended, by reason; undestroyed: those that could not be.  unlogged: ended ones without a
    line.  kernel: what the programs counted.
    """

    is_open: bool
    openings: int
    closed_s: float
    live: int
    ended: int
    left_out: int
    destroyed: Mapping[str, int]
    undestroyed: int
    unlogged: int
    kernel: Mapping[str, int]


class KubeletStatistics(msgspec.Struct, frozen=True):
    """is_known: whether somebody is taken for the kubelet.  probes: what became of its connects to enrolled pods."""

    is_known: bool
    probes: Mapping[str, int]


class Metrics:
    """Everything that is scraped.  The attributes are for the agent's parts to set; the providers are asked at each scrape."""

    def __init__(
        self, totals: Totals, *, version: str, component: str = "nodeproxy", clock: Callable[[], float] = time.time
    ) -> None:
        self.enrolled_pods = 0
        self.worker_restarts = 0
        self.certificates: Callable[[], Sequence[CertificateStatistics]] | None = None
        self.state: Callable[[], StateStatistics] | None = None
        self.direct: Callable[[], DirectStatistics] | None = None
        self.xds: Callable[[], XdsStatistics] | None = None
        self.on_demand: Callable[[], OnDemandStatistics] | None = None
        self.cni: Callable[[], CniStatistics] | None = None
        self.kubelet: Callable[[], KubeletStatistics] | None = None
        self.events: Callable[[], EventStatistics] | None = None
        self.zds: Callable[[], ZdsStatistics] | None = None
        self.kernel_drops: Callable[[], Mapping[str, int]] | None = None
        self._totals = totals
        self._build = (component, version)
        self._clock = clock
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Scrape(self._families))
        ProcessCollector(registry=self._registry)

    def render(self, openmetrics: bool = False) -> bytes:
        """The whole page, in Prometheus' text format or as OpenMetrics (`CONTENT_TYPE`, `CONTENT_TYPE_OPENMETRICS`)."""
        generate = generate_openmetrics if openmetrics else generate_latest
        rest = generate(self._registry)
        return b"".join(self._traffic(openmetrics)) + rest  # OpenMetrics' "# EOF" stands at the end of `rest`

    def _families(self) -> Iterator[Metric]:
        yield from self._sockets()
        yield from self._refusals()
        yield _gauge("istio_build", "Istio component build info", ("component", "tag"), [(self._build, 1)])
        yield _gauge("nodeproxy_enrolled_pods", "Pods of this node whose traffic is steered", (), [((), self.enrolled_pods)])
        yield _counter("nodeproxy_worker_restarts", "Workers that died and were replaced", (), [((), self.worker_restarts)])
        if self.kernel_drops is not None:
            rows = [((name,), count) for name, count in self.kernel_drops().items()]
            yield _counter("nodeproxy_kernel_drops", "Packets and connects that the eBPF programs refused", ("reason",), rows)
        if self.direct is not None:
            yield from _direct(self.direct())
        if self.kubelet is not None:
            yield from _kubelet(self.kubelet())
        if self.on_demand is not None:
            yield from on_demand_families(self.on_demand())
        if self.cni is not None:
            yield from cni_families(self.cni())
        if self.events is not None:
            yield from event_families(self.events())
        if self.zds is not None:
            yield from zds_families(self.zds())
        if self.state is not None:
            yield from self._state(self.state())
        if self.xds is not None:
            yield from xds_families(self.xds())
        if self.certificates is not None:
            yield from _certificates(self.certificates())

    def _traffic(self, openmetrics: bool) -> Iterator[bytes]:
        """Istio's families, written by hand: for 10,000 series prometheus-client takes 2.4 s, this 0.26 s of the agent's time."""
        series = [(_label_text(labels), counts) for labels, counts in self._totals.series.items()]
        for index, (name, documentation) in enumerate(_TCP):
            # OpenMetrics names the family, the older format the sample.
            family = name if openmetrics else f"{name}_total"
            yield f"# HELP {family} {documentation}\n# TYPE {family} counter\n".encode()
            yield "".join([f"{name}_total{{{text}}} {counts[index]}.0\n" for text, counts in series]).encode()

    def _sockets(self) -> Iterator[Metric]:
        open_now = {reporter.value: 0 for reporter in Reporter} | self._totals.sockets_open()
        rows = [((reporter,), count) for reporter, count in open_now.items()]
        yield _gauge("istio_tcp_sockets_open", "The number of TCP connections that are open", ("reporter",), rows)
        dropped = [((), self._totals.dropped_series)]
        yield _counter("nodeproxy_metric_series_dropped", "Series that made room for others, as there were too many", (), dropped)

    def _refusals(self) -> Iterator[Metric]:
        yield _counter(
            "nodeproxy_refused",
            "Connections that were refused or ended, by reason",
            ("reason", "direction"),
            self._totals.refused.items(),
        )
        passed_over = [((reason,), count) for reason, count in self._totals.passed_over.items()]
        about = "Endpoints of services that were not reached, so that another one was tried"
        yield _counter("nodeproxy_endpoints_passed_over", about, ("reason",), passed_over)
        rows = [((policy, "deny" if denied else "allow"), count) for (policy, denied), count in self._totals.dry_run.items()]
        yield _counter("nodeproxy_policy_dry_run", "What policies in dry-run would have decided", ("policy", "verdict"), rows)

    def _state(self, state: StateStatistics) -> Iterator[Metric]:
        # Without any state there is no age: a gauge that said 0 would look like fresh state.
        age = [((state.source,), self._clock() - state.received)] if state.received else []
        yield _gauge("nodeproxy_state_age_seconds", "Time since the source last changed the state of the mesh", ("source",), age)
        yield _gauge("nodeproxy_state_epoch", "The number of the state's version", (), [((), state.epoch)])
        counts = [(("workload",), state.workloads), (("service",), state.services), (("policy",), state.policies)]
        yield _gauge("nodeproxy_state_resources", "Resources known", ("kind",), counts)


class _Scrape(Collector):
    """What prometheus-client wants around a function that yields families."""

    def __init__(self, families: Callable[[], Iterator[Metric]]) -> None:
        self._collect = families

    def collect(self) -> Iterable[Metric]:
        return self._collect()


def _label_text(labels: Labels) -> str:
    """Exposition formats, "Text format details": in a label's value, backslash, quotation mark and line feed are escaped."""
    joined = "\x00".join(labels)  # one look for all values: nearly none has such a character
    if "\\" in joined or '"' in joined or "\n" in joined:
        labels = tuple(value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for value in labels)
    return ",".join([f'{name}="{value}"' for name, value in zip(LABELS, labels, strict=True)])


def _direct(direct: DirectStatistics) -> Iterator[Metric]:
    def one(value: float) -> list[tuple[tuple[str, ...], float]]:
        return [((), value)]

    yield _gauge("nodeproxy_direct_open", "1 while pods of this node may connect without the proxy", (), one(direct.is_open))
    yield _counter("nodeproxy_direct_openings", "Times that verdicts were published anew", (), one(direct.openings))
    yield _counter("nodeproxy_direct_closed_seconds", "Time without the direct path", (), one(direct.closed_s))
    yield _gauge("nodeproxy_direct_connections", "Live connections without the proxy", (), one(direct.live))
    yield _counter("nodeproxy_direct_connections_ended", "Connections without the proxy that have ended", (), one(direct.ended))
    yield _gauge("nodeproxy_direct_left_out", "Verdicts that had no room in the kernel's table", (), one(direct.left_out))
    rows: list[tuple[tuple[str, ...], float]] = [((reason,), count) for reason, count in direct.destroyed.items()]
    yield _counter("nodeproxy_direct_destroyed", "Live connections without the proxy that were ended", ("reason",), rows)
    yield _gauge(
        "nodeproxy_direct_undestroyed",
        "Those that could not be ended: nothing is direct while there are any",
        (),
        one(direct.undestroyed),
    )
    yield _counter(
        "nodeproxy_direct_unlogged", "Ended ones without a line in the access log: too many at once", (), one(direct.unlogged)
    )
    kernel: list[tuple[tuple[str, ...], float]] = [((name,), count) for name, count in direct.kernel.items()]
    yield _counter("nodeproxy_direct_kernel", "What the eBPF programs met on the direct path", ("event",), kernel)


def _kubelet(kubelet: KubeletStatistics) -> Iterator[Metric]:
    yield _gauge("nodeproxy_kubelet_known", "1 while the kubelet's probes are told from others'", (), [((), kubelet.is_known)])
    rows = [((result,), count) for result, count in kubelet.probes.items()]
    yield _counter("nodeproxy_kubelet_connections", "The kubelet's connects to enrolled pods", ("result",), rows)


def _certificates(rows: Sequence[CertificateStatistics]) -> Iterator[Metric]:
    labels = ("identity",)
    expiry = [((row.identity,), row.valid_until) for row in rows if row.valid_until]
    yield _gauge("nodeproxy_certificate_expiry_timestamp_seconds", "When an identity's certificate ends", labels, expiry)
    failures = [((row.identity,), row.failures) for row in rows]
    yield _gauge(
        "nodeproxy_certificate_failures", "Requests for a certificate that failed since the last that did not", labels, failures
    )
    alarm = [((row.identity,), int(row.alarm)) for row in rows]
    yield _gauge(
        "nodeproxy_certificate_alarm", "1 when half of a certificate's last half has gone by in failed renewals", labels, alarm
    )


def _counter(name: str, documentation: str, labels: Sequence[str], rows: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    family = CounterMetricFamily(name, documentation, labels=labels)
    for values, count in rows:
        family.add_metric(values, count)
    return family


def _gauge(name: str, documentation: str, labels: Sequence[str], rows: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    family = GaugeMetricFamily(name, documentation, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family
