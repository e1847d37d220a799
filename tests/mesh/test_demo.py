"""`nodeproxy demo` as a user runs it: what it says, its exit status, and that nothing is left however it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeproxy.lab import demo, demo_sweep
from tests.mesh.cluster import wait_until
from tests.unit.cli.documented import differences, examples

_TIMEOUT_S = 90.0


class Demo:
    """A running demo; its identifier is known from its first line."""

    def __init__(self, *arguments: str) -> None:
        argv = [sys.executable, "-m", "nodeproxy", "demo", *arguments]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
        assert self.process.stdout is not None
        self.out = self.process.stdout.readline()
        found = re.search(r"demo-([0-9a-f]{4})", self.out)
        assert found is not None, self.end()
        self.identifier = found[1]

    def read_until(self, title: str) -> None:
        assert self.process.stdout is not None
        while title not in self.out:
            line = self.process.stdout.readline()
            assert line, f"it ended before {title!r}:\n{self.out}"
            self.out += line

    def signal_group(self, number: signal.Signals) -> None:
        """As a terminal does on Ctrl-C: to all that are in the foreground."""
        os.killpg(self.process.pid, number)

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=_TIMEOUT_S)
        self.out += out
        return self.process.returncode, self.out, err


@pytest.fixture
def start() -> Iterator[type[Demo]]:
    """Starts demos, and removes what a failing test leaves of them."""
    started: list[Demo] = []

    class Started(Demo):
        def __init__(self, *arguments: str) -> None:
            super().__init__(*arguments)
            started.append(self)

    yield Started
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()
        for stream in (each.process.stdout, each.process.stderr):
            assert stream is not None
            stream.close()
        demo_sweep.sweep(each.identifier)


def left(identifier: str) -> list[str]:
    """Whatever is still there of a demo: its names in the file systems, and processes that were told of it."""
    found = [str(path) for path in demo_sweep.leftovers(identifier)]
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if f"demo-{identifier}" in path.read_text(errors="replace"):
                found.append(str(path))
        except OSError:  # it has just ended
            continue
    return found


def nodeproxy(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "nodeproxy", *arguments], capture_output=True, text=True, timeout=_TIMEOUT_S)


def test_a_whole_demo(start: type[Demo]):
    begun = time.monotonic()
    running = start()
    status, out, err = running.end()
    assert (status, err) == (0, ""), out + err
    assert left(running.identifier) == []
    assert "\x1b" not in out
    assert "✗" not in out.replace("│ ✗ It would not pass", "")
    for pattern in (
        r"✓ a capture between the nodes can read it: \d+ bytes of plain TCP",
        r"in the mesh, with certificates, [\d,]+ ms after the edit",
        r"✓ the same capture can read 0 bytes of it now; all that it sees is [\d,]+ bytes of TLS",
        r"✓ the web server's own log has its client's addresses: 10\.10\.0\.2 and fd00:10::2",
        r"✓ spiffe://cluster\.local/ns/shop/sa/frontend → spiffe://cluster\.local/ns/shop/sa/orders, ",
        r"✓ live: frontend 10\.10\.0\.2:\d+ → orders-2 10\.10\.1\.2:8080, mutual TLS",
        r"✓ the access log of node-b: spiffe://cluster\.local/ns/shop/sa/batch: policy_no_allow: .*shop/orders-callers",
        r"✓ the access log of node-b: 10\.10\.255\.200, no identity: policy_no_allow: ",
        r"│ ✗ It would not pass: refused \(policy_no_allow\)",
        r"✓ 30 connections to orders\.shop\.svc\.cluster\.local \(10\.96\.0\.10\): orders-1 \d+, orders-2 \d+, orders-3 \d+",
        r"✓ frontend's new connections are refused after [\d,]+ ms, its live one ended after [\d,]+ ms",
        r"✓ edited back: frontend is let in after [\d,]+ ms",
        r"✓ closed [\d,]+ ms after the kill: refused, and 0 bytes between the nodes",
        r"✓ back [\d,]+ ms after the start: the new agent adopted",
        r"✓ no namespace, cgroup, process, pinned program or file of the demo is left",
        r"All of it held\.  8 steps in ",
    ):
        assert re.search(pattern, out), f"{pattern}\n{out}"
    print(f"the demo took {time.monotonic() - begun:.1f} s")


@pytest.mark.parametrize(
    ("number", "during", "status"),
    [(signal.SIGINT, "3. ", 130), (signal.SIGINT, "1. ", 130), (signal.SIGTERM, "2. ", 128 + signal.SIGTERM)],
)
def test_interrupted_it_leaves_nothing(start: type[Demo], number: signal.Signals, during: str, status: int):
    running = start()
    running.read_until(f"\n{during}")
    running.signal_group(number)
    running.signal_group(number)  # the impatient press twice
    ended, out, err = running.end()
    assert ended == status, out + err
    assert err == ""
    assert f"interrupted by {number.name}; everything is removed now" in out
    assert left(running.identifier) == []


def test_when_a_step_fails_it_says_so_and_leaves_nothing(start: type[Demo]):
    running = start()
    running.read_until("\n3. ")
    node = demo_sweep.cgroup_of(running.identifier) / "node-b"
    for pid in (node / f"nodeproxy-demo-{running.identifier}-b" / "cgroup.procs").read_text().split():
        try:
            os.kill(int(pid), signal.SIGKILL)
        except ProcessLookupError:  # workers end with their agent
            continue
    status, out, err = running.end()
    assert status == 1, out + err
    assert "\n  ✗ " in out
    assert "It did not hold: " in out
    assert left(running.identifier) == []


def test_a_killed_demos_nodes_run_on_answer_as_documented_and_are_removed(
    start: type[Demo], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    running = start("--keep")
    running.read_until("\n3. ")
    assert running.identifier not in demo_sweep.abandoned()
    running.process.kill()
    running.process.wait()
    # A child that it had forked keeps the lock until its own exec, a moment later.
    wait_until(lambda: running.identifier in demo_sweep.abandoned(), "nobody holds the demo's lock")
    instance = f"demo-{running.identifier}-a"
    uid = "Kubernetes//Pod/shop/frontend"
    program = "import socket; s = socket.create_connection(('10.96.0.10', 80)); print('open', flush=True); s.recv(1)"
    cgroup = demo_sweep.cgroup_of(running.identifier) / "node-a" / "frontend" / "cgroup.procs"
    netns = f"/run/netns/demo-{running.identifier}-frontend"
    enter = f'echo $$ > {cgroup}; exec nsenter --net={netns} {sys.executable} -c "$0"'
    with subprocess.Popen(["sh", "-c", enter, program], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as client:
        try:
            assert client.stdout is not None
            assert client.stdout.readline() == b"open\n"
            for command, arguments, status in (
                ("status", (), 0),
                ("connections", (), 0),
                ("why", ("shop/batch", "orders.shop:80"), 1),
                ("leave", (uid,), 0),
                ("enrol", (uid, netns), 0),
            ):
                ended = nodeproxy(command, *arguments, "--instance", instance, "-o", "json")
                assert ended.returncode == status, ended.stderr
                answer = json.loads(ended.stdout)
                assert differences(answer, examples()[command], command, command == "connections") == []
                assert command != "connections" or answer["connections"]
        finally:
            client.kill()
    ended = nodeproxy("uninstall", "--instance", instance)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "is in use by another nodeproxy" in ended.stderr
    monkeypatch.setattr(demo_sweep, "abandoned", lambda: [running.identifier])  # others may be kept on purpose
    assert demo.remove_abandoned(as_json=True) == 0
    assert json.loads(capsys.readouterr().out) == {"removed": [running.identifier]}
    assert left(running.identifier) == []
