"""`nodeproxy uninstall`: what an instance left pinned, so that pods are steered, and closed, no more."""

from __future__ import annotations

from pathlib import Path

import click

from nodeproxy import config
from nodeproxy.cli.options import Command, cni_directories, output_option, run_directory
from nodeproxy.cli.output import print_json
from nodeproxy.errors import ConfigError


@click.command(
    cls=Command,
    short_help="Remove what an agent left behind.",
    examples="""
        sudo nodeproxy uninstall --instance default
        sudo nodeproxy uninstall --instance blue --run-dir /var/lib/nodeproxy/blue
        sudo nodeproxy uninstall --node
    """,
)
@click.option("--instance", metavar="NAME", envvar="NODEPROXY_INSTANCE", help="Which agent's.")
@click.option("--node", is_flag=True, help="Those of all agents that this node had, and the CNI plug-in.")
@click.option("--run-dir", metavar="DIR", envvar="NODEPROXY_RUN_DIR", help="Its run directory, if it was given one.")
@click.option("--cgroup-root", metavar="PATH", envvar="NODEPROXY_CGROUP_ROOT", help="Its cgroup root, if it was given one.")
@cni_directories("cni-")
@output_option
@click.pass_context
def uninstall(
    ctx: click.Context,
    /,
    instance: str | None,
    node: bool,
    run_dir: str | None,
    cgroup_root: str | None,
    cni_conf_dir: Path,
    cni_bin_dir: Path,
    output: str,
) -> None:
    """Remove what an agent that has ended left behind: its eBPF programs and maps, run directory and cgroup.

    With --node, whatever nodeproxy left on this machine, of all instances: also the CNI plug-in and its entry in the chain, and
    rules in pods that no agent remembers.  Pods' traffic is plain again afterwards.  Refused while an agent runs.
    """
    if node == bool(instance):
        raise click.UsageError("give --instance NAME, or --node for all that is on this machine", ctx)
    root = Path(cgroup_root) if cgroup_root else None
    from nodeproxy.app import uninstall as remove
    from nodeproxy.cni.install import Installation

    if instance:
        try:
            directory = run_directory(instance, run_dir)
        except ConfigError as exc:
            raise click.UsageError(str(exc), ctx) from exc
        remove.uninstall(instance, directory, root)
        removed: dict[str, object] = {"instance": instance}
        text = f"Nothing of instance {instance} is left; its pods are plain again."
    else:
        removed = {"instances": remove.uninstall_node(root, config.NODE_DIR, Installation(cni_conf_dir, cni_bin_dir))}
        text = "Nothing of nodeproxy is left on this node; its pods are plain again."
    if output == "json":
        print_json(removed)
    else:
        click.echo(text)
