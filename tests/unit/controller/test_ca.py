"""The CA's parts put together; what they do together stands in tests/cluster/test_ca.py."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from nodeproxy.controller.ca import Ca
from nodeproxy.controller.ca_settings import CaSettings
from nodeproxy.errors import ConfigError, IdentityError
from tests.unit.controller.fakes import Pods
from tests.unit.controller.secrets import Secrets


def made(**options: Any) -> Ca:
    settings, lists = CaSettings(), asyncio.Semaphore(1)
    return Ca(Secrets(), Pods(), settings, namespace="nodeproxy-system", lists=lists, **options)  # type: ignore[arg-type]


def test_no_port_without_a_key_and_none_that_is_taken() -> None:
    async def run() -> None:
        ca, server, other = made(), grpc.aio.server(), grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        with pytest.raises(IdentityError, match="no key yet"):
            ca.open_port(server, "127.0.0.1:0", ["localhost"])
        await ca.load()
        port = ca.open_port(server, "127.0.0.1:0", ["localhost"])
        with pytest.raises(ConfigError, match="the port is taken"):
            ca.open_port(other, f"127.0.0.1:{port}", ["localhost"])
        await server.stop(None)
        await other.stop(None)
        await ca.close()

    asyncio.run(run())


def test_where_the_roots_are_needed() -> None:
    ca = made()
    for namespace, needed in (("nodeproxy-system", False), ("shop", True), ("shop", False), ("till", True)):
        ca.need(namespace, needed)
    assert ca.publisher.statistics().namespaces == 2


def test_metrics_before_the_port_is_open() -> None:
    registry = CollectorRegistry()
    registry.register(made().collector())
    assert b"nodeproxy_controller_ca_secret_valid 0.0" in generate_latest(registry)
