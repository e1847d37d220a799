"""`nodeproxy demo`."""

from __future__ import annotations

import click

from nodeproxy.cli.options import Command, output_option
from nodeproxy.cli.output import is_terminal


@click.command(
    cls=Command,
    short_help="Show on this machine what nodeproxy does.",
    examples="""
        sudo nodeproxy demo
        sudo nodeproxy demo --keep
        sudo nodeproxy demo --clean
    """,
)
@click.option("--keep", is_flag=True, help="Leave the nodes running and say what to try with them.")
@click.option("--clean", is_flag=True, help="Remove what --keep, or a demo that was killed, left.")
@output_option
@click.pass_context
def demo(ctx: click.Context, keep: bool, clean: bool, output: str) -> None:
    """Show on this machine what nodeproxy does: two nodes with pods, in network namespaces of their own.

    Each step is measured: a capture between the nodes, the programs' own output, the agents' answers.  Exit status 0 only if all
    of it held.  Takes some 20 s, needs root, and leaves nothing behind.
    """
    if keep and clean:
        raise click.UsageError("--keep and --clean exclude each other", ctx)
    from nodeproxy.lab.demo import remove_abandoned, show

    as_json = output == "json"
    ctx.exit(remove_abandoned(as_json=as_json) if clean else show(keep=keep, as_json=as_json, colour=is_terminal()))
