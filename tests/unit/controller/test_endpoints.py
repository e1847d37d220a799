from __future__ import annotations

import asyncio
import socket

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, Gauge

from nodeproxy.controller.endpoints import Endpoints
from nodeproxy.errors import ConfigError
from nodeproxy.settings import Address


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


async def get(port: int, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as answer:
        return answer.status, await answer.text()


def test_readiness_says_what_is_waited_for_and_metrics_are_prometheus() -> None:
    async def main() -> None:
        registry, waits = CollectorRegistry(), ["all of kind Pod", "the CA's key"]
        Gauge("x", "y", registry=registry).set(7)
        metrics, ready, endpoints = free_port(), free_port(), Endpoints()
        await endpoints.serve_metrics(registry, Address("127.0.0.1", metrics))
        await endpoints.serve_ready(lambda: waits, Address("127.0.0.1", ready))
        try:
            assert await get(ready, "/healthz/ready") == (500, "all of kind Pod\nthe CA's key\n")
            assert await get(ready, "/healthz/live") == (200, "live\n")
            waits.clear()
            assert await get(ready, "/healthz/ready") == (200, "ready\n")
            assert "x 7.0" in (await get(metrics, "/metrics"))[1]
        finally:
            await endpoints.stop()

    asyncio.run(main())


def test_an_address_in_use_is_named() -> None:
    async def main() -> None:
        endpoints = Endpoints()
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            with pytest.raises(ConfigError, match=f"--metrics 127.0.0.1:{port}: .*give another address, or `off`"):
                await endpoints.serve_metrics(CollectorRegistry(), Address("127.0.0.1", port))
        await endpoints.stop()

    asyncio.run(main())
