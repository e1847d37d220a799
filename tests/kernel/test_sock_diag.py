"""Sockets asked about and destroyed: the one that is meant, and no other."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from nodeproxy.errors import KernelError
from nodeproxy.lab.topology import Lab
from nodeproxy.linux import sock_diag
from nodeproxy.linux.sock_diag import TcpBytes, TcpSocket
from tests.kernel.conftest import Node
from tests.kernel.direct_pods import Pods, make_pods

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def module_pods(lab: Lab, node: Node) -> Pods:
    return make_pods(lab, node)


@pytest.fixture
def pods(module_pods: Pods) -> Iterator[Pods]:
    module_pods.allow()
    yield module_pods
    module_pods.table.close()
    module_pods.ended()


def held(pods: Pods, address: str, name: str = "held") -> TcpSocket:
    """The client's end of a live direct connection, as the eBPF programs know it."""
    known = {flow.socket_cookie for flow in pods.table.flows()}
    pods.client("hold", address=address, port=81, name=name)
    (flow,) = [flow for flow in pods.table.flows() if flow.socket_cookie not in known]
    return TcpSocket(flow.source, flow.destination, flow.socket_cookie)


@pytest.mark.parametrize("form", [0, 1, 2], ids=["4", "6", "mapped"])
def test_the_clients_end(pods: Pods, form: int) -> None:
    connection = held(pods, pods.forms()[form])
    assert sock_diag.destroy(pods.client_pod.netns_fd, connection)
    assert pods.client("go_on", name="held", say="x")["role"] == "error"
    assert not sock_diag.destroy(pods.client_pod.netns_fd, connection)
    (flow,) = pods.ended()
    assert flow.socket_cookie == connection.cookie


@pytest.mark.parametrize("form", [0, 1, 2], ids=["4", "6", "mapped"])
def test_the_servers_end(pods: Pods, form: int) -> None:
    local, remote, _ = held(pods, pods.forms()[form])
    assert sock_diag.destroy(pods.server_pod.netns_fd, TcpSocket(remote, local))
    assert not sock_diag.destroy(pods.server_pod.netns_fd, TcpSocket(remote, local))
    assert pods.client("go_on", name="held", say="x")["error"] in ("ConnectionResetError", "BrokenPipeError")
    assert len(pods.ended()) == 1
    assert pods.client.connect(pods.forms()[form], 80)["role"] == "app"


def test_no_other_than_the_one_that_is_meant(pods: Pods) -> None:
    connection = held(pods, pods.server_pod.address4)
    assert not sock_diag.destroy(pods.client_pod.netns_fd, connection._replace(cookie=connection.cookie + 1))
    # Nor a listener, which is what the kernel finds where no connection is.
    nobody = TcpSocket(connection.remote, (connection.local[0], 1))
    assert not sock_diag.destroy(pods.server_pod.netns_fd, nobody)
    head = '{"read": 100, "send": 0, "end": "close"}'.ljust(100)
    assert pods.client.connect(pods.server_pod.address4, 81, say=head)["role"] == "silence"
    assert [flow.socket_cookie for flow in pods.table.flows()] == [connection.cookie]
    assert sock_diag.destroy(pods.client_pod.netns_fd, connection)
    pods.client("go_on", name="held")


def test_bytes_so_far(pods: Pods) -> None:
    connections = [held(pods, address, address) for address in pods.forms()]
    assert sock_diag.bytes_of(pods.client_pod.netns_fd, connections) == {each.cookie: TcpBytes(0, 0) for each in connections}
    head = '{"read": 100, "send": 70, "end": "wait"}'.ljust(100)
    for address in pods.forms():
        pods.client("say", name=address, say=head, receive=70)
    assert sock_diag.bytes_of(pods.client_pod.netns_fd, connections) == {each.cookie: TcpBytes(100, 70) for each in connections}
    for address in pods.forms():
        pods.client("go_on", name=address, say="x")
    assert sock_diag.bytes_of(pods.client_pod.netns_fd, connections) == {}
    assert [(flow.sent_bytes, flow.received_bytes) for flow in pods.ended()] == [(101, 70)] * 3


def test_this_kernel_can_destroy() -> None:
    assert sock_diag.can_destroy() == ""


def test_without_the_capability_it_says_so(pods: Pods) -> None:
    """In a child, which gives up its rights."""
    connection = held(pods, pods.server_pod.address4)
    with sock_diag._netlink(pods.client_pod.netns_fd) as netlink:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.setresuid(65534, 65534, 65534)
                assert "permitted" in sock_diag.can_destroy()
                sock_diag._destroy(netlink, connection)
            except KernelError as error:
                status = 0 if "CAP_NET_ADMIN" in str(error) else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(pods.table.flows()) == 1
    assert sock_diag.destroy(pods.client_pod.netns_fd, connection)
    pods.client("go_on", name="held")
