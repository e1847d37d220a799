"""What an enrolled pod's connects become."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable
from typing import NamedTuple

import pytest

from nodeproxy.errors import KernelError
from nodeproxy.kernel.original_destination import OriginalDestination
from nodeproxy.lab.topology import Host, Lab, LabPod
from nodeproxy.linux.netns import inside
from tests.kernel.conftest import Node, Program

pytestmark = pytest.mark.kernel


class Pods(NamedTuple):
    client: Program
    client_pod: LabPod
    other: LabPod
    other_program: Program
    plain: Program


@pytest.fixture(scope="module")
def pods(lab: Lab, node: Node) -> Pods:
    group = node.group / "pods"
    client_pod, other, plain = lab.pod(0, "client"), lab.pod(1, "other"), lab.pod(0, "plain")
    client, other_program, plain_program = Program(client_pod, group), Program(other, group), Program(plain, group)
    for address in ("0.0.0.0", "::"):
        if address == "::":
            other_program.serve(address, 80)
            other_program.serve(address, 53, udp=True)
            client.serve(address, 8080)
    node.enrol(client_pod)
    return Pods(client, client_pod, other, other_program, plain_program)


def test_ipv4(pods: Pods) -> None:
    answer = pods.client.connect(pods.other.address4, 80)
    assert answer["role"] == "OUTBOUND"
    assert answer["original"] == [pods.other.address4, 80]
    assert answer["peername"] == [pods.other.address4, 80]
    assert answer["seen_peer"] == answer["sockname"]
    assert answer["sockname"][0] == pods.client_pod.address4
    assert answer["seen_sockname"] == [pods.client_pod.address4, 15001]


def test_ipv6(pods: Pods) -> None:
    answer = pods.client.connect(pods.other.address6, 80)
    assert answer["role"] == "OUTBOUND"
    assert answer["original"] == [pods.other.address6, 80]
    assert answer["peername"] == [pods.other.address6, 80]
    assert answer["sockname"][0] == pods.client_pod.address6


def test_ipv4_mapped(pods: Pods) -> None:
    asked = f"::ffff:{pods.other.address4}"
    answer = pods.client.connect(asked, 80)
    assert answer["role"] == "OUTBOUND"
    assert answer["original"] == [pods.other.address4, 80]
    assert answer["peername"] == [asked, 80]


def test_an_address_that_nobody_has(pods: Pods) -> None:
    assert pods.client.connect("203.0.113.9", 443)["original"] == ["203.0.113.9", 443]


@pytest.mark.parametrize("form", ["4", "6", "mapped"])
def test_200_of_200_destinations_are_right(pods: Pods, node: Node, form: str) -> None:
    asked = {"4": pods.other.address4, "6": pods.other.address6, "mapped": f"::ffff:{pods.other.address4}"}[form]
    expected = asked.removeprefix("::ffff:")
    assert pods.client("many", address=asked, expected=expected, port=2000, count=200) == {"right": 200}
    assert node.in_progress() == (0, 0)


def test_workers_take_turns(pods: Pods) -> None:
    slots = [pods.client.connect(pods.other.address4, 80)["slot"] for _ in range(10)]
    assert sorted(slots) == [0] * 5 + [1] * 5


def test_fast_open(pods: Pods) -> None:
    pods.client_pod.sysctl("net/ipv4/tcp_fastopen", "3")
    for _ in range(3):
        answer = pods.client("fastopen", address=pods.other.address4, port=80)
        assert answer.get("original") == [pods.other.address4, 80], answer
        assert answer["peername"] == [pods.other.address4, 80]


def test_udp_is_untouched(pods: Pods) -> None:
    answer = pods.client("datagram", address=pods.other.address4, port=53)
    assert answer == {"answer": "app:?", "peername": [pods.other.address4, 53]}


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::"])
def test_loopback_is_untouched(pods: Pods, address: str) -> None:
    assert pods.client.connect(address, 8080)["role"] == "app"


def test_the_pods_own_addresses_are_untouched(pods: Pods) -> None:
    for address in pods.client_pod.addresses:
        answer = pods.client.connect(address, 8080)
        assert (answer["role"], answer["peername"]) == ("app", [address, 8080])


def test_a_pod_that_is_not_enrolled_is_untouched(pods: Pods) -> None:
    for address in pods.other.addresses:
        assert pods.plain.connect(address, 80)["role"] == "app"


@pytest.mark.parametrize("mark", [0x539, 0x53A])
def test_a_mark_exempts_nobody(pods: Pods, mark: int) -> None:
    for address in pods.other.addresses:
        answer = pods.client.connect(address, 80, mark=mark)
        assert (answer["role"], answer["original"]) == ("OUTBOUND", [address, 80])


def test_mptcp_is_steered(pods: Pods) -> None:
    for address in pods.other.addresses:
        answer = pods.client.connect(address, 80, mptcp=True)
        assert (answer["role"], answer["original"]) == ("OUTBOUND", [address, 80])
        # The hooks see the subflow and not the socket: a client that asks for MPTCP sees where it was led (servers do not).
        assert answer["peername"][1] in (15001, 80)


def test_a_socket_bound_to_the_pods_device_is_steered(pods: Pods) -> None:
    for address in pods.other.addresses:
        answer = pods.client.connect(address, 80, device="eth0")
        assert (answer["role"], answer["original"], answer["peername"]) == ("OUTBOUND", [address, 80], [address, 80])


def test_a_socket_bound_to_another_device_gets_nowhere_or_is_steered(pods: Pods) -> None:
    for address in pods.other.addresses:
        answer = pods.client.connect(address, 80, device="lo", timeout=0.5)
        assert answer["role"] in ("error", "OUTBOUND")


def test_a_socket_bound_to_a_source_address_is_steered(pods: Pods) -> None:
    answer = pods.client.connect(pods.other.address4, 80, source=[pods.client_pod.address4, 0])
    assert answer["original"] == [pods.other.address4, 80]
    answer = pods.client.connect(pods.other.address4, 80, source=["127.0.0.1", 0])
    assert answer["role"] in ("error", "OUTBOUND")


def test_a_socket_that_connects_again_is_what_it_is_now(pods: Pods) -> None:
    answer = pods.client(
        "connect_again", address=pods.other.address4, port=80, then={"address": pods.client_pod.address4, "port": 8080}
    )
    assert answer["first"]["role"] == "OUTBOUND"
    assert (answer["second"]["role"], answer["second"]["peername"]) == ("app", [pods.client_pod.address4, 8080])


def test_the_proxys_own_ports_are_destinations_like_any_other(pods: Pods) -> None:
    for port in (15001, 15006, 15008):
        assert pods.client.connect(pods.other.address4, port)["original"] == [pods.other.address4, port]


def test_a_family_that_the_pod_lacks_is_refused(lab: Lab, node: Node, program: Callable[[Host], Program]) -> None:
    only4, only6 = lab.pod(0, "only4", families=(4,)), lab.pod(0, "only6", families=(6,))
    for pod, wrong, right in ((only4, "fd00:10:1::2", "10.10.1.2"), (only6, "10.10.1.2", "fd00:10:1::2")):
        caller = program(pod)
        node.enrol(pod)
        before = node.steering.drop_counters()["no_family"]
        assert caller.connect(wrong, 80)["errno"] == errno.ENETUNREACH
        assert node.steering.drop_counters()["no_family"] == before + 1
        assert caller.connect(right, 80)["original"] == [right, 80]


def test_nothing_stays_behind_of_connects_that_fail(pods: Pods, node: Node) -> None:
    node.worker.close_listeners()
    try:
        for address in pods.other.addresses:
            assert pods.client.connect(address, 80)["errno"] == errno.ECONNREFUSED
        assert node.in_progress() == (0, 0)
        assert node.steering.drop_counters()["no_listener"] >= 2
    finally:
        node.set_listeners(pods.client_pod)
    assert pods.client.connect(pods.other.address4, 80)["role"] == "OUTBOUND"


def test_what_reading_the_original_destination_costs(pods: Pods, node: Node) -> None:
    with inside(pods.client_pod.netns_fd):
        probe = socket.socket()
    with probe:
        original = OriginalDestination(node.steering.original_destination_fd)
        assert original.get(probe.fileno()) is None
        begun = time.perf_counter()
        for _ in range(2000):
            original.get(probe.fileno())
        absent_us = (time.perf_counter() - begun) * 500
    print(f"original destination of a socket that has none: {absent_us:.2f} µs")


def test_the_original_destination_of_what_is_no_socket(node: Node) -> None:
    with pytest.raises(KernelError, match="original destination"):
        OriginalDestination(node.steering.original_destination_fd).get(9999)
