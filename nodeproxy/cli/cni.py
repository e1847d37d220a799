"""`nodeproxy cni install|uninstall|status`: the plug-in in this node's CNI chain, by hand."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from nodeproxy import config
from nodeproxy.cli.options import Command, Group, cni_directories, output_option, run_directory
from nodeproxy.cli.output import print_json
from nodeproxy.errors import ConfigError, NodeproxyError

if TYPE_CHECKING:
    from nodeproxy.cni.install import Installation

_F = TypeVar("_F", bound=Callable[..., Any])
_DEFAULTS = config.RunConfig
_PATH = click.Path(path_type=Path)


@click.group(cls=Group, short_help="The plug-in in a node's CNI chain.")
def cni() -> None:
    """The plug-in that puts new pods into the mesh before their first packet.

    An agent with --cni-conf-dir keeps it in the chain by itself.
    """


def _agent(function: _F) -> _F:
    """`instance` and `run_dir`."""
    for option in (
        click.option("--run-dir", metavar="DIR", envvar="NODEPROXY_RUN_DIR", help="The agent's run directory, if given one."),
        click.option("--instance", metavar="NAME", envvar="NODEPROXY_INSTANCE", default="default", help="Which agent's."),
    ):
        function = option(function)
    return function


def _directory(instance: str, run_dir: str | None) -> Path:
    try:
        return run_directory(instance, run_dir)
    except ConfigError as exc:
        raise click.UsageError(str(exc), click.get_current_context()) from exc


@cni.command(
    cls=Command,
    short_help="Put it into the chain.",
    examples="""
        sudo nodeproxy cni install
        sudo nodeproxy cni install --conf-dir /etc/kubernetes/cni/net.d --bin-dir /usr/libexec/cni
    """,
)
@cni_directories()
@click.option("--plugin", metavar="FILE", type=_PATH, default=_DEFAULTS.cni_plugin, help="The program to copy.")
@_agent
@click.option("--node-dir", metavar="DIR", type=_PATH, default=_DEFAULTS.node_dir, help="The agent's, if given one.")
@click.option(
    "--exempt-namespaces",
    metavar="NAME,…",
    default=",".join(_DEFAULTS.cni_exempt_namespaces),
    show_default=True,
    help="Whose pods start while the agent is away.",
)
@output_option
def install(
    conf_dir: Path,
    bin_dir: Path,
    plugin: Path,
    instance: str,
    run_dir: str | None,
    node_dir: Path,
    exempt_namespaces: str,
    output: str,
) -> None:
    """Put the plug-in into the chain that the container runtime uses, once.

    Refused as long as no agent answers it, or has not said yet which namespaces are in the mesh: pods would wait for it.
    """
    from nodeproxy.cni.chain import PluginSettings
    from nodeproxy.cni.files import NAMESPACES_FILE
    from nodeproxy.cni.install import Installation
    from nodeproxy.model.cni import SOCKET_FILE

    exempt = tuple(name.strip() for name in exempt_namespaces.split(",") if name.strip())
    settings = PluginSettings(_directory(instance, run_dir) / SOCKET_FILE, node_dir.absolute() / NAMESPACES_FILE, exempt)
    if not _answers(settings.socket):
        raise NodeproxyError(f"nobody answers at {settings.socket}: start an agent with --enrolment labels first")
    if not settings.namespaces_file.exists():
        raise NodeproxyError(f"{settings.namespaces_file} is not there: the agent writes it when its controller has answered")
    file, changed = Installation(conf_dir, bin_dir).install(plugin, settings)
    if output == "json":
        print_json({"file": str(file), "changed": changed})
    else:
        click.echo(f"The plug-in stands in {file}{'' if changed else ', as before'}.")


@cni.command(
    cls=Command,
    short_help="Take it out of the chain.",
    examples="""
        sudo nodeproxy cni uninstall
    """,
)
@cni_directories()
@_agent
@output_option
def uninstall(conf_dir: Path, bin_dir: Path, instance: str, run_dir: str | None, output: str) -> None:
    """Take the plug-in out of the chain: it is as it was before, byte for byte unless somebody has changed it since.

    Refused while an agent runs that keeps it there.
    """
    from nodeproxy.cni.install import Installation

    directory = _directory(instance, run_dir)
    if _kept(directory):
        raise NodeproxyError(
            f"the agent of {directory} keeps the plug-in in the chain: stop it, or run it without --cni-conf-dir, then try again"
        )
    found = Installation(conf_dir, bin_dir).uninstall()
    if output == "json":
        print_json({"changed": found})
    else:
        click.echo("The chain is as it was without the plug-in." if found else "There was no plug-in of ours.")


@cni.command(
    cls=Command,
    short_help="Show the chain.",
    examples="""
        nodeproxy cni status
    """,
)
@cni_directories()
@_agent
@output_option
def status(conf_dir: Path, bin_dir: Path, instance: str, run_dir: str | None, output: str) -> None:
    """Show which file the container runtime uses, and whether the plug-in is in it and answered.

    Exit status 1 if it is not.
    """
    from nodeproxy.cni.install import Installation
    from nodeproxy.model.cni import SOCKET_FILE

    found = _status(Installation(conf_dir, bin_dir)) | {"answered": _answers(_directory(instance, run_dir) / SOCKET_FILE)}
    if output == "json":
        print_json(found)
    else:
        chain = f"{found['file']}: {' → '.join(found['plugins'])}" if found["file"] else f"none in {conf_dir}"
        waits = ": pods of the mesh wait" if found["installed"] else ""
        click.echo(f"chain    {chain}")
        click.echo(f"plug-in  {'in it' if found['installed'] else 'not in it'}; {found['program'] or 'its program is missing'}")
        click.echo(f"agent    {'answers it' if found['answered'] else f'does not answer it{waits}'}")
    click.get_current_context().exit(0 if found["installed"] and found["program"] and found["answered"] else 1)


def _status(installation: Installation) -> dict[str, Any]:
    from nodeproxy.cni.chain import PROGRAM

    active = next((each for each in installation.files() if each.chain is not None), None)
    program = installation.bin_dir / PROGRAM
    return {
        "file": str(active.path) if active is not None else "",
        "plugins": active.chain.types if active is not None and active.chain is not None else [],
        "installed": active is not None and active.is_ours,
        "program": str(program) if program.exists() else "",
    }


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(2.0)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _kept(directory: Path) -> bool:
    """Whether an agent runs there and keeps the plug-in in the chain."""
    from nodeproxy.cli.client import Client

    try:
        part = Client.of_run_dir(directory).get("/status")["cni"]
    except NodeproxyError:
        return False
    return part is not None and bool(part["kept"])
