"""docs/kubernetes.md names what there is: settings, variables, metrics, and each reason with a row of its own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from nodeproxy import config
from nodeproxy.cli.commands import nodeproxy as cli
from nodeproxy.controller.xds_limits import StreamEnd
from nodeproxy.kube.statistics import Trouble

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")


def section(heading: str) -> str:
    """Of a heading of any level, to the next one."""
    return re.split(r"^#+ ", DOCUMENT.partition(f"# {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def first_column(text: str) -> list[str]:
    """The words in backticks there, in the order of rows."""
    rows = re.findall(r"^\| (`[^|]+) \|", text, re.MULTILINE)
    return [word for row in rows for word in re.findall(r"`([^`]+)`", row)]


def sources(folder: str) -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "nodeproxy" / folder).rglob("*.py")))


def help_of(*command: str) -> str:
    result = CliRunner().invoke(cli, [*command, "--help"])
    assert result.exit_code == 0
    return result.output


def test_the_controllers_settings_exist() -> None:
    options = first_column(section("With nodeproxy's controller"))
    assert len(options) > 5
    text = help_of("controller", "run")
    assert [option for option in options if option not in text] == []


def test_the_agents_variables_set_those_options() -> None:
    rows = re.findall(r"^\| (`[A-Z][^|]+) \| ([^|]*) \|", section("The agent"), re.MULTILINE)
    documented = {}
    for variables, options in rows:
        names, flags = re.findall(r"`(\w+)`", variables), re.findall(r"`--([a-z-]+)`", options)
        assert "…" in variables + options or len(names) == len(flags), variables
        documented |= dict(zip(names, flags, strict=False))
    known = {variable: name.replace("_", "-") for name, others in config._ISTIO_VARIABLES.items() for variable in others}
    assert {name: known.get(name) for name in documented} == documented
    missing = set(known) - {name for names, _ in rows for name in re.findall(r"`(\w+)`", names)}
    assert missing == {"LOCAL_XDS_PATH"}  # the mesh file's


@pytest.mark.parametrize("command", sorted(set(re.findall(r"(?:`|bin/)nodeproxy ((?:controller )?[a-z]+)", DOCUMENT)) - {"ca"}))
def test_commands_exist(command: str) -> None:
    help_of(*command.split())


def test_each_reason_has_a_row() -> None:
    assert sorted(first_column(section("Reasons of streams"))) == sorted(StreamEnd)
    assert sorted(first_column(section("Troubles of watches"))) == sorted(Trouble)


def test_each_reason_of_an_agent_has_a_row() -> None:
    ended, _, rejected = section("Reasons of an agent").partition("`nodeproxy_xds_rejected_total")
    code = sources("agent/sources") + sources("xds")
    of_resources = set(re.findall(r'ResourceError\(\s*"(\w+)"', code))
    of_resources |= set(re.findall(r'"(wrong_type|name_mismatch)"', code))
    assert set(first_column(rejected)) == of_resources
    shell = (ROOT / "nodeproxy" / "agent" / "sources" / "xds.py").read_text(encoding="utf-8")
    of_streams = set(re.findall(r'return "([a-z_]+)"', shell))
    # Besides, what the server breaks of the protocol: the resources' own reasons, of messages as a whole.
    assert set(first_column(ended)) - of_streams <= of_resources
    assert of_streams <= set(first_column(ended))


def test_the_agents_metrics_exist() -> None:
    """Those of the controller are looked for on a running one, tests/cluster/test_manifests.py."""
    code = sources("observe")
    named = {name for name in re.findall(r"`((?:nodeproxy|istio)_\w+)", DOCUMENT) if not name.startswith("nodeproxy_controller_")}
    assert len(named) > 8
    for name in named:
        family, stem = name.removesuffix("_total"), name.removesuffix("_total").rpartition("_")[0]
        assert any(f'"{each}"' in code for each in (family, f"{stem}_{{name}}")), name
