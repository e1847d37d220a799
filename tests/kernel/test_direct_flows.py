"""What is told of direct connections: their bytes however they end, and that nothing is left of them."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeproxy.kernel import direct
from nodeproxy.kernel.direct import Verdict
from nodeproxy.kernel.steering import Steering
from nodeproxy.lab.topology import Lab
from tests.kernel.conftest import Node
from tests.kernel.direct_pods import Pods, make_pods
from tests.kernel.later_version import other_sources

pytestmark = pytest.mark.kernel

# Sizes: nothing but the head that says what to do; some; and more than the buffers of both ends hold.
SIZES = [(100, 0), (100, 1), (1000, 70_000), (20_000_000, 100), (100, 20_000_000)]


@pytest.fixture(scope="module")
def module_pods(lab: Lab, node: Node) -> Pods:
    return make_pods(lab, node)


@pytest.fixture
def pods(module_pods: Pods) -> Iterator[Pods]:
    module_pods.allow()
    yield module_pods
    module_pods.table.close()
    module_pods.ended()


@pytest.mark.parametrize(("sent", "received"), SIZES)
@pytest.mark.parametrize(
    ("client", "server"),
    [
        ("close", "wait"),  # the client first
        ("wait", "close"),  # the server first
        ("close", "close"),  # both at once, as it comes
        ("half-close", "wait"),
        ("half-close", "close"),
        ("abort", "wait"),
        ("wait", "abort"),
    ],
)
def test_bytes_are_exact_however_it_ends(pods: Pods, client: str, server: str, sent: int, received: int) -> None:
    for address in (pods.forms()[0], pods.forms()[1]):
        order = {"send": sent, "receive": received, "end": client, "server": server}
        assert pods.client("exchange", address=address, port=81, **order) == {}
        (flow,) = pods.soon()
        assert (flow.established, flow.sent_bytes, flow.received_bytes) == (1, sent, received)


def test_who_closes_without_reading(pods: Pods) -> None:
    """A reset in place of a FIN; what came is counted although nobody read it."""
    pods.client("exchange", address=pods.server_pod.address4, port=81, send=100, receive=5, end="leave unread", server="wait")
    (flow,) = pods.soon()
    assert (flow.sent_bytes, flow.received_bytes) == (100, 5)


def test_a_live_one_is_listed(pods: Pods) -> None:
    for form, address in enumerate(pods.forms()):
        held = pods.client("hold", address=address, port=81, name=str(form))
        (flow,) = pods.table.flows()
        assert flow.source == (held["sockname"][0].removeprefix("::ffff:"), held["sockname"][1])
        assert flow.destination == (address.removeprefix("::ffff:"), 81)
        assert (flow.established, flow.ended, flow.ended_ns) == (1, 0, 0)
        assert pods.table.take_ended() == []
        pods.client("go_on", name=str(form), say='{"read": 100, "send": 0, "end": "close"}'.ljust(100))
        (ended,) = pods.soon()
        assert ended.socket_cookie == flow.socket_cookie
        assert (ended.sent_bytes, ended.received_bytes) == (100, 0)


def test_refused_by_the_application(pods: Pods) -> None:
    for address in pods.forms():
        assert pods.client.connect(address, 82)["errno"] == errno.ECONNREFUSED
        (flow,) = pods.soon()
        assert (flow.established, flow.refused, flow.sent_bytes, flow.received_bytes) == (0, 1, 0, 0)


def test_no_answer_is_no_refusal(pods: Pods, lab: Lab) -> None:
    """The pod's link is cut: the SYN leaves and nobody hears it."""
    lost = lab.pod(0, "direct-lost")
    cookie = pods.node.enrol(lost)
    assert pods.table.publish(pods.table.close(), [Verdict(pods.client_cookie, cookie, True)], [])
    lost._route.link("set", index=lost.index("eth0"), state="down")
    assert pods.client.connect(lost.address4, 80, timeout=0.2)["role"] == "error"
    (flow,) = pods.soon()
    assert (flow.established, flow.refused, flow.destination_cookie) == (0, 0, cookie)


def test_a_connect_that_cannot_leave(pods: Pods) -> None:
    """It fails before there is a SYN: nothing was begun."""
    before = pods.table.flows()
    answer = pods.client.connect(pods.server_pod.address4, 80, source=["192.0.2.1", 0])
    assert answer["role"] == "error"
    pods.client.connect(pods.server_pod.address4, 80, device="lo", timeout=0.3)
    assert pods.table.flows() == before
    pods.soon(0)


def test_a_socket_that_connects_again_is_two(pods: Pods) -> None:
    then = {"address": pods.server_pod.address4, "port": 83}
    answer = pods.client("connect_again", address=pods.server_pod.address4, port=80, then=then)
    assert (answer["first"]["role"], answer["second"]["role"]) == ("app", "app")
    assert [flow.destination_port for flow in pods.soon(2)] == [80, 83]


def test_mptcp(pods: Pods) -> None:
    for address in pods.server_pod.addresses:
        assert pods.client.connect(address, 80, mptcp=True)["role"] == "app"
        (flow,) = pods.soon()
        assert flow.established


def test_fast_open(pods: Pods) -> None:
    pods.client_pod.sysctl("net/ipv4/tcp_fastopen", "3")
    pods.server_pod.sysctl("net/ipv4/tcp_fastopen", "1027")  # server, client, and every listener
    for _ in range(3):
        pods.client("fastopen", address=pods.server_pod.address4, port=80)
        (flow,) = pods.soon()
        assert (flow.established, flow.sent_bytes) == (1, 1)


@pytest.mark.parametrize(
    "order",
    [
        {"port": 80},
        {"port": 80, "abort": True},
        {"port": 80, "nonblocking": True},
        {"port": 82},
        {"port": 82, "nonblocking": True},
    ],
    ids=["close", "reset", "leave at once", "refused", "refused and left at once"],
)
def test_storms_leave_nothing(pods: Pods, order: dict[str, object]) -> None:
    for address in pods.forms():
        tally = pods.client("storm", address=address, count=500, **order)
        assert sum(tally.values()) == 500
        flows = pods.soon(500)
        assert len(flows) == len({flow.socket_cookie for flow in flows}) == 500
        assert all(flow.sent_bytes == flow.received_bytes == 0 for flow in flows if not flow.established)


def test_what_the_ring_has_no_room_for_is_told_all_the_same(pods: Pods) -> None:
    before = pods.table.counters()["left"]
    count = pods.node.steering._maps["ended"].max_entries // 136 + 1000
    pods.client("storm", address=pods.server_pod.address4, port=82, count=count)
    assert pods.table.counters()["left"] >= before + 1000
    assert pods.table.flows() == []
    flows = pods.soon(count)
    assert len(flows) == len({flow.socket_cookie for flow in flows}) == count
    assert pods.table.take_ended() == []
    pods.client("storm", address=pods.server_pod.address4, port=82, count=3)
    assert len(pods.soon(3)) == 3


def test_an_agent_that_comes_again_knows_the_flows(pods: Pods) -> None:
    pods.client("hold", address=pods.server_pod.address4, port=81, name="over")
    (flow,) = pods.table.flows()
    epoch = pods.table.epoch
    pods.node.close()
    try:
        answer = pods.client.connect(pods.server_pod.address4, 80)
        assert answer["role"] == "app", answer  # within the lease
    finally:
        pods.node.open()
    assert pods.node.steering.adopted
    assert pods.table.epoch == epoch
    assert pods.table.flows() == [flow]
    assert [ended.destination_port for ended in pods.table.take_ended()] == [80]
    pods.client("go_on", name="over", say='{"read": 100, "send": 0, "end": "close"}'.ljust(100))
    (ended,) = pods.soon()
    assert ended.socket_cookie == flow.socket_cookie
    for host in (pods.client_pod, pods.server_pod):
        pods.node.set_listeners(host)


@pytest.mark.parametrize("header", ["", "\n/* other maps */\n"], ids=["same maps", "other maps"])
def test_a_later_version_knows_the_flows(pods: Pods, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, header: str) -> None:
    """With maps of their own its programs go on with what they carried; one connection ends before they are there."""
    monkeypatch.setattr(direct, "LEASE_NS", 600_000_000_000)  # a slow machine compiles for minutes
    pods.allow()
    for name in ("stays", "ends"):
        pods.client("hold", address=pods.server_pod.address4, port=81, name=name)
    stays, ends = sorted(pods.table.flows(), key=lambda flow: flow.started_ns)
    epoch = pods.table.epoch
    pods.node.steering.close()
    attach = Steering._attach_pods

    def end_one(steering: Steering) -> None:
        pods.client("go_on", name="ends", say='{"read": 100, "send": 0, "end": "close"}'.ljust(100))
        attach(steering)

    monkeypatch.setattr(Steering, "_attach_pods", end_one)
    with other_sources(monkeypatch, tmp_path, header=header):
        pods.node.steering = Steering.open(pods.node.instance, pods.node.group, own_cgroup_id=pods.node.own_id, workers=2)
    monkeypatch.undo()
    pods.node.worker.read_originals_of(pods.node.steering)
    assert not pods.node.steering.adopted
    assert pods.table.epoch == (0 if header else epoch)
    assert pods.table.flows() == [stays]
    assert [flow.socket_cookie for flow in pods.table.take_ended()] == ([] if header else [ends.socket_cookie])
    pods.client("go_on", name="stays", say='{"read": 100, "send": 0, "end": "close"}'.ljust(100))
    (flow,) = pods.soon()
    assert (flow.socket_cookie, flow.sent_bytes, flow.received_bytes) == (stays.socket_cookie, 100, 0)
    for host in (pods.client_pod, pods.server_pod):
        pods.node.enrol(host)
