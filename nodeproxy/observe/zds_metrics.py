"""What enrolment by istio-cni counts, and its families."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric


class ZdsStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """connected: to istio-cni.  pods: that it has told of.

    requests: by kind and outcome: "done", "malformed", "not_enrolled" (it could not be done, and why is in the log), "timeout" or
    "internal" (a defect of nodeproxy's).
    """

    connected: bool
    pods: int
    requests: Mapping[tuple[str, str], int]


def zds_families(zds: ZdsStatistics) -> Iterator[Metric]:
    """The families of one agent."""
    yield GaugeMetricFamily("nodeproxy_zds_connected", "1 while istio-cni is connected", value=int(zds.connected))
    yield GaugeMetricFamily("nodeproxy_zds_pods", "Pods that istio-cni has told of", value=zds.pods)
    requests = CounterMetricFamily(
        "nodeproxy_zds_requests", "Requests of istio-cni, by what became of them", labels=("request", "outcome")
    )
    for labels, count in zds.requests.items():
        requests.add_metric(labels, count)
    yield requests
