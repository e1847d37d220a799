"""`nodeproxy version`."""

from __future__ import annotations

import platform
from importlib.machinery import ExtensionFileLoader
from importlib.util import find_spec

import click

from nodeproxy import __version__
from nodeproxy.cli.options import Command, output_option
from nodeproxy.cli.output import print_json


def form() -> str:
    """ "compiled" or "pure": how the data path is here (hatch_build.py); asked of one of its modules, which is not imported."""
    found = find_spec("nodeproxy.proxy.session")
    return "compiled" if found is not None and isinstance(found.loader, ExtensionFileLoader) else "pure"


@click.command(
    cls=Command,
    short_help="Say which version this is.",
    examples="""
        nodeproxy version
        nodeproxy version -o json
    """,
)
@output_option
def version(output: str) -> None:
    """Say which nodeproxy, Python and kernel these are, and whether the data path is compiled."""
    found = {"version": __version__, "form": form(), "python": platform.python_version(), "kernel": platform.release()}
    if output == "json":
        print_json(found)
    else:
        click.echo(f"nodeproxy {found['version']} ({found['form']}, Python {found['python']}, Linux {found['kernel']})")
