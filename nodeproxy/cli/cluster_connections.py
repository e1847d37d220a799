"""`nodeproxy connections` of a cluster: of all nodes, or of a pod's."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from nodeproxy.cli import connections
from nodeproxy.cli.cluster import Progress, reach
from nodeproxy.cli.output import is_terminal, mark, print_json, printable
from nodeproxy.errors import ConfigError

if TYPE_CHECKING:
    from nodeproxy.fleet.agents import Fleet
    from nodeproxy.fleet.names import Named


def show(ctx: click.Context) -> None:
    """Ask, once or (--watch) each second, and write it as `-o` says; exit status 1 if an agent does not answer."""
    from nodeproxy.fleet.names import parse

    try:
        pod = parse(ctx.params["pod"]) if ctx.params["pod"] else None
        complete = reach(ctx, lambda fleet, default: _watch(ctx.params, fleet, pod, default))
    except ConfigError as exc:
        raise click.UsageError(str(exc), ctx) from exc
    ctx.exit(0 if complete else 1)


async def _watch(params: dict[str, Any], fleet: Fleet, named: Named | None, default: str) -> bool:
    from nodeproxy.fleet.why import find_pod

    key, namespace, nodes = "", params["namespace"] or "", list(params["node"])
    if named is not None:
        pod, said = await find_pod(fleet, named, named.namespace or namespace or default)
        if said:
            click.echo(printable(said), err=True)
        if not pod.node:
            raise ConfigError(f"pod {pod.key} has no node yet: `kubectl describe pod -n {pod.namespace} {pod.name}` says why")
        key, nodes = pod.key, [pod.node]
    while True:
        found = await _ask(fleet, nodes or sorted(fleet.agents), key, namespace)
        if params["output"] == "json":
            print_json(found, one_line=params["watch"])
        else:
            connections.show(found["connections"], clear=params["watch"] and is_terminal())
            for error in found["errors"]:
                click.echo(f"{mark(False)} {error['node']} did not say: {printable(error['error'])}")
        if not params["watch"]:
            return not found["errors"]
        await asyncio.sleep(connections.WATCH_S)
        await fleet.find_again()


async def _ask(fleet: Fleet, nodes: list[str], pod: str, namespace: str) -> dict[str, Any]:
    from nodeproxy.fleet.connections import merge

    with Progress() as progress:
        replies = await fleet.ask_all(nodes, "/connections", progress)
    errors = [{"node": reply.node, "agent": reply.agent, "error": reply.error} for reply in replies if reply.error]
    return {"connections": merge(replies, pod=pod, namespace=namespace), "errors": errors}
