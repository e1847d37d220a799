"""`nodeproxy status` of a cluster: its nodes, and pods in or why not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from nodeproxy.cli.cluster import Progress, reach
from nodeproxy.cli.output import ahead, mark, plural, print_json, print_table, printable

if TYPE_CHECKING:
    from nodeproxy.fleet.agents import Fleet

_IN = {True: "yes", False: "no", None: "?"}


def show(ctx: click.Context) -> None:
    """Ask, and write it as `-o` says; exit status 1 if an agent does not answer."""
    params = ctx.params
    nodes, every = params["node"], params["all_namespaces"]
    found = reach(ctx, lambda fleet, _: _ask(fleet, nodes, params["namespace"] or "", every))
    if params["output"] == "json":
        print_json(found)
    else:
        _print(found)
    ctx.exit(1 if any(row["error"] and row["agent"] for row in found["nodes"]) else 0)


async def _ask(fleet: Fleet, nodes: Sequence[str], namespace: str, every: bool) -> dict[str, Any]:
    from nodeproxy.errors import ClusterError
    from nodeproxy.fleet import status
    from nodeproxy.fleet.pods import list_nodes, list_pods

    notes: list[str] = []
    others: list[str] = list(nodes)
    if not nodes:
        try:
            others = await list_nodes(fleet.client)
        except ClusterError as exc:
            if exc.status != 403:
                raise
            notes.append("nodes without an agent are not shown: this user may not list nodes")
    pods = await list_pods(fleet.client, namespace) if namespace or every else None
    with Progress() as progress:
        replies = await fleet.ask_all((node for node in sorted(fleet.agents) if not nodes or node in nodes), "/status", progress)
    found: dict[str, Any] = {"nodes": status.nodes_of(replies, others), "pods": None, "unknown_pods": [], "notes": notes}
    if pods is not None:
        found["pods"] = status.pods_of([pod for pod in pods if not nodes or pod.node in nodes], replies)
        found["unknown_pods"] = status.strangers(pods, replies, namespace)
    return found


def _print(found: dict[str, Any]) -> None:
    nodes = found["nodes"]
    _summary(nodes)
    for note in found["notes"]:
        click.echo(f"  {note}")
    print_table(
        "Nodes", ("node", "agent", "version", "ready", "pods in", "state", "what is wrong"), [_node(row) for row in nodes]
    )
    if found["pods"] is not None:
        inside = [pod for pod in found["pods"] if pod["in_mesh"]]
        standing = sum(pod["standing_connections"] for pod in found["pods"])
        beside = f"; {plural(standing, 'connection')} from before outside of it" if standing else ""
        click.echo(f"\n{len(inside)} of {plural(len(found['pods']), 'pod')} in the mesh{beside}.")
        columns = ("pod", "node", "in", "why not", "identity", "certificate ends")
        if found["pods"]:
            print_table("Pods", columns, [_pod(pod) for pod in found["pods"]])
    for pod in found["unknown_pods"]:
        name = printable(f"{pod['namespace']}/{pod['name']}")
        click.echo(f"  {pod['node']} has {name}, which the API server does not know.")


def _summary(nodes: list[dict[str, Any]]) -> None:
    ready = sum(row["ready"] for row in nodes)
    agents = [row for row in nodes if row["agent"]]
    versions = Counter(row["version"] for row in agents if row["version"])
    listed = ", ".join(f"{version} ({plural(count, 'node')})" for version, count in sorted(versions.items()))
    said = f", nodeproxy {listed if len(versions) > 1 else next(iter(versions))}" if versions else ""
    said = printable(said)
    click.echo(f"{mark(ready == len(nodes) and len(versions) < 2)} {ready} of {plural(len(nodes), 'node')} ready{said}.")


def _node(row: dict[str, Any]) -> tuple[str, ...]:
    wrong = [row["error"]] if row["error"] else []
    wrong += [f"waits for {', '.join(row['pending'])}"] if row["pending"] else []
    wrong += [f"an agent of this version does not tell: {', '.join(row['missing'])}"] if row["missing"] else []
    state = (row["status"] or {}).get("state", {})
    wrong += [state["error"]] if state.get("error") else []
    told = row["status"] is not None
    return (
        row["node"],
        row["agent"].partition("/")[2],
        row["version"],
        ("yes" if row["ready"] else "no") if told else "?" if row["agent"] else "no",
        f"{row['pods_in']}" if told else "",
        plural(state["workloads"], "workload") if "workloads" in state else "",
        "; ".join(wrong),
    )


def _pod(pod: dict[str, Any]) -> tuple[str, ...]:
    until = pod["certificate_until"]
    return (
        f"{pod['namespace']}/{pod['name']}",
        pod["node"],
        _IN[pod["in_mesh"]],
        pod["why"],
        pod["identity"],
        ahead(until) if until else "",
    )
