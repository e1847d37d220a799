"""`nodeproxy version`."""

from __future__ import annotations

import platform

import click

from nodeproxy import __version__
from nodeproxy.cli.options import Command, output_option
from nodeproxy.cli.output import print_json


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
    """Say which nodeproxy, Python and kernel these are."""
    found = {"version": __version__, "python": platform.python_version(), "kernel": platform.release()}
    if output == "json":
        print_json(found)
    else:
        click.echo(f"nodeproxy {found['version']} (Python {found['python']}, Linux {found['kernel']})")
