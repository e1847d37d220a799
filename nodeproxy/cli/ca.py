"""`nodeproxy ca init|rotate|retire`: a CA directory's life."""

from __future__ import annotations

from pathlib import Path

import click

from nodeproxy.cli.options import Command, Group, output_option
from nodeproxy.cli.output import plural, print_json

_DIRECTORY = click.Path(file_okay=False, path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group(cls=Group, short_help="Make and renew a mesh's certificate authority.")
def ca() -> None:
    """The certificate authority of a mesh without istiod: a directory that all its nodes have."""


@ca.command(
    cls=Command,
    short_help="Make a CA.",
    examples="""
        nodeproxy ca init /etc/nodeproxy/ca
        nodeproxy ca init ./ca --trust-domain example.org
        nodeproxy ca init ./ca --root-cert root.pem --root-key root-key.pem
    """,
)
@click.argument("directory", metavar="DIR", type=_DIRECTORY)
@click.option("--trust-domain", metavar="D", default="cluster.local", show_default=True, help="The first part of every identity.")
@click.option("--root-cert", metavar="FILE", type=_FILE, help="Use this root certificate (PEM) instead of a new one.")
@click.option("--root-key", metavar="FILE", type=_FILE, help="Its key (PEM).")
@output_option
def init(directory: Path, trust_domain: str, root_cert: Path | None, root_key: Path | None, output: str) -> None:
    """Make a CA in DIR, which must be new or empty."""
    if (root_cert is None) != (root_key is None):
        raise click.UsageError("--root-cert and --root-key belong together: give both or none", click.get_current_context())
    from nodeproxy.identity.local_ca import LocalCA

    made = LocalCA.create(directory, trust_domain, root_cert, root_key)
    if output == "json":
        print_json({"directory": str(directory), "trust_domain": made.trust_domain})
        return
    click.echo(f"Made a CA for the trust domain {made.trust_domain} in {directory}.")
    click.echo(f"Copy the directory to every node, readable by root only; then: nodeproxy run --ca {directory} …")


@ca.command(
    cls=Command,
    short_help="Make a new root; the old one stays trusted.",
    examples="""
        nodeproxy ca rotate /etc/nodeproxy/ca
    """,
)
@click.argument("directory", metavar="DIR", type=_DIRECTORY)
@output_option
def rotate(directory: Path, output: str) -> None:
    """Make a new root that signs from now on, while the old one stays trusted; no connection fails."""
    from nodeproxy.identity import rotation

    root = rotation.rotate(directory)
    if output == "json":
        print_json({"directory": str(directory), "root": root})
        return
    click.echo(f"{root} signs from now on; the former root is still trusted.")
    click.echo(
        "Copy the directory to every node.  A day later, when no certificate of the former root is alive: nodeproxy ca retire"
    )


@ca.command(
    cls=Command,
    short_help="Trust only the root that signs.",
    examples="""
        nodeproxy ca retire /etc/nodeproxy/ca
    """,
)
@click.argument("directory", metavar="DIR", type=_DIRECTORY)
@output_option
def retire(directory: Path, output: str) -> None:
    """Trust only the root that signs.  Do it when all certificates of the former one have ended, a day after `rotate`."""
    from nodeproxy.identity import rotation

    retired = rotation.retire(directory)
    if output == "json":
        print_json({"directory": str(directory), "retired": retired})
        return
    click.echo(f"{plural(retired, 'former root')} forgotten." if retired else "There was no former root; nothing changed.")
