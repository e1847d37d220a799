"""`nodeproxy uninstall`: what an instance left pinned, so that pods are steered, and closed, no more."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import click

from nodeproxy.cli.options import Command, output_option, run_directory
from nodeproxy.cli.output import print_json
from nodeproxy.errors import ConfigError, KernelError

# What every run directory of an agent has; a directory without it was named by mistake.
_LOCK_NAME = "lock"


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
    from nodeproxy.kernel.steering import Steering
    from nodeproxy.linux import cgroup

    Steering.uninstall(instance)
    remove_run_directory(directory)
    _remove_cgroup(cgroup.instance_cgroup(Path(cgroup_root) if cgroup_root else cgroup.cgroup2_mount(), instance))
    if output == "json":
        print_json({"instance": instance})
    else:
        click.echo(f"Nothing of instance {instance} is left; its pods are plain again.")


def remove_run_directory(directory: Path) -> None:
    """Remove an ended agent's run directory.  Raises ConfigError for a directory that is none."""
    if not directory.exists():
        return
    if not (directory / _LOCK_NAME).is_file():
        raise ConfigError(f"{directory} is no agent's run directory (it has no file {_LOCK_NAME!r}); it was left alone")
    try:
        shutil.rmtree(directory)
    except OSError as exc:
        raise ConfigError(f"can't remove {exc.filename or directory}: {exc.strerror}") from exc


def _remove_cgroup(path: Path) -> None:
    try:
        path.rmdir()
    except FileNotFoundError:
        return
    except OSError as exc:
        busy = "processes are still in it" if exc.errno == errno.EBUSY else exc.strerror
        raise KernelError(f"cgroup {path} stays: {busy}", exc.errno or 0) from exc
