"""Namespaces, addresses, routes, listeners and cgroups of the real kernel."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path

import pytest

from nodeproxy.errors import EnrolmentError
from nodeproxy.lab.topology import Host, Lab
from nodeproxy.linux import cgroup, netns
from nodeproxy.linux.addresses import pod_addresses
from nodeproxy.linux.bpffs import BPFFS, ensure_bpffs, is_bpffs
from nodeproxy.linux.pod_socket import outbound_socket
from nodeproxy.linux.routes import TABLE, disable_last_leg, enable_last_leg
from nodeproxy.linux.sockets import open_listeners
from tests.kernel.conftest import unique
from tests.pace import PACE

pytestmark = pytest.mark.kernel


@pytest.fixture
def host() -> Host:
    made = Host(unique("h"))
    with contextlib.ExitStack() as stack:
        stack.callback(made.close)
        made.bridge("eth0")
        made.add_address("eth0", "10.9.0.1", 24)
        made.add_address("eth0", "fd00:9::1", 64)
        yield made


def table(host: Host) -> list[str]:
    """Routes of the last leg's table, the rules that lead there, and the sysctls."""
    seen = []
    with netns.inside(host.netns_fd):
        from pyroute2 import IPRoute

        with IPRoute() as route:
            for family in (socket.AF_INET, socket.AF_INET6):
                seen += [f"route {family}" for message in route.get_routes(family=family, table=TABLE)]
                rules = [message for message in route.get_rules(family=family) if message.get("FRA_FWMARK")]
                seen += [f"rule {family} {message.get('FRA_FWMARK'):#x} → {message.get('FRA_TABLE')}" for message in rules]
        for name in ("ipv4/tcp_fwmark_accept", "ipv4/fwmark_reflect", "ipv6/fwmark_reflect", "ipv4/tcp_tw_reuse"):
            seen.append(f"{name} {Path('/proc/sys/net', name).read_text().strip()}")
    return sorted(seen)


def test_last_leg_is_set_once_and_undone(host: Host) -> None:
    before = table(host)
    for _ in range(2):
        enable_last_leg(host.netns_fd)
        assert table(host) == sorted(
            ["route 10", "route 2", f"rule 10 0x53a → {TABLE}", f"rule 2 0x53a → {TABLE}"]
            + ["ipv4/fwmark_reflect 1", "ipv4/tcp_fwmark_accept 1", "ipv4/tcp_tw_reuse 1", "ipv6/fwmark_reflect 1"]
        )
    for _ in range(2):
        disable_last_leg(host.netns_fd)
        assert table(host) == before


def test_addresses(host: Host) -> None:
    assert pod_addresses(host.netns_fd) == ("10.9.0.1", "fd00:9::1")


def test_a_pod_without_addresses() -> None:
    bare = Host(unique("h"))
    with contextlib.ExitStack() as stack:
        stack.callback(bare.close)
        with pytest.raises(EnrolmentError, match="no address yet"):
            pod_addresses(bare.netns_fd)


def test_inside_comes_back(host: Host) -> None:
    before = os.stat("/proc/thread-self/ns/net").st_ino
    with netns.inside(host.netns_fd):
        assert os.stat("/proc/thread-self/ns/net").st_ino == netns.netns_inode(host.netns_fd) != before
    with contextlib.suppress(ZeroDivisionError), netns.inside(host.netns_fd):
        raise ZeroDivisionError
    assert os.stat("/proc/thread-self/ns/net").st_ino == before


def test_a_visitor_stays_until_it_must_leave(host: Host) -> None:
    def here() -> int:
        return os.stat("/proc/thread-self/ns/net").st_ino

    home, pod = here(), netns.netns_inode(host.netns_fd)
    other = Host(unique("h"))
    with contextlib.ExitStack() as stack:
        stack.callback(other.close)
        visitor = netns.Visitor()
        stack.callback(visitor.leave, host.netns_fd)
        for _ in range(2):
            visitor.go(host.netns_fd)
            assert here() == pod
        made = outbound_socket(socket.AF_INET)
        stack.callback(made.close)
        made.bind(("10.9.0.1", 0))  # an address of that namespace alone
        visitor.go(other.netns_fd)
        assert here() == netns.netns_inode(other.netns_fd)
        visitor.leave(host.netns_fd)
        assert here() == netns.netns_inode(other.netns_fd), "it is not there"
        visitor.leave(other.netns_fd)
        assert here() == home
        visitor.go(host.netns_fd)
        assert here() == pod, "the number of a descriptor that was left may be another namespace's"


def test_entering_what_is_no_namespace(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(Exception, match="entering a pod's network namespace"):
            netns.inside(descriptor).__enter__()
    finally:
        os.close(descriptor)


def test_cookies_differ_and_a_pod_is_not_the_node(host: Host) -> None:
    own = netns.open_netns("/proc/self/ns/net")
    try:
        assert netns.netns_cookie(own) == netns.netns_cookie(own) != netns.netns_cookie(host.netns_fd)
    finally:
        os.close(own)
    netns.refuse_node_netns(host.netns_fd, host.netns_path)


def test_what_entering_costs(host: Host) -> None:
    begun = time.perf_counter()
    for _ in range(1000):
        with netns.inside(host.netns_fd):
            outbound_socket(socket.AF_INET).close()
    print(f"a socket in a pod: {(time.perf_counter() - begun) * 1000:.1f} µs")


def test_listeners_are_reached_by_nobody(host: Host) -> None:
    with contextlib.ExitStack() as stack:
        for listeners in (open_listeners(host.netns_fd), open_listeners(host.netns_fd)):
            stack.callback(listeners.close)
            for listener, port in zip(listeners, (15001, 15008, 15006), strict=True):
                assert listener.getsockname()[1] == port
                assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == 0x539
        with netns.inside(host.netns_fd):
            for address in ("127.0.0.1", "10.9.0.1", "::1", "fd00:9::1"):
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection((address, 15001), 5.0)


def test_listeners_beside_an_application_that_has_the_ports(host: Host) -> None:
    with contextlib.ExitStack() as stack:
        with netns.inside(host.netns_fd):
            stack.enter_context(socket.create_server(("::", 15008), family=socket.AF_INET6, dualstack_ipv6=True))
        listeners = open_listeners(host.netns_fd)
        stack.callback(listeners.close)
        assert listeners.hbone.getsockname()[1] not in (0, 15008)


def test_own_cgroup() -> None:
    path = cgroup.instance_cgroup(cgroup.cgroup2_mount(), unique("c"))
    before = Path("/proc/self/cgroup").read_text().split("0::", 1)[1].split("\n")[0]
    number = cgroup.enter(path)
    assert Path("/proc/self/cgroup").read_text().split("0::", 1)[1].split("\n")[0] == f"/{path.name}"
    assert cgroup.enter(path) == number == cgroup.cgroup_id(path)
    cgroup.leave_and_remove(path)
    assert not path.exists()
    (cgroup.cgroup2_mount() / before.lstrip("/") / "cgroup.procs").write_text(str(os.getpid()))


def test_the_bpf_file_system_is_there() -> None:
    assert ensure_bpffs() == BPFFS
    assert is_bpffs()


def test_a_lab_leaves_nothing_behind() -> None:
    prefix = unique("lab")
    begun = time.monotonic()
    lab = Lab(prefix)
    try:
        pods = [lab.pod(number % 2, f"p{number}") for number in range(8)]
        took_s = time.monotonic() - begun
        print(f"2 nodes with 4 pods each: {took_s:.2f} s")
        assert took_s < 2 * PACE
        sleeper = pods[0].popen(["sleep", "60"])
    finally:
        lab.close()
    assert sleeper.returncode is not None
    assert not list(Path("/run/netns").glob(f"{prefix}*"))


def test_a_lab_carries_and_captures() -> None:
    with Lab(unique("lab")) as lab:
        one, other, outside = lab.pod(0, "one"), lab.pod(1, "other"), lab.external()
        with netns.inside(other.netns_fd):
            server = socket.create_server(("::", 80), family=socket.AF_INET6, dualstack_ipv6=True)
        with server, lab.capture() as capture:
            for host in (one, outside, lab.nodes[0], lab.nodes[1]):
                for address in other.addresses:
                    with netns.inside(host.netns_fd):
                        client = socket.create_connection((address, 80), 2.0)
                    with client:
                        client.sendall(b"a needle in a haystack")
        assert capture.contains(b"needle in a hay")
        assert not capture.contains(b"no such needle")
        assert capture.complete
        assert capture.bytes > capture.packets * 50 > 500
