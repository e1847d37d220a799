"""What commands share: the form of their help, `-o json|text`, and the choice of a running instance."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from nodeproxy import config
from nodeproxy.cli.client import Client
from nodeproxy.errors import ConfigError

_F = TypeVar("_F", bound=Callable[..., Any])


class Group(click.Group):
    """Lists its commands as they were added: in the order of use, not of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands' names."""
        return list(self.commands)


class Command(click.Command):
    """A command whose help ends with examples."""

    def __init__(self, *args: Any, examples: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = [line.strip() for line in examples.strip().splitlines()]

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, a line each."""
        with formatter.section("Examples"):
            for line in self.examples:
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")


def output_option(function: _F) -> _F:
    """`-o json|text`, as `output`."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        help="Text for people; JSON, whose fields stay, for programs.",
    )(function)


def instance_options(function: _F) -> _F:
    """How to reach a running agent: `instance`, `run_dir` and `admin`, for `connect`."""
    for option in (
        click.option(
            "--admin", metavar="ADDR:PORT", help="Reach it over TCP instead, where it was told to listen (run --admin)."
        ),
        click.option(
            "--run-dir",
            metavar="DIR",
            envvar="NODEPROXY_RUN_DIR",
            help=f"Its run directory.  [default: {config.RUN_ROOT}/INSTANCE]",
        ),
        click.option(
            "--instance",
            metavar="NAME",
            envvar="NODEPROXY_INSTANCE",
            default="default",
            show_default=True,
            help="Which agent of this machine.",
        ),
    ):
        function = option(function)
    return function


def cni_directories(prefix: str = "") -> Callable[[_F], _F]:
    """Where a node's CNI chain and its plug-ins are: `conf_dir` and `bin_dir`, their names behind `prefix`."""
    conf_dir = click.option(
        f"--{prefix}conf-dir",
        metavar="DIR",
        type=click.Path(path_type=Path),
        envvar="NODEPROXY_CNI_CONF_DIR",
        default=config.CNI_CONF_DIR,
        show_default=True,
        help="Where the container runtime reads its network.",
    )
    bin_dir = click.option(
        f"--{prefix}bin-dir",
        metavar="DIR",
        type=click.Path(path_type=Path),
        envvar="NODEPROXY_CNI_BIN_DIR",
        default=config.RunConfig.cni_bin_dir,
        show_default=True,
        help="Where it finds plug-ins.",
    )
    return lambda function: conf_dir(bin_dir(function))


def connect(instance: str, run_dir: str | None, admin: str | None) -> Client:
    """The client that the options of `instance_options` mean."""
    try:
        if admin is None:
            return Client.of_run_dir(run_directory(instance, run_dir))
        context = click.get_current_context()
        for name, value in (("--instance", "instance"), ("--run-dir", "run_dir")):
            if context.get_parameter_source(value) is ParameterSource.COMMANDLINE:
                raise click.UsageError(f"--admin and {name} are two ways to name one agent: give one of them", context)
        return Client.of_address(config.address(admin))
    except ConfigError as exc:
        raise click.UsageError(str(exc), click.get_current_context()) from exc


def run_directory(instance: str, run_dir: str | None) -> Path:
    """The run directory of an instance.  Raises ConfigError for a name that can't be one."""
    name = config.instance_name(instance)
    return Path(run_dir).absolute() if run_dir else config.RUN_ROOT / name
