"""`nodeproxy connections`: who talks to whom right now, with both identities and bytes."""

from __future__ import annotations

import time
from typing import Any

import click

from nodeproxy.cli.cluster import cluster_options, node_option, wanted
from nodeproxy.cli.options import Command, connect, instance_options, output_option
from nodeproxy.cli.output import ago, is_terminal, plural, print_json, print_table, size

WATCH_S = 1.0
_HEADERS: tuple[str, ...] = (
    "source",
    "destination",
    "source identity",
    "destination identity",
    "direction",
    "security",
    "from source",
    "to source",
    "opened",
)
# A terminal is not that wide: there, an identity stands below its address.
_NARROW_HEADERS = ("source", "destination", "direction", "security", "from source", "to source", "opened")


@click.command(
    cls=Command,
    short_help="List the live connections.",
    examples="""
        sudo nodeproxy connections
        sudo nodeproxy connections --pod Kubernetes//Pod/shop/frontend --watch
        sudo nodeproxy connections -o json
        nodeproxy connections --kubeconfig ~/.kube/config
        nodeproxy connections -n shop --pod frontend
    """,
)
@click.option(
    "--pod", metavar="POD", help="Only those that this workload is an end of: its uid; of a cluster, the pod's name, as in `why`."
)
@click.option("--watch", is_flag=True, help="Show them anew each second until Ctrl-C; with -o json, a line each time.")
@node_option
@cluster_options
@instance_options
@output_option
@click.pass_context
def connections(
    ctx: click.Context,
    /,
    pod: str | None,
    watch: bool,
    output: str,
    instance: str,
    run_dir: str | None,
    admin: str | None,
    **_cluster: Any,
) -> None:
    """List the live connections of this node's pods.

    From anywhere, through the API server (--kubeconfig, --context or -n): those of all nodes, of a namespace's pods, or of one
    pod.  One between two nodes is told by both, outbound and inbound; of one pod, its own node tells.
    """
    if wanted(ctx):
        from nodeproxy.cli import cluster_connections

        cluster_connections.show(ctx)
        return
    client = connect(instance, run_dir, admin)
    while True:
        found = [entry for entry in client.get("/connections")["connections"] if pod is None or _has_end(entry, pod)]
        if output == "json":
            print_json({"connections": found}, one_line=watch)
        else:
            show(found, clear=watch and is_terminal())
        if not watch:
            return
        time.sleep(WATCH_S)


def _has_end(connection: dict[str, Any], uid: str) -> bool:
    return any((connection[side].get("workload") or {}).get("uid") == uid for side in ("source", "destination"))


def show(found: list[dict[str, Any]], *, clear: bool) -> None:
    """Write a table of them, with their node where one is said.  clear: the screen first."""
    if clear:
        click.clear()
    if not found:
        click.echo("No connection is open.")
        return
    rows = [_row(entry) for entry in found]
    headers = _HEADERS
    if is_terminal():
        headers = _NARROW_HEADERS
        rows = [(f"{row[0]}\n{row[2]}".rstrip(), f"{row[1]}\n{row[3]}".rstrip(), *row[4:]) for row in rows]
    if "node" in found[0]:
        headers = ("node", *headers)
        rows = [(entry["node"], *row) for entry, row in zip(found, rows, strict=True)]
    print_table(plural(len(found), "connection"), headers, rows)


def _row(connection: dict[str, Any]) -> tuple[str, ...]:
    """An agent of another version, of a cluster's many, may leave fields out."""
    source, destination = connection.get("source", {}), connection.get("destination", {})
    service = connection.get("service")
    return (
        _named(source),
        f"{service.get('hostname', '')} → {_named(destination)}" if service else _named(destination),
        source.get("identity", ""),
        destination.get("identity", ""),
        connection.get("direction", ""),
        _security(connection),
        *(size(connection[name]) if name in connection else "" for name in ("received_bytes", "sent_bytes")),
        ago(connection["started"]) if "started" in connection else "",
    )


def _security(connection: dict[str, Any]) -> str:
    if connection.get("security") == "mutual_tls":
        return "mutual TLS"
    return "direct" if connection.get("direct") else "plain" if "security" in connection else ""


def _named(party: dict[str, Any]) -> str:
    workload, address = party.get("workload"), party.get("address", "")
    return f"{workload.get('namespace', '')}/{workload.get('name', '')} {address}" if workload else str(address)
