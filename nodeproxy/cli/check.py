"""`nodeproxy check`: what this kernel and these capabilities allow, a row each."""

from __future__ import annotations

import click

from nodeproxy.cli.options import Command, output_option
from nodeproxy.cli.output import mark, print_json


@click.command(
    cls=Command,
    short_help="See whether this machine can run a node.",
    examples="""
        sudo nodeproxy check
        sudo nodeproxy check -o json
    """,
)
@output_option
@click.pass_context
def check(ctx: click.Context, output: str) -> None:
    """See whether this machine can run a node: a row for each requirement, and what to do about those that fail.

    Changes nothing.  Exit status 1 if something is missing.
    """
    from nodeproxy.kernel import preflight as kernel
    from nodeproxy.linux import preflight as linux

    rows = [*linux.rows(), *kernel.rows()]
    missing = [row for row in rows if not row.ok]
    if output == "json":
        found = [{"name": row.name, "ok": row.ok, "found": row.found, "remedy": row.remedy} for row in rows]
        print_json({"ok": not missing, "requirements": found})
    else:
        width = max(len(row.name) for row in rows)
        for row in rows:
            click.echo(f"{mark(row.ok)} {row.name:{width}}  {row.found}")
            if not row.ok:
                click.echo(f"  {'':{width}}  → {row.remedy}")
        click.echo(f"\n{len(missing)} of {len(rows)} are missing." if missing else "\nThis machine can run nodeproxy.")
    ctx.exit(1 if missing else 0)
