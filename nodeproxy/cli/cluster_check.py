"""`nodeproxy check` of a cluster: what its nodes' machines lack, and where they differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from nodeproxy.cli.cluster import Progress, reach
from nodeproxy.cli.output import mark, plural, print_json, printable

if TYPE_CHECKING:
    from nodeproxy.fleet.agents import Fleet

_MAX_NODES = 5  # that are named beside what was found there


def show(ctx: click.Context) -> None:
    """Ask, and write it as `-o` says; exit status 1 if something is missing, or an agent did not say."""
    found = reach(ctx, lambda fleet, _: _ask(fleet, ctx.params["node"]))
    if ctx.params["output"] == "json":
        print_json(found)
    else:
        _print(found, every=ctx.params["every"])
    ctx.exit(0 if found["ok"] else 1)


async def _ask(fleet: Fleet, nodes: Sequence[str]) -> dict[str, Any]:
    from nodeproxy.fleet import checks

    with Progress() as progress:
        replies = await fleet.ask_all(nodes or sorted(fleet.agents), "/check", progress)
    rows = checks.merge(replies)
    errors = [{"node": reply.node, "agent": reply.agent, "error": reply.error} for reply in replies if reply.error]
    answered = [reply.node for reply in replies if not reply.error]
    return {"ok": not errors and all(row["ok"] for row in rows), "nodes": answered, "requirements": rows, "errors": errors}


def _print(found: dict[str, Any], *, every: bool) -> None:
    shown = [row for row in found["requirements"] if every or row["differs"] or not row["ok"]]
    width = max((len(row["name"]) for row in shown), default=0)
    for row in shown:
        name = row["name"]
        for group in row["found"]:
            where = "all nodes" if not row["differs"] else _nodes(group["nodes"])
            click.echo(f"{mark(group['ok'])} {printable(name):{width}}  {printable(group['found'])}  ({where})")
            if not group["ok"]:
                click.echo(f"  {'':{width}}  → {printable(group['remedy'])}")
            name = ""
    for error in found["errors"]:
        click.echo(f"{mark(False)} {error['node']} did not say: {printable(error['error'])}")
    same = len(found["requirements"]) - len(shown)
    hidden = f"; {plural(same, 'row')} the same and good everywhere (--all shows them)" if same else ""
    missing = sum(not row["ok"] for row in found["requirements"])
    verdict = f"{missing} of {len(found['requirements'])} are missing somewhere" if missing else "Nothing is missing"
    click.echo(f"\n{verdict} on {plural(len(found['nodes']), 'node')} that answered{hidden}.")


def _nodes(names: list[str]) -> str:
    listed = ", ".join(names[:_MAX_NODES])
    return f"{listed} and {len(names) - _MAX_NODES} more" if len(names) > _MAX_NODES else listed
