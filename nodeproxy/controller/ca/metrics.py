"""The CA's metrics, made of what its parts tell at each scrape.  A scrape changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from cryptography import x509
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from nodeproxy.controller.ca.keys import CaKeys, Phase
from nodeproxy.controller.ca.root_publisher import RootPublisher
from nodeproxy.controller.ca.service import CertificateService
from nodeproxy.controller.ca.serving import ServingCertificate
from nodeproxy.controller.ca.store import CaStore
from nodeproxy.controller.callers import Callers

_PREFIX = "nodeproxy_controller_ca_"


class CaParts(NamedTuple):
    """Whom the metrics are asked of."""

    callers: Callers
    service: CertificateService
    store: CaStore
    publisher: RootPublisher
    serving: Callable[[], ServingCertificate | None]  # None before the port is open


class CaCollector(Collector):
    """For a `prometheus_client.CollectorRegistry`."""

    def __init__(self, parts: CaParts) -> None:
        self._parts = parts

    def collect(self) -> Iterable[Metric]:
        """The families as they are now."""
        yield from self._of_callers()
        yield from self._of_requests()
        yield from self._of_keys()
        published = self._parts.publisher.statistics()
        yield _counter("root_writes", "ConfigMaps with the roots, by what came of writing them", "result", published.writes)
        yield _gauge("root_namespaces", "Namespaces that need the roots", published.namespaces)
        yield _gauge("root_namespaces_stale", "Namespaces whose ConfigMap does not hold the roots", published.stale)
        serving = self._parts.serving()
        if serving is not None:
            ends = serving.not_after()
            yield _gauge("serving_certificate_expiry_seconds", "When the port's certificate ends, since the epoch", ends)

    def _of_callers(self) -> Iterable[Metric]:
        callers = self._parts.callers.statistics()
        yield _counter("callers", "Authentications of callers, by what came of them", "result", callers.results)
        yield _counter("token_reviews", "TokenReviews asked of the API server", "", {"": callers.reviews})
        yield _gauge("callers_kept", "Answers of TokenReviews that are kept", callers.kept)

    def _of_requests(self) -> Iterable[Metric]:
        service = self._parts.service.statistics()
        yield _counter("requests", "Requests for certificates, by what came of them", "result", service.results)
        yield _counter("signing_seconds", "CPU's time that requests for certificates took", "", {"": service.signing_s})
        yield _gauge("requests_waiting", "Requests for certificates that are under way", service.waiting)

    def _of_keys(self) -> Iterable[Metric]:
        store = self._parts.store.statistics()
        yield _counter("secret_reads", "Readings of the CA's Secret, by what came of them", "result", store.reads)
        yield _gauge("secret_valid", "Whether the CA's Secret as it is can be used", int(store.valid))
        phases = GaugeMetricFamily(_PREFIX + "root_phase", "Where a change of root is: 1 for one of these", labels=["phase"])
        for phase in Phase:
            phases.add_metric([phase], int(store.keys is not None and store.keys.phase is phase))
        yield phases
        expiry = GaugeMetricFamily(
            _PREFIX + "certificate_expiry_seconds", "When a CA's certificate ends, since the epoch", labels=["use", "serial"]
        )
        if store.keys is not None:
            for use, certificate in _certificates(store.keys):
                expiry.add_metric([use, f"{certificate.serial_number:x}"], certificate.not_valid_after_utc.timestamp())
        yield expiry


def _certificates(keys: CaKeys) -> Iterable[tuple[str, x509.Certificate]]:
    yield "signing", keys.certificate
    for root in keys.roots:
        yield "root", root


def _counter(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(_PREFIX + name, text, labels=[label] if label else [])
    for value, count in sorted(values.items()):
        family.add_metric([value] if label else [], count)
    return family


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(_PREFIX + name, text, value=value)
