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


@pytest.mark.parametrize("words", sorted(set(re.findall(r"^(?:sudo )?\./dev run ([a-z]+(?: init)?)", README, re.MULTILINE))))
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


# A command that is shown with what it prints: to standard output, or, where that goes into a file, to standard error.
_SHOWN = re.findall(r"^```sh\n\./dev run ([^\n>]*?)( > \S+)?\n```\n```\n(.*?)```", README, re.MULTILINE | re.DOTALL)


def test_examples_are_shown() -> None:
    assert [line.split()[0] for line, *_ in _SHOWN] == ["compile", "analyze"]


@pytest.mark.parametrize(("line", "into_file", "printed"), _SHOWN)
def test_commands_print_what_is_shown(line: str, into_file: str, printed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(cli, line.split())
    assert (result.stderr if into_file else result.stdout) == printed


def test_what_compile_writes_is_a_mesh_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    file = tmp_path / "mesh.yaml"
    file.write_text(CliRunner().invoke(cli, _SHOWN[0][0].split()).stdout)
    everything = load_mesh(file).everything
    assert [workload.name for workload in everything.workloads] == ["frontend", "orders"]
    assert [policy.key for policy in everything.policies] == ["shop/callers"]


@pytest.mark.parametrize("path", re.findall(r"^kubectl apply -[fk] (\S+)", README, re.MULTILINE))
def test_what_is_applied_is_there(path: str) -> None:
    # That an API server takes it, says tests/cluster/test_manifests.py.
    assert (ROOT / path).exists()


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
