"""What the commands share that reach the agents of a whole cluster through its API server: options, connection, progress.

Invariant: nothing of this is imported, and no API server is asked, unless an option of it was given: `sudo nodeproxy status` on a
node means that node's agent, whatever KUBECONFIG says.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from nodeproxy.fleet.agents import Fleet
    from nodeproxy.kube.client import KubeClient

_F = TypeVar("_F", bound=Callable[..., Any])
_T = TypeVar("_T")

DEFAULT_FILE = Path("~/.kube/config")
_SILENT_S = 1.0  # what takes less needs no progress
# Each says "through the API server".
_CHOOSE = ("kubeconfig", "context", "namespace", "all_namespaces", "system_namespace", "node")
_LOCAL = {"instance": "--instance", "run_dir": "--run-dir", "admin": "--admin"}
_GRANT = 'ask for the ClusterRole nodeproxy-viewer (docs/kubernetes.md, "From a laptop")'


def cluster_options(function: _F) -> _F:
    """--kubeconfig, --context, -n, --system-namespace, --timeout: for `wanted` and `reach`."""
    for option in (
        click.option(
            "--timeout", type=click.FloatRange(1), default=60.0, show_default=True, metavar="S", help="For all nodes together."
        ),
        click.option(
            "--system-namespace",
            metavar="NAMESPACE",
            help="Where the agents' pods are.  [default: nodeproxy-system, then istio-system]",
        ),
        click.option(
            "-n",
            "--namespace",
            metavar="NAMESPACE",
            help="Through the API server, of this namespace; also of names that say none.",
        ),
        click.option("--context", metavar="NAME", help="Through the API server of this context.  [default: the current one]"),
        click.option(
            "--kubeconfig",
            metavar="FILE",
            type=click.Path(dir_okay=False),
            help="Through this cluster's API server, as kubectl.  [default: KUBECONFIG, then ~/.kube/config]",
        ),
    ):
        function = option(function)
    return function


def node_option(function: _F) -> _F:
    """--node, several times: as `node`."""
    return click.option("--node", metavar="NAME", multiple=True, help="Through the API server, only these nodes.")(function)


def wanted(ctx: click.Context) -> bool:
    """Whether the command is about a cluster.  Raises UsageError if it is also said to be about one agent."""
    given = {name for name in ctx.params if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    if not given.intersection(_CHOOSE):
        if "timeout" in given:
            raise click.UsageError("--timeout is for a cluster: give --kubeconfig, --context or -n, too", ctx)
        return False
    for name, option in _LOCAL.items():
        if name in given:
            raise click.UsageError(f"{option} names one agent, and the others a cluster's: give one of them", ctx)
    return True


def reach(ctx: click.Context, work: Callable[[Fleet, str], Awaitable[_T]]) -> _T:
    """Do `work(fleet, namespace of the kubeconfig)` on a loop of its own.  Raises NodeproxyError."""
    import asyncio
    import logging

    params = ctx.params
    system = params["system_namespace"]
    logging.getLogger("kubernetes_asyncio").setLevel(logging.ERROR)  # what it warns of, its errors say

    async def main() -> _T:
        from nodeproxy.fleet.agents import SYSTEM_NAMESPACES, Fleet
        from nodeproxy.fleet.names import checked
        from nodeproxy.kube.client import KubeClient

        for name in ("namespace", "system_namespace"):
            if params.get(name):
                checked(params[name])
        client: KubeClient = await KubeClient.connect(_files(params["kubeconfig"]), params["context"] or "", grant=_GRANT)
        try:
            fleet = await Fleet.find(client, (system,) if system else SYSTEM_NAMESPACES, deadline_s=params["timeout"])
            return await work(fleet, client.namespace or "default")
        finally:
            await client.close()

    return asyncio.run(main())


def _files(named: str | None) -> list[Path]:
    """As kubectl finds them."""
    if named:
        return [Path(named)]
    paths = [Path(path).expanduser() for path in os.environ.get("KUBECONFIG", "").split(os.pathsep) if path]
    return paths or [DEFAULT_FILE.expanduser()]


class Progress:
    """ "40 of 200 nodes" on standard error, if that is a terminal and it takes more than a second; gone on leaving."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._shown = False

    def __call__(self, done: int, count: int) -> None:
        """Tell how many have answered."""
        if sys.stderr.isatty() and time.monotonic() - self._began >= _SILENT_S:
            click.echo(f"\r{done} of {count} nodes have answered", nl=False, err=True)
            self._shown = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Take the line away."""
        if self._shown:
            click.echo(f"\r{'':40}\r", nl=False, err=True)
