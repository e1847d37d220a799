"""What `compile` and `analyze` share: which manifests, and of which mesh."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from nodeproxy.translate.compilation import Compilation
    from nodeproxy.translate.settings import MeshSettings

_F = TypeVar("_F", bound=Callable[..., Any])


def manifest_options(function: _F) -> _F:
    """FILE…, and the names of the mesh, for `compiled` (its keyword arguments)."""
    for option in (
        click.option(
            "--network", metavar="NAME", default="", help="The network of pods' and services' addresses.  [default: none]"
        ),
        click.option(
            "--cluster-domain", metavar="D", default="cluster.local", show_default=True, help="What services' names end in."
        ),
        click.option(
            "--cluster-id", metavar="ID", default="Kubernetes", show_default=True, help="The first part of every workload's uid."
        ),
        click.option(
            "--root-namespace",
            metavar="NAMESPACE",
            default="istio-system",
            show_default=True,
            help="Whose policies hold for the whole mesh.",
        ),
        click.option(
            "--trust-domain", metavar="D", default="cluster.local", show_default=True, help="The first part of every identity."
        ),
        click.option(
            "-n",
            "--namespace",
            metavar="NAMESPACE",
            default="default",
            show_default=True,
            help="Of resources that name none.",
        ),
        click.argument("files", metavar="FILE…", nargs=-1, required=True),
    ):
        function = option(function)
    return function


def compiled(files: tuple[str, ...], namespace: str, **names: str) -> tuple[Compilation, MeshSettings]:
    """What the manifests mean, in the mesh with these names.  Raises ConfigError."""
    from nodeproxy.translate.compilation import compile_manifests
    from nodeproxy.translate.manifests import files_of, read_file, read_manifests
    from nodeproxy.translate.settings import MeshSettings

    settings = MeshSettings(**names)
    found = []
    for path in files_of(files):
        content = sys.stdin.buffer.read() if str(path) == "-" else read_file(path)
        found += read_manifests(str(path), content, namespace)
    return compile_manifests(found, settings), settings
