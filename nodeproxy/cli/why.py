"""`nodeproxy why`: what would become of a connection, step by step."""

from __future__ import annotations

from typing import Any

import click

from nodeproxy.cli.cluster import cluster_options, wanted
from nodeproxy.cli.cluster_why import show_steps
from nodeproxy.cli.options import Command, connect, instance_options, output_option
from nodeproxy.cli.output import mark, print_json, printable


@click.command(
    cls=Command,
    short_help="Tell what would happen to a connection.",
    examples="""
        sudo nodeproxy why shop/frontend orders.shop:80
        sudo nodeproxy why Kubernetes//Pod/shop/frontend 10.96.0.7:80
        sudo nodeproxy why frontend.shop backend.shop:8080 -o json
        nodeproxy why frontend orders:80 -n shop
        nodeproxy why deploy/frontend svc/orders -n shop --context staging
        nodeproxy why shop/frontend-6d5f9 pod/orders-0:8080 --kubeconfig ~/.kube/config
    """,
)
@click.argument("source", metavar="SOURCE")
@click.argument("destination", metavar="DESTINATION[:PORT]")
@cluster_options
@instance_options
@output_option
@click.pass_context
def why(
    ctx: click.Context,
    /,
    source: str,
    destination: str,
    output: str,
    instance: str,
    run_dir: str | None,
    admin: str | None,
    **_cluster: Any,
) -> None:
    """Tell what would happen to a connection, which resource decides each step, and the verdict.

    SOURCE is a workload: its uid, NAMESPACE/NAME, NAME.NAMESPACE, name or address.  DESTINATION is an address, a service's host
    or a workload; without a port, the first that the service or the workload has.  Nothing is sent.

    From anywhere, through the API server (--kubeconfig, --context or -n), both ends are asked: the node of the source, and the
    node where the connection would arrive.  Names are then as kubectl has them: POD, NAMESPACE/POD, pod/POD, deploy/NAME (one of
    its pods is taken), and svc/SERVICE for a destination; one that names no namespace is of -n, else of the source's.

    Exit status 0 if the connection would pass, 1 if it would be refused.
    """
    if wanted(ctx):
        from nodeproxy.cli import cluster_why

        cluster_why.show(ctx, source, destination)
        return
    found = connect(instance, run_dir, admin).get("/why", {"source": source, "destination": destination})
    refusal = found.get("refusal")
    if output == "json":
        print_json(found)
    else:
        click.echo(printable(f"{found['source']} → {found['destination']}"))
        show_steps(found)
        decider = refusal.get("resource", "") if refusal else ""
        resource = f" (decided by {decider})" if decider and decider not in found["outcome"] else ""
        said = f"{'It would be ' if refusal is None else 'It would not pass: '}{found['outcome']}{resource}"
        click.echo(f"{mark(refusal is None)} {printable(said)}")
    ctx.exit(0 if refusal is None else 1)
