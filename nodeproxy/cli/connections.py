"""`nodeproxy connections`: who talks to whom right now, with both identities and bytes."""

from __future__ import annotations

import time
from typing import Any

import click

from nodeproxy.cli.options import Command, connect, instance_options, output_option
from nodeproxy.cli.output import ago, is_terminal, plural, print_json, print_table, size

WATCH_S = 1.0
_HEADERS = (
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
    """,
)
@click.option("--pod", metavar="UID", help="Only those that this workload is an end of.")
@click.option("--watch", is_flag=True, help="Show them anew each second until Ctrl-C; with -o json, a line each time.")
@instance_options
@output_option
def connections(pod: str | None, watch: bool, output: str, **where: Any) -> None:
    """List the live connections of this node's pods."""
    client = connect(**where)
    while True:
        found = [entry for entry in client.get("/connections")["connections"] if pod is None or _has_end(entry, pod)]
        if output == "json":
            print_json({"connections": found}, one_line=watch)
        else:
            _show(found, clear=watch and is_terminal())
        if not watch:
            return
        time.sleep(WATCH_S)


def _has_end(connection: dict[str, Any], uid: str) -> bool:
    return any((connection[side].get("workload") or {}).get("uid") == uid for side in ("source", "destination"))


def _show(found: list[dict[str, Any]], *, clear: bool) -> None:
    if clear:
        click.clear()
    if not found:
        click.echo("No connection is open.")
        return
    rows = [_row(entry) for entry in found]
    if is_terminal():
        rows = [(f"{row[0]}\n{row[2]}".rstrip(), f"{row[1]}\n{row[3]}".rstrip(), *row[4:]) for row in rows]
    print_table(plural(len(found), "connection"), _NARROW_HEADERS if is_terminal() else _HEADERS, rows)


def _row(connection: dict[str, Any]) -> tuple[str, ...]:
    source, destination = connection["source"], connection["destination"]
    service = connection.get("service")
    return (
        _named(source),
        f"{service['hostname']} → {_named(destination)}" if service else _named(destination),
        source.get("identity", ""),
        destination.get("identity", ""),
        connection["direction"],
        _security(connection),
        size(connection["received_bytes"]),
        size(connection["sent_bytes"]),
        ago(connection["started"]),
    )


def _security(connection: dict[str, Any]) -> str:
    if connection["security"] == "mutual_tls":
        return "mutual TLS"
    return "direct" if connection["direct"] else "plain"


def _named(party: dict[str, Any]) -> str:
    workload = party.get("workload")
    return f"{workload['namespace']}/{workload['name']} {party['address']}" if workload else str(party["address"])
