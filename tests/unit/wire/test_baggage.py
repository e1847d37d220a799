from __future__ import annotations

import pytest

from nodeproxy.model.workload import Locality, Workload
from nodeproxy.wire.baggage import MAX_BAGGAGE_BYTES, encode_baggage, parse_baggage

pytestmark = pytest.mark.unit

IDENTITY = "spiffe://td.example/ns/shop/sa/cart"
WORKLOAD = Workload(
    uid="u",
    name="cart-7f-x",
    namespace="shop",
    cluster="c1",
    canonical_name="cart",
    canonical_revision="v1",
    workload_type="deployment",
    workload_name="cart",
    locality=Locality("eu", "eu-1"),
)


def test_encode() -> None:
    assert encode_baggage(WORKLOAD) == (
        "k8s.cluster.name=c1,k8s.namespace.name=shop,k8s.deployment.name=cart,service.name=cart,service.version=v1,"
        "cloud.region=eu,cloud.availability_zone=eu-1"
    )
    bare = encode_baggage(Workload(uid="u", name="p", namespace="n"))
    assert bare == "k8s.cluster.name=Kubernetes,k8s.namespace.name=n,k8s.pod.name=p"


def test_round_trip_with_what_needs_escapes() -> None:
    odd = Workload(uid="u", name="p", namespace="n", workload_name='a,b;c=d "%é\\', canonical_name="x y")
    header = encode_baggage(odd)
    assert header.isascii()
    assert header.count(",") == 3
    found = parse_baggage(header)
    assert (found.workload_name, found.canonical_name, found.workload_type) == ('a,b;c=d "%é\\', "x y", "pod")


def test_what_the_certificate_says_wins() -> None:
    found = parse_baggage("k8s.namespace.name=kube-system,k8s.job.name=evil,k8s.cluster.name=c", IDENTITY)
    assert (found.namespace, found.trust_domain, found.service_account) == ("shop", "td.example", "cart")
    assert (found.workload_type, found.workload_name, found.cluster) == ("job", "evil", "c")
    assert found.identity == IDENTITY


@pytest.mark.parametrize(
    "header",
    [
        *("", ",,,", "=", "=x", "service.name", "service.name=", "service.name=%0a", "service.name=%00x"),
        *("service.name=" + "x" * 513, "\udcff=\udcff"),
    ],
)
def test_nothing_understood(header: str) -> None:
    assert parse_baggage(header).canonical_name == ""


def test_tolerance_and_bounds() -> None:
    assert parse_baggage(" service.name = a ;p=1 , unknown=2, service.name=b").canonical_name == "a"
    assert parse_baggage("service.name=%zz%41").canonical_name == "%zzA"
    assert parse_baggage("x=1," * 64 + "service.name=late").canonical_name == ""
    assert parse_baggage("service.name=a," + "x" * MAX_BAGGAGE_BYTES).canonical_name == ""
