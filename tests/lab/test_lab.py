"""`vagrant up` without Vagrant: the script that it runs, in two roots of Debian's with a wire between them, and then the demo."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from nodeproxy.linux.cgroup import cgroup2_mount
from tests.lab.machines import ROOT, TREE, Machine, base, copy_checkout
from tests.mesh.cluster import wait_until

UNITS = ("nodeproxy-pods", "nodeproxy", "nodeproxy-web@")  # lab/*.service
PODS = (("frontend", "stranger"), ("orders", "stock"))
ADDRESSES = ("192.168.56.11", "192.168.56.12")  # Vagrantfile


def wire(machines: list[Machine]) -> None:
    """What the virtual machines' private network is."""
    ours, theirs = (f"np-lab{os.getpid() % 1000}-{number}" for number in (0, 1))
    subprocess.run(["ip", "link", "add", ours, "type", "veth", "peer", "name", theirs], check=True)
    for machine, link in zip(machines, (ours, theirs), strict=True):
        subprocess.run(["ip", "link", "set", link, "netns", str(machine.pid), "name", "eth1", "up"], check=True)
        assert machine.run("ip", "address", "add", f"{ADDRESSES[machine.number]}/24", "dev", "eth1").returncode == 0


def provision(machine: Machine, ca: Path) -> None:
    """What Vagrantfile does in a machine once it has its packages."""
    copy_checkout(machine.root_seen / TREE[1:])
    shutil.copytree(ca, machine.root_seen / "tmp" / "nodeproxy-ca")
    done = machine.run(f"{TREE}/lab/provision.sh", "node", str(machine.number))
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Machine]]:
    root = base()
    group = cgroup2_mount() / f"np-lab-{os.getpid()}"
    ca = tmp_path_factory.mktemp("lab") / "ca"
    make = f'require "./lab/ca"; NodeproxyLab.make_ca("{ca}")'
    subprocess.run(["ruby", "-e", make], cwd=ROOT, check=True)
    with ExitStack() as closing:
        closing.callback(lambda: group.rmdir() if group.exists() else None)
        made = []
        for number in (0, 1):
            machine = Machine(number, tmp_path_factory.mktemp(f"node-{number}"), root, group)
            closing.callback(machine.close)
            made.append(machine)
        wire(made)
        for machine in made:
            provision(machine, ca)
        yield made


@pytest.fixture(scope="module")
def running(machines: list[Machine], tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Machine]]:
    """What systemd would have started, by the words of the units."""
    logs = tmp_path_factory.mktemp("logs")
    with ExitStack() as closing:
        for machine in machines:
            _, up = machine.unit("nodeproxy-pods")
            assert (done := machine.run(*up)).returncode == 0, done.stdout
            for name in ("nodeproxy", *(f"nodeproxy-web@{pod}" for pod in PODS[machine.number])):
                before, own = machine.unit(name)
                for command in before:
                    assert (done := machine.run(*command)).returncode == 0, done.stdout
                file = closing.enter_context((logs / f"{machine.number}-{name}").open("w"))
                process = machine.popen(*own, stdout=file, stderr=subprocess.STDOUT)
                closing.callback(process.wait)
                closing.callback(process.terminate)
        for machine in machines:
            ready = ("curl", "-sf", "http://127.0.0.1:15021/healthz/ready")
            wait_until(lambda ready=ready, machine=machine: machine.run(*ready).returncode == 0, "the agent is ready", 120, 0.5)
        yield machines


@pytest.mark.timeout(1800)  # the first time it makes a root, from Debian's archive
def test_the_script_may_be_run_again(machines: list[Machine]) -> None:
    machine = machines[0]
    kept = (machine.root_seen / "etc/nodeproxy/ca/root-cert.pem").read_bytes()
    done = machine.run(f"{TREE}/lab/provision.sh", "node", "0")
    assert done.returncode == 0, done.stdout
    assert (machine.root_seen / "etc/nodeproxy/ca/root-cert.pem").read_bytes() == kept


def test_without_a_kernel_named_none_is_installed(machines: list[Machine]) -> None:
    assert machines[0].run(f"{TREE}/lab/provision.sh", "kernel").stdout == ""


def test_systemd_understands_the_units(tmp_path: Path) -> None:
    # By this machine's systemd, so with its own checkout: the roots have none.
    for unit in (ROOT / "lab").glob("*.service"):
        text = unit.read_text().replace("@TREE@", str(ROOT)).replace("@NUMBER@", "0")
        (tmp_path / unit.name.replace("@", "@orders")).write_text(text)
    files = sorted(tmp_path.iterdir())
    assert len(files) == len(UNITS)
    done = subprocess.run(["systemd-analyze", "verify", *files], capture_output=True, text=True)
    assert [line for line in done.stderr.splitlines() if "nodeproxy" in line] == []


def test_the_demo_between_two_machines(running: list[Machine]) -> None:
    done = running[0].run("nodeproxy-lab")
    assert done.returncode == 0, done.stdout
    assert "orders on node-1" in done.stdout
    assert "policy shop/only-the-frontend" in done.stdout or "only-the-frontend" in done.stdout


def test_each_other_machines_pods_are_reached_by_both_families(running: list[Machine]) -> None:
    def fetched(url: str) -> str:
        return running[0].run("ip", "netns", "exec", "frontend", "curl", "-s", "-m", "20", url).stdout

    assert fetched("http://10.44.1.3:8080/") == "stock on node-1\n"
    assert fetched("http://[fd44:1::3]:8080/") == "stock on node-1\n"


def test_pods_come_again_after_they_were_taken_down(running: list[Machine]) -> None:
    # What a reboot, or a restart of the unit, does.
    _, up = running[1].unit("nodeproxy-pods")
    assert running[1].run(*up[:-1], "down").returncode == 0
    assert running[1].run("ls", "/run/netns").stdout == ""
    assert running[1].run(*up).returncode == 0
    assert running[1].run("ls", "/run/netns").stdout.split() == sorted(PODS[1])
