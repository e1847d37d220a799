"""What arrives at an enrolled pod, and the proxy's last leg to the application in it."""

from __future__ import annotations

import contextlib
import errno
import json
import socket
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from nodeproxy.kernel.abi import Role
from nodeproxy.lab.topology import Host, Lab, LabPod
from nodeproxy.linux.netns import inside
from nodeproxy.linux.pod_socket import last_leg_socket, outbound_socket
from tests.kernel.conftest import Node, Program

pytestmark = pytest.mark.kernel


class Pods(NamedTuple):
    server: Program
    server_pod: LabPod
    near: Program
    near_pod: LabPod
    outside: Program
    outside_host: Host


@pytest.fixture(scope="module")
def pods(lab: Lab, node: Node) -> Pods:
    group = node.group / "pods"
    server_pod, near_pod, outside_host = lab.pod(0, "server"), lab.pod(0, "near"), lab.external()
    server = Program(server_pod, group)
    server.serve("::", 80)
    # A hostile or careless application that had the proxy's ports before it was enrolled.
    for port in (15001, 15006, 15008):
        server.serve("::", port, name="thief")
    node.enrol(server_pod)
    return Pods(server, server_pod, Program(near_pod, group), near_pod, Program(outside_host, group), outside_host)


def last_leg(pod: Host, client: str, server: str, port: int) -> tuple[dict[str, Any], tuple[str, int]]:
    """What the application saw of the proxy's connection, and the local end of it."""
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    with inside(pod.netns_fd):
        made = last_leg_socket(family, client)
    with contextlib.closing(made):
        made.settimeout(3.0)
        made.connect((server, port))
        text = b""
        while chunk := made.recv(4096):
            text += chunk
        return dict(json.loads(text)), made.getsockname()[:2]


def test_plaintext_goes_to_the_plaintext_listener(pods: Pods) -> None:
    for caller in (pods.near, pods.outside):
        for address in pods.server_pod.addresses:
            for port in (80, 81, 15006):
                answer = caller.connect(address, port)
                assert answer["role"] == "PLAINTEXT"
                assert answer["seen_sockname"] == [address, port]
                assert answer["seen_peer"] == answer["sockname"]
                assert answer["original"] is None


def test_tunnels_go_to_the_hbone_listener_in_turn(pods: Pods) -> None:
    for address in pods.server_pod.addresses:
        answers = [pods.outside.connect(address, 15008) for _ in range(8)]
        assert {answer["role"] for answer in answers} == {"HBONE"}
        assert sorted(answer["slot"] for answer in answers) == [0] * 4 + [1] * 4


def test_what_arrives_at_15001_has_no_original_destination(pods: Pods) -> None:
    for caller in (pods.near, pods.outside):
        for address in pods.server_pod.addresses:
            answer = caller.connect(address, 15001)
            assert (answer["role"], answer["original"]) == ("OUTBOUND", None)


def test_an_application_on_the_proxys_ports_gets_nothing(pods: Pods) -> None:
    for address in pods.server_pod.addresses:
        for port in (15001, 15006, 15008):
            for caller in (pods.server, pods.near, pods.outside):
                assert caller.connect(address, port)["role"] in Role.__members__


def test_an_application_cannot_take_the_proxys_ports_later(pods: Pods) -> None:
    for address in pods.server_pod.addresses:
        # A specific address can be bound; nothing reaches it.
        if pods.server("serve", address=address, port=15008, name="thief") == {}:
            assert pods.near.connect(address, 15008)["role"] == "HBONE"


def test_the_pod_reaches_itself(pods: Pods) -> None:
    for address in (*pods.server_pod.addresses, "127.0.0.1", "::1"):
        assert pods.server.connect(address, 80)["role"] == "app"


def test_mptcp_arrives_as_tcp(pods: Pods) -> None:
    assert pods.near.connect(pods.server_pod.address4, 80, mptcp=True)["role"] == "PLAINTEXT"


def test_last_leg_shows_the_clients_address(pods: Pods) -> None:
    for client, server in zip(("198.51.100.7", "2001:db8::7"), pods.server_pod.addresses, strict=True):
        answer, local = last_leg(pods.server_pod, client, server, 80)
        assert answer["role"] == "app"
        assert answer["seen_peer"][0].removeprefix("::ffff:") == client
        assert answer["seen_peer"][1] == local[1]
        assert answer["seen_sockname"][0].removeprefix("::ffff:") == server


def test_last_leg_with_an_address_that_exists(pods: Pods) -> None:
    for client, server in zip(pods.near_pod.addresses, pods.server_pod.addresses, strict=True):
        answer, _ = last_leg(pods.server_pod, client, server, 80)
        assert (answer["role"], answer["seen_peer"][0].removeprefix("::ffff:")) == ("app", client)


def test_last_leg_with_the_pods_own_address(pods: Pods) -> None:
    for address in pods.server_pod.addresses:
        answer, _ = last_leg(pods.server_pod, address, address, 80)
        assert (answer["role"], answer["seen_peer"][0].removeprefix("::ffff:")) == ("app", address)


def test_last_leg_to_an_mptcp_application(pods: Pods) -> None:
    """Go's listeners are, since 1.24."""
    pods.server.serve("::", 83, mptcp=True)
    for client, server in zip(("198.51.100.7", "2001:db8::7"), pods.server_pod.addresses, strict=True):
        answer, _ = last_leg(pods.server_pod, client, server, 83)
        assert (answer["role"], answer["seen_peer"][0].removeprefix("::ffff:")) == ("app", client)


def test_last_leg_to_a_closed_port_is_refused(pods: Pods) -> None:
    for client, server in zip(("198.51.100.7", "2001:db8::7"), pods.server_pod.addresses, strict=True):
        with pytest.raises(ConnectionRefusedError):
            last_leg(pods.server_pod, client, server, 82)


def test_300_last_legs_leave_nothing_behind(pods: Pods, node: Node) -> None:
    for number in range(300):
        assert last_leg(pods.server_pod, f"198.51.100.{number % 200 + 1}", pods.server_pod.address4, 80)[0]["role"] == "app"
    assert node.in_progress() == (0, 0)


def test_a_last_legs_address_is_no_way_in(pods: Pods) -> None:
    """While a last leg stands, its client connects from the very same port: the application must not get that."""
    with inside(pods.server_pod.netns_fd):
        made = last_leg_socket(socket.AF_INET, pods.near_pod.address4)
    with contextlib.closing(made):
        made.settimeout(3.0)
        made.connect((pods.server_pod.address4, 80))
        while made.recv(4096):  # the application has closed; the proxy has not
            pass
        answer = pods.near.connect(
            pods.server_pod.address4, 80, source=[pods.near_pod.address4, made.getsockname()[1]], timeout=0.5
        )
        assert answer["role"] in ("PLAINTEXT", "error")


def test_the_proxys_tunnel_is_an_arrival_like_any_other(pods: Pods, node: Node, lab: Lab) -> None:
    """Between two enrolled pods of a node: mark 0x539, from the proxy's own cgroup."""
    source = lab.pod(0, "source")
    node.enrol(source)
    for port, role in ((15008, "HBONE"), (80, "PLAINTEXT")):
        with inside(source.netns_fd):
            made = outbound_socket(socket.AF_INET)
        with contextlib.closing(made):
            made.settimeout(3.0)
            made.connect((pods.server_pod.address4, port))
            assert json.loads(made.recv(4096))["role"] == role


@pytest.mark.parametrize("mark", [0x539, 0x53A])
def test_a_mark_brings_nobody_in(pods: Pods, mark: int) -> None:
    for address in pods.server_pod.addresses:
        assert pods.near.connect(address, 80, mark=mark)["role"] == "PLAINTEXT"


def test_an_address_that_the_pod_was_not_enrolled_with_is_closed(pods: Pods, node: Node) -> None:
    pods.server_pod.add_address("eth0", "10.10.0.99", 24)
    before = node.steering.drop_counters()["unknown_address"]
    assert pods.near.connect("10.10.0.99", 80)["errno"] == errno.ECONNREFUSED
    assert node.steering.drop_counters()["unknown_address"] > before


def test_closed_when_no_worker_listens(pods: Pods, node: Node) -> None:
    node.worker.close_listeners()
    try:
        for caller in (pods.near, pods.outside):
            for address in pods.server_pod.addresses:
                for port in (80, 15001, 15006, 15008):
                    answer = caller.connect(address, port)
                    assert answer.get("errno") == errno.ECONNREFUSED, (caller.host.name, address, port, answer)
        assert node.steering.drop_counters()["no_listener"] >= 16
    finally:
        node.set_listeners(pods.server_pod)
    assert pods.near.connect(pods.server_pod.address4, 80)["role"] == "PLAINTEXT"


def test_one_worker_of_two_takes_all(pods: Pods, node: Node) -> None:
    node.worker.close_listeners([0])
    try:
        assert {pods.near.connect(pods.server_pod.address4, 15008)["slot"] for _ in range(6)} == {1}
    finally:
        node.set_listeners(pods.server_pod)


def test_a_pod_without_ipv6(lab: Lab, node: Node, program: Callable[[Host], Program], pods: Pods) -> None:
    pod = lab.pod(0, "v4only", families=(4,))
    pod.sysctl("net/ipv6/conf/all/disable_ipv6", "1")
    application = program(pod)
    application.serve("0.0.0.0", 80)
    node.enrol(pod)
    assert pods.near.connect(pod.address4, 80)["role"] == "PLAINTEXT"
    assert application.connect(pods.server_pod.address4, 80)["role"] == "OUTBOUND"
    answer, _ = last_leg(pod, "198.51.100.9", pod.address4, 80)
    assert answer["seen_peer"][0] == "198.51.100.9"
