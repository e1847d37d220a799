"""A connection that tests change by a field or two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nodeproxy.model.connection import Connection, Direction, Party, Security
from nodeproxy.model.workload import Locality, Service, Workload

CART = Workload(
    uid="cart-1",
    name="cart-1234",
    namespace="shop",
    service_account="cart",
    workload_name="cart",
    canonical_name="cart-app",
    canonical_revision="v1",
    cluster="east",
    locality=Locality("r1", "z1"),
)
STOCK = Workload(uid="stock-1", name="stock-77", namespace="back", service_account="stock")
SERVICE = Service(name="stock", namespace="back", hostname="stock.back.svc.cluster.local")


@pytest.fixture
def connection() -> Callable[..., Connection]:
    def make(**changes: Any) -> Connection:
        fields: dict[str, Any] = {
            "id": 1,
            "direction": Direction.OUTBOUND,
            "source": Party("10.0.0.1:4000", CART, CART.identity),
            "destination": Party("10.0.1.2:15008", STOCK, STOCK.identity),
            "security": Security.MUTUAL_TLS,
            "service": SERVICE,
            "hbone_address": "10.0.1.2:80",
            "received_bytes": 84,
            "sent_bytes": 358,
            "started": 1_700_000_000.0,
            "ended": 1_700_000_000.0153,
        }
        return Connection(**(fields | changes))

    return make
