from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace as changed
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from nodeproxy.identity.schedule import CertificateStatistics
from nodeproxy.model.connection import Connection, Direction, Party
from nodeproxy.model.reason import Reason
from nodeproxy.observe.counters import Counters, Totals
from nodeproxy.observe.labels import LABELS, tcp_labels
from nodeproxy.observe.metrics import Metrics, StateStatistics
from nodeproxy.observe.on_demand_metrics import OnDemandStatistics

Make = Callable[..., Connection]
PARSERS: dict[bool, Any] = {False: parse_text, True: parse_openmetrics}


def full(connection: Make) -> Metrics:
    counters, totals = Counters(), Totals()
    labels = tcp_labels(connection())
    series = counters.open(labels)
    series.received_bytes, series.sent_bytes = 84, 358
    counters.close(series, labels)
    counters.open(labels)
    counters.refused(Reason.POLICY_DENY, Direction.INBOUND)
    counters.dry_run("shop/p", denied=True)
    for page in counters.take():
        totals.merge(page, 0)
    metrics = Metrics(totals, version="1.2.3", clock=lambda: 1010.0)
    metrics.enrolled_pods, metrics.worker_restarts = 7, 2
    metrics.state = lambda: StateStatistics("file", 1000.0, 42, 5, 4, 3)
    metrics.kernel_drops = lambda: {"no_listener": 9}
    metrics.certificates = lambda: [CertificateStatistics("spiffe://td/ns/a/sa/b", 1, 2000.0, False, 900.0, 3, "why", True)]
    return metrics


def samples(metrics: Metrics, openmetrics: bool) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = metrics.render(openmetrics).decode()
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in PARSERS[openmetrics](text) for s in family.samples}


@pytest.mark.parametrize("openmetrics", [False, True])
def test_names_and_values_as_a_scraper_reads_them(openmetrics: bool, connection: Make) -> None:
    found = samples(full(connection), openmetrics)
    labels = tuple(sorted(zip(LABELS, tcp_labels(connection()), strict=True)))
    expected = {
        ("istio_tcp_connections_opened_total", labels): 2,
        ("istio_tcp_connections_closed_total", labels): 1,
        ("istio_tcp_connections_failed_total", labels): 0,
        ("istio_tcp_received_bytes_total", labels): 84,
        ("istio_tcp_sent_bytes_total", labels): 358,
        ("istio_tcp_sockets_open", (("reporter", "source"),)): 1,
        ("istio_tcp_sockets_open", (("reporter", "destination"),)): 0,
        ("istio_build", (("component", "nodeproxy"), ("tag", "1.2.3"))): 1,
        ("nodeproxy_refused_total", (("direction", "inbound"), ("reason", "policy_deny"))): 1,
        ("nodeproxy_policy_dry_run_total", (("policy", "shop/p"), ("verdict", "deny"))): 1,
        ("nodeproxy_enrolled_pods", ()): 7,
        ("nodeproxy_worker_restarts_total", ()): 2,
        ("nodeproxy_metric_series_dropped_total", ()): 0,
        ("nodeproxy_kernel_drops_total", (("reason", "no_listener"),)): 9,
        ("nodeproxy_state_age_seconds", (("source", "file"),)): 10,
        ("nodeproxy_state_epoch", ()): 42,
        ("nodeproxy_state_resources", (("kind", "workload"),)): 5,
        ("nodeproxy_state_resources", (("kind", "service"),)): 4,
        ("nodeproxy_state_resources", (("kind", "policy"),)): 3,
        ("nodeproxy_certificate_expiry_timestamp_seconds", (("identity", "spiffe://td/ns/a/sa/b"),)): 2000,
        ("nodeproxy_certificate_failures", (("identity", "spiffe://td/ns/a/sa/b"),)): 3,
        ("nodeproxy_certificate_alarm", (("identity", "spiffe://td/ns/a/sa/b"),)): 1,
    }
    assert {key: value for key, value in found.items() if not key[0].startswith("process_")} == expected
    assert any(name == "process_resident_memory_bytes" for name, _ in found)


@pytest.mark.parametrize("openmetrics", [False, True])
def test_asking_on_demand(openmetrics: bool, connection: Make) -> None:
    metrics = full(connection)
    metrics.on_demand = lambda: OnDemandStatistics(
        names={"present": 2, "absent": 3, "pending": 0},
        asked=9,
        asked_again=4,
        answers={"present": 5, "absent": 6},
        refused={"pace": 7},
        let_go={"idle": 8},
    )
    found = samples(metrics, openmetrics)
    assert {key: value for key, value in found.items() if key[0].startswith("nodeproxy_on_demand_")} == {
        ("nodeproxy_on_demand_names", (("answer", "present"),)): 2,
        ("nodeproxy_on_demand_names", (("answer", "absent"),)): 3,
        ("nodeproxy_on_demand_names", (("answer", "pending"),)): 0,
        ("nodeproxy_on_demand_asked_total", ()): 9,
        ("nodeproxy_on_demand_asked_again_total", ()): 4,
        ("nodeproxy_on_demand_answers_total", (("answer", "present"),)): 5,
        ("nodeproxy_on_demand_answers_total", (("answer", "absent"),)): 6,
        ("nodeproxy_on_demand_refused_total", (("reason", "pace"),)): 7,
        ("nodeproxy_on_demand_let_go_total", (("reason", "idle"),)): 8,
    }


@pytest.mark.parametrize("openmetrics", [False, True])
def test_hostile_label_values_stay_values(openmetrics: bool, connection: Make) -> None:
    hostile = 'a"} 1\nfake_total{x="\\'
    counters, totals = Counters(), Totals()
    workload = connection().source.workload
    assert workload is not None

    labels = tcp_labels(connection(source=Party("x", changed(workload, canonical_name=hostile))))
    counters.fail(labels)
    totals.merge(counters.take()[0], 0)
    found = samples(Metrics(totals, version="1"), openmetrics)
    names = {name for name, _ in found}
    assert "fake_total" not in names
    assert ("istio_tcp_connections_failed_total", tuple(sorted(zip(LABELS, labels, strict=True)))) in found


def test_without_anything(connection: Make) -> None:
    metrics = Metrics(Totals(), version="1")
    for openmetrics in (False, True):
        assert samples(metrics, openmetrics)[("nodeproxy_enrolled_pods", ())] == 0


def test_state_that_never_came_has_no_age(connection: Make) -> None:
    metrics = full(connection)
    metrics.state = lambda: StateStatistics("file", 0.0, 0, 0, 0, 0)
    assert not re.search(rb"^nodeproxy_state_age_seconds\{", metrics.render(), re.MULTILINE)


def test_a_thousand_series_in_one_scrape(connection: Make) -> None:
    counters, totals = Counters(), Totals()
    labels = tcp_labels(connection())
    for number in range(1000):
        counters.fail((labels[0], f"w{number}", *labels[2:]))
    for page in counters.take():
        totals.merge(page, 0)
    assert Metrics(totals, version="1").render().count(b"istio_tcp_connections_failed_total{") == 1000
