"""What holds for every command, and the commands that need no agent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from nodeproxy import __version__, config
from nodeproxy.app.uninstall import remove_run_directory
from nodeproxy.cli.commands import nodeproxy
from nodeproxy.cli.options import Command
from nodeproxy.cli.version import form
from nodeproxy.errors import ConfigError
from tests.unit.cli.conftest import Result
from tests.unit.cli.documented import differences, examples

Run = Callable[..., Result]


def commands(group: click.Group = nodeproxy, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


@pytest.mark.parametrize(
    ("path", "command"), list(commands()), ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_every_help_ends_with_examples_that_parse(path: tuple[str, ...], command: click.Command, run: Run):
    result = run(*path, "--help")
    assert result.status == 0
    assert isinstance(command, Command)
    assert result.out.rstrip().endswith(command.examples[-1])
    assert any(f"nodeproxy {' '.join(path)}" in example for example in command.examples)
    if path not in {("run",), ("controller", "run"), ("demo",), ("check",)}:
        assert f"--output [{'yaml' if path == ('compile',) else 'text'}|json]" in result.out


def test_every_command_and_option_is_explained():
    for path, command in commands():
        assert command.short_help, path
        for parameter in command.params:
            assert isinstance(parameter, click.Argument) or getattr(parameter, "help", ""), (path, parameter.name)


def test_the_json_of_every_command_is_documented():
    assert {" ".join(path) for path, _ in commands()} - {"run", "controller run"} == set(examples())


def test_run_has_an_option_for_each_setting():
    options = {parameter.name for parameter in nodeproxy.commands["run"].params}
    assert options | {"metadata"} == set(config.RunConfig.__dataclass_fields__) | {"config_path"}


def test_help_imports_little():
    heavy = {"aiohttp", "asyncio", "cryptography", "lmdb", "msgspec", "pyroute2", "rich", "uvloop", "yaml", "prometheus_client"}
    program = f"import sys; from nodeproxy.__main__ import main; main(['--help']); sys.exit(repr({heavy!r} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.stderr.strip() == "set()"
    assert "Commands:" in ended.stdout


def test_wrong_use_says_so_in_one_line_and_names_the_help(run: Run):
    result = run("statu")
    assert (result.status, result.err) == (
        2,
        "nodeproxy: error: No such command 'statu'. Did you mean 'status'?\nTry 'nodeproxy --help'.\n",
    )
    assert run().status == 2
    assert run("why", "a").status == 2
    assert run("demo", "--keep", "--clean").status == 2


def test_run_tells_a_wrong_setting_as_wrong_use(run: Run):
    result = run("run", "--node", "n", "--mesh", "m", "--ca", "c", "--workers", "abc")
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith("nodeproxy: error: --workers abc: must be a number from 1 to 16\nTry 'nodeproxy run --help'.")


def test_version(run: Run):
    assert run("version").out.startswith(f"nodeproxy {__version__} ({form()}, Python 3.")
    as_json = json.loads(run("version", "-o", "json").out)
    assert as_json["version"] == __version__
    assert differences(as_json, examples()["version"]) == []
    assert run("--version").out == f"nodeproxy, version {__version__}\n"


def test_check_shows_a_row_a_requirement(run: Run):
    as_json = run("check", "-o", "json")
    found = json.loads(as_json.out)
    assert differences(found, examples()["check"]) == []
    assert found["ok"] == all(row["ok"] for row in found["requirements"]) == (as_json.status == 0)
    as_text = run("check")
    assert as_text.status == as_json.status
    assert all(row["name"] in as_text.out and row["remedy"] in as_text.out for row in found["requirements"])


def test_a_reader_that_goes_away_is_no_traceback():
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run([sys.executable, "-m", "nodeproxy", "version"], stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (1, b"")


def test_ca_lives_through_init_rotate_retire(run: Run, tmp_path: Path):
    directory = tmp_path / "ca"
    made = json.loads(run("ca", "init", directory, "--trust-domain", "example.org", "-o", "json").out)
    assert made == {"directory": str(directory), "trust_domain": "example.org"}
    again = run("ca", "init", directory)
    assert (again.status, again.out) == (1, "")
    assert again.err.startswith("nodeproxy: error: ")
    rotated = json.loads(run("ca", "rotate", directory, "-o", "json").out)
    assert differences(rotated, examples()["ca rotate"]) == []
    assert "signs from now on" in run("ca", "rotate", directory).out
    assert run("ca", "retire", directory).out == "2 former roots forgotten.\n"
    assert json.loads(run("ca", "retire", directory, "-o", "json").out) == {"directory": str(directory), "retired": 0}


def test_ca_with_a_given_root_needs_its_key(run: Run, tmp_path: Path):
    run("ca", "init", tmp_path / "first")
    root, key = tmp_path / "first" / "root-cert.pem", tmp_path / "first" / "ca-key.pem"
    result = run("ca", "init", tmp_path / "second", "--root-cert", root)
    assert (result.status, "belong together" in result.err) == (2, True)
    assert run("ca", "init", tmp_path / "second", "--root-cert", root, "--root-key", key).status == 0
    assert (tmp_path / "second" / "root-cert.pem").read_bytes() == root.read_bytes()


def test_only_a_run_directory_is_removed(tmp_path: Path):
    ours, foreign = tmp_path / "ours", tmp_path / "foreign"
    for directory in (ours, foreign):
        directory.mkdir()
    (ours / "lock").touch()
    remove_run_directory(ours)
    assert not ours.exists()
    remove_run_directory(ours)
    with pytest.raises(ConfigError, match="is no agent's run directory"):
        remove_run_directory(foreign)
    assert foreign.exists()


def test_an_output_that_is_full_is_told_in_one_line():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-m", "nodeproxy", "version"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (
        1,
        "nodeproxy: error: the output can't be written: No space left on device; make room for it\n",
    )
