"""`nodeproxy enrol` and `nodeproxy leave`: a pod in or out by hand, beside the mesh file's `pods`."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import quote

import click

from nodeproxy.cli.options import Command, connect, instance_options, output_option
from nodeproxy.cli.output import print_json


@click.command(
    cls=Command,
    short_help="Put a pod into the mesh.",
    examples="""
        sudo nodeproxy enrol Kubernetes//Pod/shop/frontend /run/netns/frontend
        sudo nodeproxy enrol Kubernetes//Pod/shop/frontend /proc/4711/ns/net --instance blue
    """,
)
@click.argument("uid", metavar="UID")
@click.argument("netns", metavar="NETNS")
@instance_options
@output_option
def enrol(uid: str, netns: str, output: str, **where: Any) -> None:
    """Put a pod into the mesh: UID of its workload, NETNS the path of its network namespace.

    Connections that already stand are not captured; new ones are.
    """
    done = connect(**where).post("/pods", {"uid": uid, "netns": os.path.abspath(netns)})
    if output == "json":
        print_json(done)
    else:
        click.echo(f"{done['uid']} is enrolled ({done['enrolled_ms']:.0f} ms).")


@click.command(
    cls=Command,
    short_help="Take a pod out of the mesh.",
    examples="""
        sudo nodeproxy leave Kubernetes//Pod/shop/frontend
    """,
)
@click.argument("uid", metavar="UID")
@instance_options
@output_option
def leave(uid: str, output: str, **where: Any) -> None:
    """Take a pod out of the mesh: its new connections are plain again, those that stand go on through the proxy to their end."""
    done = connect(**where).delete(f"/pods/{quote(uid, safe='')}")
    if output == "json":
        print_json(done)
    else:
        click.echo(f"{done['uid']} has left; its traffic is plain again.")
