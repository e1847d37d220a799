from __future__ import annotations

from collections.abc import Callable

import pytest

from nodeproxy.model.connection import Connection, Direction, Party, Security
from nodeproxy.model.reason import Reason
from nodeproxy.observe.labels import LABELS, UNKNOWN, Reporter, tcp_labels

Make = Callable[..., Connection]


def named(connection: Connection, reporter: Reporter | None = None) -> dict[str, str]:
    return dict(zip(LABELS, tcp_labels(connection, reporter), strict=True))


def test_the_names_are_istios() -> None:
    sides = (
        "workload",
        "canonical_service",
        "canonical_revision",
        "workload_namespace",
        "principal",
        "app",
        "version",
        "cluster",
        "region",
        "zone",
    )
    expected = {f"{side}_{name}" for side in ("source", "destination") for name in sides}
    expected |= {"reporter", "destination_service", "destination_service_namespace", "destination_service_name"}
    expected |= {"request_protocol", "response_flags", "connection_security_policy"}
    assert set(LABELS) == expected
    assert len(LABELS) == len(expected)


def test_all_values(connection: Make) -> None:
    labels = named(connection())
    assert labels == {
        "reporter": "source",
        "source_workload": "cart",
        "source_canonical_service": "cart-app",
        "source_canonical_revision": "v1",
        "source_workload_namespace": "shop",
        "source_principal": "spiffe://cluster.local/ns/shop/sa/cart",
        "source_app": "cart-app",
        "source_version": "v1",
        "source_cluster": "east",
        "source_region": "r1",
        "source_zone": "z1",
        "destination_workload": "stock-77",  # no workload_name: the pod's
        "destination_canonical_service": UNKNOWN,
        "destination_canonical_revision": UNKNOWN,
        "destination_workload_namespace": "back",
        "destination_principal": "spiffe://cluster.local/ns/back/sa/stock",
        "destination_app": UNKNOWN,
        "destination_version": UNKNOWN,
        "destination_cluster": "Kubernetes",
        "destination_region": UNKNOWN,
        "destination_zone": UNKNOWN,
        "destination_service": "stock.back.svc.cluster.local",
        "destination_service_namespace": "back",
        "destination_service_name": "stock",
        "request_protocol": "tcp",
        "response_flags": "-",
        "connection_security_policy": "mutual_tls",
    }


def test_nothing_known(connection: Make) -> None:
    stranger = connection(
        direction=Direction.INBOUND,
        source=Party("1.2.3.4:5"),
        destination=Party("10.0.0.9:80"),
        security=Security.NONE,
        service=None,
    )
    labels = named(stranger)
    assert labels.pop("reporter") == "destination"
    assert labels.pop("request_protocol") == "tcp"
    assert labels.pop("response_flags") == "-"
    assert set(labels.values()) == {UNKNOWN}


def test_principals_follow_ztunnel(connection: Make) -> None:
    full = connection()
    labels = named(connection(source=Party("a", full.source.workload), destination=Party("b", full.destination.workload)))
    assert labels["source_principal"] == UNKNOWN  # not proved
    assert labels["destination_principal"] == "spiffe://cluster.local/ns/back/sa/stock"
    assert named(connection(source=Party("a", None, "spiffe://td/ns/a/sa/b")))["source_principal"] == "spiffe://td/ns/a/sa/b"


@pytest.mark.parametrize(
    ("reason", "flags"),
    [(None, "-"), (Reason.POLICY_DENY, "DENY"), (Reason.HBONE_TIMEOUT, "NETWORK_POLICY"), (Reason.CONNECT_REFUSED, "CONNECT")],
)
def test_flags(reason: Reason | None, flags: str, connection: Make) -> None:
    assert named(connection(reason=reason))["response_flags"] == flags


def test_the_reporter_may_be_told(connection: Make) -> None:
    assert named(connection(), Reporter.DESTINATION)["reporter"] == "destination"
