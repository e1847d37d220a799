"""What is scraped, by the exact names that dashboards will use."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from nodeproxy.controller.ca.metrics import CaCollector, CaParts
from nodeproxy.controller.ca.root_publisher import RootPublisher
from nodeproxy.controller.ca.service import CertificateService
from nodeproxy.controller.ca.serving import ServingCertificate
from nodeproxy.controller.ca.settings import CaSettings
from nodeproxy.controller.ca.store import CaStore
from nodeproxy.controller.callers import Callers
from nodeproxy.errors import CallerError
from tests.unit.controller.fakes import Pods, Reviewer, token
from tests.unit.controller.material import NOW
from tests.unit.controller.secrets import Secrets

EXPECTED = """
nodeproxy_controller_ca_callers_total{result="token_rejected"} 1.0
nodeproxy_controller_ca_token_reviews_total 1.0
nodeproxy_controller_ca_callers_kept 1.0
nodeproxy_controller_ca_signing_seconds_total 0.0
nodeproxy_controller_ca_requests_waiting 0.0
nodeproxy_controller_ca_secret_reads_total{result="missing"} 1.0
nodeproxy_controller_ca_secret_reads_total{result="read"} 1.0
nodeproxy_controller_ca_secret_valid 1.0
nodeproxy_controller_ca_root_phase{phase="steady"} 1.0
nodeproxy_controller_ca_root_phase{phase="draining"} 0.0
nodeproxy_controller_ca_certificate_expiry_seconds{serial=
nodeproxy_controller_ca_root_namespaces 1.0
nodeproxy_controller_ca_root_namespaces_stale 1.0
nodeproxy_controller_ca_serving_certificate_expiry_seconds
"""


def test_everything_is_told() -> None:
    store = CaStore(Secrets(), "nodeproxy-system", "nodeproxy-ca", "cluster.local", clock=lambda: NOW)
    asyncio.run(store.load())
    callers = Callers(Reviewer())
    service = CertificateService(callers, Pods(), store.signing_keys, CaSettings())
    publisher = RootPublisher(Secrets(), lambda: None)
    publisher.need("a", True)
    serving = ServingCertificate(lambda: store.keys, ["a.svc"])
    registry = CollectorRegistry()
    registry.register(CaCollector(CaParts(callers, service, store, publisher, lambda: serving)))
    with pytest.raises(CallerError):
        asyncio.run(callers.authenticate([("authorization", f"Bearer {token()}")]))
    text = generate_latest(registry).decode()
    for line in EXPECTED.split("\n")[1:-1]:
        assert f"\n{line}" in text
