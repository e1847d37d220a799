"""The lab's files are what Ruby, bash, systemd and nodeproxy understand; that they work, `./dev test --lab` shows."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from nodeproxy.cli.commands import nodeproxy as cli
from nodeproxy.identity.local_ca import LocalCA
from tests.mesh_files import load_mesh

ROOT = Path(__file__).parents[2]
LAB = ROOT / "lab"


@pytest.mark.parametrize("file", ["Vagrantfile", "lab/ca.rb"])
def test_ruby_understands_it(file: str) -> None:
    assert subprocess.run(["ruby", "-wc", file], cwd=ROOT, capture_output=True, text=True).stdout == "Syntax OK\n"


@pytest.mark.parametrize("script", sorted(path.name for path in LAB.glob("*.sh")))
def test_bash_understands_it(script: str) -> None:
    assert subprocess.run(["bash", "-n", LAB / script], capture_output=True).stderr == b""
    assert (LAB / script).stat().st_mode & 0o111


def test_the_ca_is_one_of_ours_and_is_made_once(tmp_path: Path) -> None:
    folder = tmp_path / "ca"
    make = f'require "./lab/ca"; 2.times {{ NodeproxyLab.make_ca("{folder}") }}'
    subprocess.run(["ruby", "-e", make], cwd=ROOT, check=True)
    authority = LocalCA.open(folder)
    assert authority.trust_domain == "cluster.local"
    assert [path.stat().st_mode & 0o777 for path in sorted(folder.iterdir())] == [0o600] * 3


@pytest.mark.parametrize("number", [0, 1])
def test_the_mesh_file_loads_with_each_machines_pods(tmp_path: Path, number: int) -> None:
    pods = subprocess.run([LAB / "pods.sh", str(number), "print"], capture_output=True, text=True, check=True).stdout
    file = tmp_path / "mesh.yaml"
    file.write_text((LAB / "mesh.yaml").read_text() + pods)
    mesh = load_mesh(file)
    own = [workload.uid for workload in mesh.everything.workloads if workload.node == f"node-{number}"]
    assert [pod.uid for pod in mesh.pods] == own


def test_the_agents_unit_has_options_that_exist() -> None:
    known = CliRunner().invoke(cli, ["run", "--help"]).output
    (line,) = re.findall(r"^ExecStart=(.*)$", (LAB / "nodeproxy.service").read_text(), re.MULTILINE)
    for option in (word for word in shlex.split(line) if word.startswith("--")):
        assert option in known
