"""Enrolling, leaving, dying and coming back: what is pinned, and that no step of it is ever open."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nodeproxy.errors import ConfigError, EnrolmentError, KernelError
from nodeproxy.kernel import bpf, pins
from nodeproxy.kernel.programs import CGROUP_PROGRAMS
from nodeproxy.kernel.steering import PodSteering, Steering
from nodeproxy.lab.topology import Host, Lab
from nodeproxy.linux.addresses import pod_addresses
from nodeproxy.linux.netns import netns_cookie
from tests.kernel.conftest import Node, Program, unique
from tests.kernel.later_version import other_sources
from tests.mesh.cluster import wait_until
from tests.pace import PACE

pytestmark = pytest.mark.kernel


@pytest.fixture
def fresh(node: Node) -> Iterator[Node]:
    """The module's instance, with nobody enrolled before and after."""
    yield node
    node.reopen_if_closed()
    for cookie in node.steering.enrolled_cookies():
        node.steering.leave(cookie)
    node.worker.close_listeners()


@pytest.fixture
def server(lab: Lab, group: Path) -> Host:
    """A pod that nobody enrolls, with an application on port 80."""
    if "plain-server" not in lab.pods:
        Program(lab.pod(1, "plain-server"), group / "pods").serve("::", 80)
    return lab.pods["plain-server"]


def test_leaving_makes_plain(fresh: Node, lab: Lab, server: Host, program: Callable[[Host], Program]) -> None:
    pod = lab.pod(0, unique("p"))
    application, caller = program(pod), program(server)
    application.serve("::", 80)
    for _ in range(2):
        cookie = fresh.enrol(pod)
        assert fresh.steering.enrolled_cookies() == {cookie}
        assert application.connect(server.address4, 80)["role"] == "OUTBOUND"
        assert caller.connect(pod.address6, 80)["role"] == "PLAINTEXT"
        fresh.leave(cookie)
        assert fresh.steering.enrolled_cookies() == frozenset()
        assert application.connect(server.address4, 80)["role"] == "app"
        assert caller.connect(pod.address6, 80)["role"] == "app"
    fresh.steering.leave(cookie)


def test_enrolling_again_changes_the_addresses(fresh: Node, lab: Lab, server: Host, program: Callable[[Host], Program]) -> None:
    pod = lab.pod(0, unique("p"))
    caller = program(server)
    fresh.enrol(pod)
    pod.add_address("eth0", "10.10.0.77", 24)
    assert caller.connect("10.10.0.77", 80)["errno"] == errno.ECONNREFUSED
    fresh.enrol(pod)
    assert caller.connect("10.10.0.77", 80)["role"] == "PLAINTEXT"


def test_an_address_of_another_pod_is_refused(fresh: Node, lab: Lab) -> None:
    one, other = lab.pod(0, unique("p")), lab.pod(0, unique("p"))
    fresh.enrol(one)
    with pytest.raises(EnrolmentError, match="belongs to another enrolled pod"):
        fresh.steering.enrol(PodSteering(other.netns_fd, netns_cookie(other.netns_fd), one.addresses))


def test_a_pod_without_an_address_of_its_own_is_closed(fresh: Node, lab: Lab, program: Callable[[Host], Program]) -> None:
    pod, other = lab.pod(0, unique("p")), lab.pod(0, unique("p"))
    fresh.steering.enrol(PodSteering(pod.netns_fd, netns_cookie(pod.netns_fd), ()))
    caller = program(pod)
    assert caller.connect(other.address4, 80)["errno"] == errno.ENETUNREACH
    assert caller.connect(other.address6, 80)["errno"] == errno.ENETUNREACH


def test_agent_gone_is_closed_and_the_next_adopts(
    fresh: Node, lab: Lab, server: Host, program: Callable[[Host], Program]
) -> None:
    pod = lab.pod(0, unique("p"))
    application, caller = program(pod), program(server)
    application.serve("::", 80)
    cookie = fresh.enrol(pod)
    fresh.close()
    assert application.connect(server.address4, 80)["errno"] == errno.ECONNREFUSED
    assert caller.connect(pod.address4, 80)["errno"] == errno.ECONNREFUSED
    begun = time.monotonic()
    fresh.open()
    print(f"adoption took {(time.monotonic() - begun) * 1000:.1f} ms")
    assert fresh.steering.adopted
    assert fresh.steering.enrolled_cookies() == {cookie}
    assert application.connect(server.address4, 80)["errno"] == errno.ECONNREFUSED
    fresh.enrol(pod)
    assert application.connect(server.address4, 80)["role"] == "OUTBOUND"
    assert caller.connect(pod.address4, 80)["role"] == "PLAINTEXT"


def test_two_agents_of_one_instance_are_refused(fresh: Node) -> None:
    with pytest.raises(KernelError, match="in use by another nodeproxy"):
        Steering.open(fresh.instance, fresh.group, own_cgroup_id=fresh.own_id, workers=2)
    with pytest.raises(KernelError, match="in use by another nodeproxy"):
        Steering.uninstall(fresh.instance)


@pytest.mark.parametrize("header", ["", "\n/* other maps */\n"], ids=["same maps", "other maps"])
def test_a_new_generation_is_never_open(
    fresh: Node, lab: Lab, server: Host, group: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, header: str
) -> None:
    pod = lab.pod(0, unique("p"))
    application, again = Program(pod, group / "pods"), Program(pod, group / "pods")
    caller = Program(server, group / "pods")
    application.serve("::", 80)
    cookie = fresh.enrol(pod)
    old = fresh.steering._generation.directory
    out = application.start("hammer", address=server.address4, port=80, seconds=5)
    into = caller.start("hammer", address=pod.address4, port=80, seconds=5)
    fresh.steering.close()
    with other_sources(monkeypatch, tmp_path, header=header):
        fresh.steering = Steering.open(fresh.instance, fresh.group, own_cgroup_id=fresh.own_id, workers=2)
    assert not fresh.steering.adopted
    assert fresh.steering.enrolled_cookies() == {cookie}
    if header:
        fresh.worker.read_originals_of(fresh.steering)
        fresh.enrol(pod)
    for tally, role in ((out(), "OUTBOUND"), (into(), "PLAINTEXT")):
        assert set(tally) <= {role, "ConnectionRefusedError", "ConnectionResetError"}, tally
        assert tally[role] > 100 / PACE
    assert not old.exists()
    assert again.connect(server.address4, 80)["original"] == [server.address4, 80]


def test_a_loader_that_was_killed_is_cleared_away(
    fresh: Node, lab: Lab, server: Host, program: Callable[[Host], Program]
) -> None:
    pod = lab.pod(0, unique("p"))
    application = program(pod)
    fresh.enrol(pod)
    fresh.close()
    loading = pins.Pins(fresh.instance).loading
    (loading / "maps").mkdir(parents=True)
    fresh.open()
    assert not loading.exists()
    fresh.enrol(pod)
    assert application.connect(server.address4, 80)["role"] == "OUTBOUND"


def test_links_that_are_missing_are_made(fresh: Node, lab: Lab, server: Host, program: Callable[[Host], Program]) -> None:
    """An agent that was killed between two of its first links."""
    pod = lab.pod(0, unique("p"))
    application = program(pod)
    fresh.enrol(pod)
    fresh.close()
    (pins.Pins(fresh.instance).links / "connect4").unlink()
    fresh.open()
    fresh.enrol(pod)
    assert application.connect(server.address4, 80)["role"] == "OUTBOUND"


def test_an_agent_that_is_killed_as_its_cgroup_root_moves_leaves_every_hook_held(fresh: Node, group: Path) -> None:
    """Killed before each thing that it does to pins and links, one after the other."""
    moved = group / "moved"
    moved.mkdir()
    links = pins.Pins(fresh.instance).links
    fresh.close()
    fd = {root: os.open(root, os.O_RDONLY | os.O_DIRECTORY) for root in (group, moved)}
    before, root, number, status = group, moved, 0, -1
    while status != 0:
        status = _open_and_die(fresh, root, number)
        assert status in (0, -signal.SIGKILL)
        for program in CGROUP_PROGRAMS:
            pinned = [path for path in (links / program.name, pins.pin_beside(links / program.name)) if path.exists()]
            held = [_held(path, program.attach_type, fd.values()) for path in pinned]
            assert any(held), (number, program.name, held)
        Steering.open(fresh.instance, root, own_cgroup_id=fresh.own_id, workers=2).close()
        assert sorted(path.name for path in links.iterdir()) == sorted(program.name for program in CGROUP_PROGRAMS)
        for program in CGROUP_PROGRAMS:
            assert _held(links / program.name, program.attach_type, [fd[root]])
            wait_until(
                lambda program=program, old=fd[before]: not bpf.attached_programs(old, program.attach_type),
                "the old root is free",
            )
        before, root, number = root, before, number + 1
    assert number > 4 * len(CGROUP_PROGRAMS), "it was killed in between"
    for descriptor in fd.values():
        os.close(descriptor)
    fresh.open()
    moved.rmdir()


def _open_and_die(node: Node, root: Path, number: int) -> int:
    """Open the steering in a process of its own, which is killed before its step `number`; its status, 0 if it had fewer."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        steps = itertools.count()

        def step() -> None:
            if next(steps) == number:
                os.kill(os.getpid(), signal.SIGKILL)

        attach, call = Steering._attach_cgroup, bpf.call

        def counted(*arguments: Any) -> int:
            step()
            return call(*arguments)

        def attach_counted(*arguments: Any) -> None:
            bpf.call = counted
            sys.addaudithook(lambda event, _: step() if event in ("os.rename", "os.remove") else None)
            attach(*arguments)

        Steering._attach_cgroup = attach_counted  # type: ignore[method-assign]
        Steering.open(node.instance, root, own_cgroup_id=node.own_id, workers=2)
        os._exit(0)
    finally:
        os._exit(1)


def _held(path: Path, attach_type: bpf.AttachType, roots: Iterable[int]) -> bool:
    """Whether the link that is pinned there has its program attached to one of them."""
    link = bpf.obj_get(path)
    try:
        program, target = bpf.link_info(link)
    finally:
        os.close(link)
    return any(os.fstat(root).st_ino == target and program in bpf.attached_programs(root, attach_type) for root in roots)


def test_a_loader_that_fails_says_why_and_leaves_the_old_one(
    fresh: Node, lab: Lab, server: Host, program: Callable[[Host], Program], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pod = lab.pod(0, unique("p"))
    application = program(pod)
    fresh.enrol(pod)
    fresh.steering.close()
    with other_sources(monkeypatch, tmp_path, header="\nthis is not C\n"), pytest.raises(KernelError, match="this is not C"):
        Steering.open(fresh.instance, fresh.group, own_cgroup_id=fresh.own_id, workers=2)
    assert application.connect(server.address4, 80)["role"] == "OUTBOUND"
    fresh.steering = Steering.open(fresh.instance, fresh.group, own_cgroup_id=fresh.own_id, workers=2)
    assert fresh.steering.adopted


def test_two_instances_side_by_side(fresh: Node, group: Path, lab: Lab, server: Host, program: Callable[[Host], Program]) -> None:
    second = Node(group, workers=1)
    try:
        one, other = lab.pod(0, unique("p")), lab.pod(1, unique("p"))
        programs_of = [program(one), program(other)]
        fresh.enrol(one)
        second.enrol(other)
        for application in programs_of:
            assert application.connect(server.address4, 80)["role"] == "OUTBOUND"
        assert programs_of[0].connect(other.address4, 80)["role"] == "OUTBOUND"
        with pytest.raises(EnrolmentError, match="steered by somebody else"):
            second.enrol(one)
    finally:
        second.remove()
    assert programs_of[0].connect(server.address4, 80)["role"] == "OUTBOUND"
    assert programs_of[1].connect(server.address4, 80)["role"] == "app"


def test_a_netns_that_has_gone_is_forgotten(fresh: Node, lab: Lab) -> None:
    pod = Host(unique("gone"))
    with contextlib.ExitStack() as stack:
        stack.callback(pod.close)
        pod.bridge("eth0")
        pod.add_address("eth0", "10.99.0.1", 24)
        cookie = fresh.enrol(pod)
    fresh.close()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:  # the kernel takes namespaces apart in the background
        fresh.open()
        if cookie not in fresh.steering.enrolled_cookies():
            return
        fresh.close()
        os.sched_yield()
    pytest.fail("the pod is still enrolled")


def test_uninstall_leaves_nothing(group: Path, lab: Lab, server: Host, program: Callable[[Host], Program]) -> None:
    pod = lab.pod(0, unique("p"))
    application = program(pod)
    made = Node(group)
    try:
        made.enrol(pod)
        assert application.connect(server.address4, 80)["role"] == "OUTBOUND"
    finally:
        made.remove()
    assert not (pins.ROOT / made.instance).exists()
    assert application.connect(server.address4, 80)["role"] == "app"
    Steering.uninstall(made.instance)


@pytest.mark.parametrize("name", ["", "A", "a.b", "-a", "a/b", "x" * 41])
def test_instance_names(name: str) -> None:
    with pytest.raises(ConfigError, match="instance name"):
        Steering.uninstall(name)


def test_a_cgroup_root_that_is_none(group: Path) -> None:
    name = unique("t")
    try:
        with pytest.raises(ConfigError, match="cgroup root"):
            Steering.open(name, group / "absent", own_cgroup_id=1, workers=1)
    finally:
        Steering.uninstall(name)


def test_what_it_costs(fresh: Node, lab: Lab, server: Host, program: Callable[[Host], Program]) -> None:
    """Printed, and bounded loosely: enrolling one pod must stay well below 50 ms with 100 pods there."""
    pods = [lab.pod(0, unique("p")) for _ in range(100)]
    for pod in pods[:99]:
        fresh.enrol(pod)
    begun = time.monotonic()
    fresh.enrol(pods[99])
    enrol_ms = (time.monotonic() - begun) * 1000
    begun = time.monotonic()
    cookie = netns_cookie(pods[99].netns_fd)
    fresh.steering.enrol(PodSteering(pods[99].netns_fd, cookie, pod_addresses(pods[99].netns_fd)))
    again_ms = (time.monotonic() - begun) * 1000
    print(f"the 100th pod: enrolled in {enrol_ms:.1f} ms with listeners and routes, again in {again_ms:.1f} ms")
    assert enrol_ms < 50 * PACE
