"""`nodeproxy uninstall`: what an instance left pinned, so that pods are steered, and closed, no more."""

from __future__ import annotations

from pathlib import Path

import click

from nodeproxy.cli.options import Command, output_option, run_directory
from nodeproxy.cli.output import print_json
from nodeproxy.errors import ConfigError


@click.command(
    cls=Command,
    short_help="Remove what an agent left behind.",
    examples="""
        sudo nodeproxy uninstall --instance default
        sudo nodeproxy uninstall --instance blue --run-dir /var/lib/nodeproxy/blue
    """,
)
@click.option("--instance", metavar="NAME", envvar="NODEPROXY_INSTANCE", required=True, help="Which agent's.")
@click.option("--run-dir", metavar="DIR", envvar="NODEPROXY_RUN_DIR", help="Its run directory, if it was given one.")
@click.option("--cgroup-root", metavar="PATH", envvar="NODEPROXY_CGROUP_ROOT", help="Its cgroup root, if it was given one.")
@output_option
def uninstall(instance: str, run_dir: str | None, cgroup_root: str | None, output: str) -> None:
    """Remove what an agent that has ended left behind: its eBPF programs and maps, run directory and cgroup.

    Its pods' traffic is plain again afterwards.  Refused while the agent runs.
    """
    try:
        directory = run_directory(instance, run_dir)
    except ConfigError as exc:
        raise click.UsageError(str(exc), click.get_current_context()) from exc
    from nodeproxy.app.uninstall import uninstall as remove

    remove(instance, directory, Path(cgroup_root) if cgroup_root else None)
    if output == "json":
        print_json({"instance": instance})
    else:
        click.echo(f"Nothing of instance {instance} is left; its pods are plain again.")
