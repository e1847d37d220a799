"""`nodeproxy check`: what this kernel and these capabilities allow, a row each."""

from __future__ import annotations

from typing import Any

import click

from nodeproxy.cli.cluster import cluster_options, node_option, wanted
from nodeproxy.cli.options import Command, output_option
from nodeproxy.cli.output import mark, print_json


@click.command(
    cls=Command,
    short_help="See whether this machine can run a node.",
    examples="""
        sudo nodeproxy check
        sudo nodeproxy check -o json
        nodeproxy check --kubeconfig ~/.kube/config
        nodeproxy check --context staging --node node-a --all
    """,
)
@click.option("--all", "every", is_flag=True, help="Of a cluster, also the rows that are good and the same on all nodes.")
@node_option
@cluster_options
@output_option
@click.pass_context
def check(ctx: click.Context, /, output: str, **_cluster: Any) -> None:
    """See whether this machine can run a node: a row for each requirement, and what to do about those that fail.

    From anywhere, through the API server (--kubeconfig or --context): what all nodes' agents say of their machines; shown is what
    fails, and where nodes differ.

    Changes nothing.  Exit status 1 if something is missing, or an agent does not say.
    """
    if wanted(ctx):
        from nodeproxy.cli import cluster_check

        cluster_check.show(ctx)
        return
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
