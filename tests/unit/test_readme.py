"""What the README shows is true: its commands exist, its mesh file loads, its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from nodeproxy.cli.commands import nodeproxy as cli
from tests.mesh_files import load_mesh

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_begins_with_the_two_commands_and_a_picture() -> None:
    first_block = README.split("```")[1]
    assert [line.split("#")[0].strip() for line in first_block.splitlines()[1:] if line] == ["sudo ./dev demo", "sudo ./dev test"]
    assert README.index("](docs/data-path.svg)") < README.index("## ")


@pytest.mark.parametrize("words", sorted(set(re.findall(r"^sudo \./dev run ([a-z]+(?: init)?)", README, re.MULTILINE))))
def test_commands_exist(words: str) -> None:
    result = CliRunner().invoke(cli, [*words.split(), "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.output


@pytest.mark.parametrize("line", re.findall(r"^sudo \./dev run (run .*)$", README, re.MULTILINE))
def test_options_exist(line: str) -> None:
    known = CliRunner().invoke(cli, ["run", "--help"]).output
    for option in re.findall(r"--[a-z-]+", line):
        assert option in known


def test_the_mesh_file_loads(tmp_path: Path) -> None:
    text = README.split("```yaml\n")[1].split("```")[0]
    file = tmp_path / "mesh.yaml"
    file.write_text(text)
    mesh = load_mesh(file)
    assert [workload.uid for workload in mesh.everything.workloads] == ["shop/frontend", "shop/orders"]
    assert [pod.uid for pod in mesh.pods] == ["shop/frontend"]


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
