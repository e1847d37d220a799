"""Which connections go straight from one pod of the node to another, and who gets those whose verdict has changed."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from nodeproxy.kernel import abi, batch, direct
from nodeproxy.kernel.abi import DIRECT_FLOW, FLOW, IN_USE
from nodeproxy.kernel.direct import DirectService, Verdict
from nodeproxy.lab.topology import Lab
from nodeproxy.linux.netns import inside
from nodeproxy.linux.pod_socket import outbound_socket
from tests.kernel.conftest import Node, Program, unique
from tests.kernel.direct_pods import Pods, make_pods
from tests.pace import PACE

pytestmark = pytest.mark.kernel

_ZERO = struct.pack("=I", 0)


@pytest.fixture(scope="module")
def module_pods(lab: Lab, node: Node) -> Pods:
    return make_pods(lab, node)


@pytest.fixture
def pods(module_pods: Pods) -> Iterator[Pods]:
    yield module_pods
    module_pods.table.close()
    module_pods.ended()


@pytest.mark.parametrize("form", [0, 1, 2], ids=["4", "6", "mapped"])
def test_a_direct_connection(pods: Pods, form: int) -> None:
    pods.allow()
    asked = pods.forms()[form]
    real = asked.removeprefix("::ffff:")
    answer = pods.client.connect(asked, 80)
    assert (answer["role"], answer["peername"]) == ("app", [asked, 80])
    own = pods.client_pod.addresses[form % 2]
    assert answer["sockname"][0].removeprefix("::ffff:") == own
    (flow,) = pods.ended()
    assert (flow.source_cookie, flow.destination_cookie) == (pods.client_cookie, pods.server_cookie)
    assert flow.source == (own, answer["sockname"][1])
    assert flow.destination == flow.original == (real, 80)
    assert flow.established
    assert 0 < flow.ended_ns - flow.started_ns < 2_000_000_000 * PACE
    assert abs(time.monotonic_ns() - flow.ended_ns) < 2_000_000_000


def test_what_has_no_verdict_goes_to_the_proxy(pods: Pods, lab: Lab) -> None:
    pods.allow()
    for address in pods.client_pod.addresses:  # the other direction
        answer = pods.server.connect(address, 80)
        assert (answer["role"], answer["original"]) == ("OUTBOUND", [address, 80])
    assert pods.client.connect(lab.external().address4, 80)["role"] == "OUTBOUND"
    assert pods.ended() == []


@pytest.mark.parametrize("default", [True, False])
def test_ports_of_their_own(pods: Pods, default: bool) -> None:
    pods.allow(80, 443, default=default)
    others, excepted = ("app", "OUTBOUND") if default else ("OUTBOUND", "app")
    for address in pods.forms():
        assert pods.client.connect(address, 80)["role"] == excepted
        assert pods.client.connect(address, 83)["role"] == others
    assert {flow.destination_port for flow in pods.ended()} == ({83} if default else {80})


def test_a_closed_table_counts_for_nothing(pods: Pods) -> None:
    pods.allow()
    assert pods.table.epoch > 0
    pods.table.close()
    assert pods.table.epoch == 0
    pods.table.renew()
    for address in pods.forms():
        assert pods.client.connect(address, 80)["role"] == "OUTBOUND"


def test_what_is_written_while_somebody_closes_is_not_opened(pods: Pods) -> None:
    closing = pods.table.close()
    pods.table.close()
    assert not pods.table.publish(closing, [Verdict(pods.client_cookie, pods.server_cookie, True)], [])
    assert pods.table.epoch == 0
    assert pods.client.connect(pods.server_pod.address4, 80)["role"] == "OUTBOUND"


def test_what_is_not_written_again_is_gone(pods: Pods) -> None:
    pods.allow(81, 82, services=[DirectService("10.96.0.1", 80, ((pods.server_pod.address4, 80),))])
    maps = pods.node.steering._maps
    assert [len(list(maps[name].all_keys())) for name in ("verdicts", "services")] == [3, 1]
    closing = pods.table.close()
    assert pods.table.publish(closing, [Verdict(1, 2, True)], [])
    assert list(maps["verdicts"].all_keys()) == [abi.PAIR.pack(1, 2, 0, 0)]
    assert list(maps["services"].all_keys()) == []
    assert pods.client.connect(pods.server_pod.address4, 80)["role"] == "OUTBOUND"


def test_verdicts_end_with_the_lease(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "LEASE_NS", 300_000_000)
    pods.allow()
    begun = time.monotonic_ns()
    assert pods.client.connect(pods.server_pod.address4, 80)["role"] == "app"
    roles = set()
    while time.monotonic_ns() < begun + 200_000_000:
        pods.table.renew()
        roles.add(pods.client.connect(pods.server_pod.address4, 80)["role"])
    assert roles == {"app"}
    over = time.monotonic_ns() + 320_000_000  # the coarse clock is late by a tick of the kernel: 10 ms at most
    while time.monotonic_ns() < over:
        pods.client.connect(pods.server_pod.address4, 80)
    assert pods.table.epoch == 0
    assert pods.client.connect(pods.server_pod.address4, 80)["role"] == "OUTBOUND"


def test_the_proxys_ports_are_never_direct(pods: Pods) -> None:
    pods.allow()
    for address in pods.forms():
        for port in (15001, 15006, 15008):
            assert pods.client.connect(address, port)["role"] == "OUTBOUND"


def test_a_service_of_this_node(pods: Pods) -> None:
    services = [
        DirectService(vip, 8000, tuple((address, port) for port in (80, 83)))
        for vip, address in (("10.96.0.1", pods.server_pod.address4), ("fd00:96::1", pods.server_pod.address6))
    ]
    pods.allow(services=services)
    for vip in ("10.96.0.1", "fd00:96::1", "::ffff:10.96.0.1"):
        answers = [pods.client.connect(vip, 8000) for _ in range(30)]
        assert {answer["role"] for answer in answers} == {"app"}
        assert {tuple(answer["peername"]) for answer in answers} == {(vip, 8000)}
        ended = pods.table.take_ended()
        assert {flow.original for flow in ended} == {(vip.removeprefix("::ffff:"), 8000)}
        assert sorted(flow.destination_port for flow in ended) == [80] * 15 + [83] * 15
        assert pods.client.connect(vip, 8001)["original"] == [vip.removeprefix("::ffff:"), 8001]
    pods.allow(80, 83, services=services)
    assert pods.client.connect("10.96.0.1", 8000)["original"] == ["10.96.0.1", 8000]
    pods.allow()
    assert pods.client.connect("10.96.0.1", 8000)["original"] == ["10.96.0.1", 8000]


def test_a_service_whose_endpoint_is_no_other_pod_goes_to_the_proxy(pods: Pods) -> None:
    elsewhere = [pods.client_pod.address4, "10.10.1.77", pods.server_pod.address6]
    pods.allow(services=[DirectService("10.96.0.2", 80, ((address, 80),)) for address in elsewhere[:1]])
    for address in elsewhere:
        pods.allow(services=[DirectService("10.96.0.2", 80, ((address, 80),))])
        assert pods.client.connect("10.96.0.2", 80)["original"] == ["10.96.0.2", 80]


def test_an_address_that_moves_takes_no_verdict_along(pods: Pods, lab: Lab) -> None:
    """The verdict is the pods', not their addresses'."""
    stranger = lab.pod(0, unique("p"))
    pods.server_pod.add_address("eth0", "10.10.0.201", 24)
    pods.node.enrol(pods.server_pod)
    pods.allow()
    assert pods.client.connect("10.10.0.201", 80)["role"] == "app"
    owners = pods.node.steering._maps["pods_by_address"]
    owners.put(abi.pack_ip("10.10.0.201"), abi.OWNER.pack(pods.node.enrol(stranger), 0, 0, 0, 0))
    assert pods.client.connect("10.10.0.201", 80)["original"] == ["10.10.0.201", 80]
    owners.delete(abi.pack_ip("10.10.0.201"))


# ── a verdict that changes between connect() and the SYN's arrival ──


@pytest.fixture
def deferring(pods: Pods) -> None:
    """TCP_FASTOPEN_CONNECT without a cookie: connect() says yes, and the SYN leaves with the first byte."""
    pods.client_pod.sysctl("net/ipv4/tcp_fastopen", "5")


def late(pods: Pods) -> int:
    return pods.table.counters()["late"]


@pytest.mark.parametrize("form", [0, 1, 2], ids=["4", "6", "mapped"])
@pytest.mark.parametrize("vip", [False, True], ids=["pod", "service"])
@pytest.mark.usefixtures("deferring")
def test_a_late_syn_goes_to_a_worker_who_knows_whose_it_is(pods: Pods, form: int, vip: bool) -> None:
    asked = pods.forms()[form]
    if vip:
        service = ["10.96.0.1", "fd00:96::1", "10.96.0.1"][form]
        pods.allow(services=[DirectService(service, 80, ((asked.removeprefix("::ffff:"), 80),))])
        asked = ["10.96.0.1", "fd00:96::1", "::ffff:10.96.0.1"][form]
    else:
        pods.allow()
    before = late(pods)
    assert pods.client("hold", address=asked, port=80, deferred=True, name="late") == {}
    pods.table.close()
    answer = pods.client("go_on", name="late", say="x")
    assert (answer["role"], answer["peername"]) == ("PLAINTEXT", [asked, 80])
    assert answer["direct"] == [pods.client_cookie, asked.removeprefix("::ffff:"), 80]
    assert answer["seen_sockname"] == [pods.forms()[form].removeprefix("::ffff:"), 80]
    assert late(pods) == before + 1
    assert pods.ended() == []


@pytest.mark.usefixtures("deferring")
def test_a_late_syn_with_another_table_that_allows_it(pods: Pods) -> None:
    pods.allow()
    pods.client("hold", address=pods.server_pod.address4, port=80, deferred=True, name="late")
    pods.allow()
    pods.client("go_on", name="late", say="x")  # which the application resets, for it does not read
    (flow,) = pods.ended()
    assert flow.established


def test_other_plaintext_is_nobodys(pods: Pods, lab: Lab) -> None:
    pods.allow()
    answer = Program(lab.pod(0, unique("p")), pods.node.group / "pods").connect(pods.server_pod.address4, 80)
    assert (answer["role"], answer["direct"]) == ("PLAINTEXT", None)


def test_what_the_proxy_itself_dials_from_a_pod_is_not_the_pods(pods: Pods) -> None:
    pods.allow()
    with inside(pods.client_pod.netns_fd):
        own = outbound_socket(socket.AF_INET)
    with contextlib.closing(own):
        own.settimeout(3)
        own.connect((pods.server_pod.address4, 80))
        answer = json.loads(own.recv(4096))
    assert (answer["role"], answer["direct"]) == ("PLAINTEXT", None)
    assert pods.ended() == []


# ── no room ──


def test_no_room_to_remember_one_more(pods: Pods) -> None:
    table = pods.node.steering._maps["direct"]
    pods.allow()
    keys = [FLOW.pack(number.to_bytes(16), bytes(16), 1, 1) for number in range(table.max_entries)]
    assert batch.update(table, ((key, bytes(DIRECT_FLOW.size)) for key in keys)) == 0
    try:
        before = pods.table.counters()["full"]
        answer = pods.client.connect(pods.server_pod.address4, 80)
        assert answer["role"] == "PLAINTEXT"
        assert answer["direct"] == [pods.client_cookie, pods.server_pod.address4, 80]
        assert pods.table.counters()["full"] == before + 1
    finally:
        batch.delete(table, keys)
    assert pods.client.connect(pods.server_pod.address4, 80)["role"] == "app"
    assert len(pods.ended()) == 1


def test_too_many_are_being_made(pods: Pods) -> None:
    pods.allow()
    in_use, flows = (pods.node.steering._maps[name] for name in ("in_use", "flows"))
    before = pods.table.counters()["full"]
    in_use.put(_ZERO, IN_USE.pack(0, flows.max_entries - 4096, 0))
    try:
        answer = pods.client.connect(pods.server_pod.address4, 80)
        assert (answer["role"], answer["original"]) == ("OUTBOUND", [pods.server_pod.address4, 80])
    finally:
        in_use.put(_ZERO, IN_USE.pack(0, 0, 0))
    assert pods.table.counters()["full"] == before + 1


def test_a_pair_whose_ports_find_no_room_is_not_there(pods: Pods) -> None:
    """Its own entry without them would let through what they forbid."""
    table = pods.node.steering._maps["verdicts"]
    crowd = [Verdict(1, number, False, (1,)) for number in range(table.max_entries // 2 + 1)]
    mine = Verdict(pods.client_cookie, pods.server_cookie, True, (80,))
    assert pods.table.publish(pods.table.close(), [*crowd, mine], [])
    assert pods.table.left_out > 0
    for port in (80, 81):
        assert pods.client.connect(pods.server_pod.address4, port)["role"] == "OUTBOUND"
    assert pods.table.publish(pods.table.close(), [mine], [])
    assert pods.table.left_out == 0
    assert list(table.all_keys()) != []
    assert pods.client.connect(pods.server_pod.address4, 80)["role"] == "OUTBOUND"
