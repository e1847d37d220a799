"""What an xDS source counts, and its families: Istio's by their exact names, and nodeproxy's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric


class XdsStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """An xDS source since it began.

    messages, message_bytes: by type URL.  terminations: ended connections by reason.  rejected: by type URL and reason.
    rejected_now: resources that are rejected now, by type URL.
    """

    connected: bool
    messages: Mapping[str, int]
    message_bytes: Mapping[str, int]
    terminations: Mapping[str, int]
    rejected: Mapping[tuple[str, str], int]
    rejected_now: Mapping[str, int]


def xds_families(xds: XdsStatistics) -> Iterator[Metric]:
    """The families of one source."""
    ended = CounterMetricFamily(
        "istio_xds_connection_terminations", "The total number of completed connections to xds server", labels=("reason",)
    )
    for reason, count in xds.terminations.items():
        ended.add_metric((reason,), count)
    yield ended
    messages = CounterMetricFamily("istio_xds_message", "Total number of messages received", labels=("url",))
    for url, count in xds.messages.items():
        messages.add_metric((url,), count)
    yield messages
    size = CounterMetricFamily("istio_xds_message_bytes", "Total number of bytes received", labels=("url",))
    for url, count in xds.message_bytes.items():
        size.add_metric((url,), count)
    yield size
    rejected = CounterMetricFamily("nodeproxy_xds_rejected", "Resources that could not be used", labels=("url", "reason"))
    for labels, count in xds.rejected.items():
        rejected.add_metric(labels, count)
    yield rejected
    now = GaugeMetricFamily("nodeproxy_xds_rejected_now", "Resources whose last version could not be used", labels=("url",))
    for url, count in xds.rejected_now.items():
        now.add_metric((url,), count)
    yield now
    yield GaugeMetricFamily("nodeproxy_xds_connected", "1 while the source is connected", value=int(xds.connected))
