"""`nodeproxy status`: is the node well, first in a sentence each, then in tables."""

from __future__ import annotations

from typing import Any

import click

from nodeproxy.cli.cluster import cluster_options, node_option, wanted
from nodeproxy.cli.options import Command, connect, instance_options, output_option
from nodeproxy.cli.output import ago, ahead, mark, plural, print_json, print_table, printable


@click.command(
    cls=Command,
    short_help="Show how the agent and its pods are.",
    examples="""
        sudo nodeproxy status
        nodeproxy status --kubeconfig ~/.kube/config
        nodeproxy status -n shop --node node-a
        sudo nodeproxy status --instance blue
        nodeproxy status --admin 127.0.0.1:15000 -o json
    """,
)
@click.option("-A", "--all-namespaces", is_flag=True, help="Through the API server, pods of all namespaces.")
@node_option
@cluster_options
@instance_options
@output_option
@click.pass_context
def status(ctx: click.Context, /, output: str, instance: str, run_dir: str | None, admin: str | None, **_cluster: Any) -> None:
    """Show whether the agent is ready, how old its state is, and its pods, workers and certificates.

    From anywhere, through the API server (--kubeconfig, --context, -n or -A): which nodes have an agent, of which version, ready
    or waiting for what; with -n or -A also each pod, in the mesh or why not.

    Exit status 0 if an agent answers, ready or not; of a cluster, if all agents answer.
    """
    if wanted(ctx):
        from nodeproxy.cli import cluster_status

        cluster_status.show(ctx)
        return
    found = connect(instance, run_dir, admin).get("/status")
    if output == "json":
        print_json(found)
        return
    _summary(found)
    _tables(found)


def _summary(found: dict[str, Any]) -> None:
    name = f"{found['node']} (instance {found['instance']}, nodeproxy {found['version']})"
    if found["ready"]:
        click.echo(f"{mark(True)} {name} is ready, started {ago(found['started'])}.")
    else:
        click.echo(f"{mark(False)} {name} is not ready; it waits for: {', '.join(found['pending']) or 'nothing that it names'}.")
    state = found["state"]
    numbers = ((state["workloads"], "workload"), (state["services"], "service"), (state["policies"], "policy"))
    counts = ", ".join(plural(count, word) for count, word in numbers)
    received = f"last changed {ago(state['received'])}" if state["received"] else "never received"
    good = mark(bool(state["received"]) and not state["error"])
    click.echo(f"{good} State from {state['source']}: {counts}; {received} (epoch {state['epoch']}).")
    if state["error"]:
        click.echo(printable(f"  The last change was refused, the state before it stays: {state['error']}"))
    if state["connection"] is not None:
        _connection(state["connection"])
    _direct(found["direct"])
    kubelet = found["kubelet"]
    if kubelet["pid"]:
        click.echo(f"{mark(True)} The kubelet's probes pass policy: process {kubelet['pid']} in {kubelet['cgroup']}.")
    else:
        click.echo(f"{mark(True)} The kubelet's probes are judged by policy as anybody's: {kubelet['why']}.")
    click.echo(_pods(found["pods"]))


def _pods(pods: list[dict[str, Any]]) -> str:
    failed = sum(bool(pod["error"]) for pod in pods)
    inside = sum(pod["state"] == "in" and not pod["error"] for pod in pods)
    said = [f"{plural(inside, 'pod')} enrolled"]
    if failed:
        said.append(f"{failed} failed")
    if waiting := sum(pod["state"] == "waiting" for pod in pods):
        said.append(f"{waiting} {'is' if waiting == 1 else 'are'} waited for")
    if outside := sum(pod["state"] not in ("in", "waiting", "failed") for pod in pods):
        said.append(f"{outside} outside the mesh")
    line = f"{mark(not failed and not waiting)} {', '.join(said)}."
    if standing := sum(pod["standing_connections"] for pod in pods):
        line += f" {plural(standing, 'connection')} from before {'goes' if standing == 1 else 'go'} on outside the mesh."
    return line


def _connection(connection: dict[str, Any]) -> None:
    how = "Connected" if connection["connected"] else "Disconnected"
    why = f": {printable(connection['error'])}" if connection["error"] else ""
    click.echo(f"{mark(connection['connected'])} {how} {ago(connection['since'])}, server {connection['address']}{why}.")
    for each in connection["rejected"]:
        click.echo(printable(f"  {each['type']} {each['name']} can't be used ({each['reason']}): {each['why']}"))


def _direct(direct: dict[str, Any]) -> None:
    if direct["same_node"] == "hbone":
        click.echo(f"{mark(True)} Pods of this node talk through HBONE, as between nodes.")
        return
    if direct["open"]:
        said = f"{plural(direct['pairs'], 'pair')} of pods, {plural(direct['services'], 'service port')}"
        click.echo(f"{mark(True)} Pods of this node talk without the proxy where policy allows it beforehand: {said}.")
    else:
        reason = direct["off"] or "a change is being put into effect"
        click.echo(f"{mark(not direct['undestroyed'])} Pods of this node talk through the proxy: {reason}.")
    for error in direct["undestroyed"]:
        click.echo(f"  A direct connection that policy denies can't be ended: {error}")


def _tables(found: dict[str, Any]) -> None:
    if found["pods"]:
        columns: tuple[str, ...] = ("pod", "state", "addresses", "identity", "enrolled", "certificate ends", "why")
        print_table("Pods", columns, [_pod(pod) for pod in found["pods"]])
    workers = [(f"{each['slot']}", f"{each['pid']}", _yes(each["ready"]), f"{each['restarts']}") for each in found["workers"]]
    print_table("Workers", ("worker", "pid", "ready", "restarts"), workers)
    if found["certificates"]:
        columns = ("identity", "pods", "ends", "renewing", "failures", "why")
        print_table("Certificates", columns, [_certificate(entry) for entry in found["certificates"]])
    if drops := [(name, f"{count}") for name, count in found["kernel"]["drops"].items() if count]:
        print_table("Refused by the kernel's side", ("reason", "count"), drops)


def _pod(pod: dict[str, Any]) -> tuple[str, ...]:
    return (
        pod["uid"] or pod["workload"],
        pod["state"],
        " ".join(pod["addresses"]),
        pod["identity"],
        "" if pod["error"] or not pod["since"] else ago(pod["since"]),
        ahead(pod["certificate_until"]),
        pod["error"] or ("" if pod["state"] == "in" else pod["why"]),
    )


def _certificate(entry: dict[str, Any]) -> tuple[str, ...]:
    renewing = "failing" if entry["alarm"] else _yes(entry["renewing"])
    return (entry["identity"], f"{entry['pods']}", ahead(entry["valid_until"]), renewing, f"{entry['failures']}", entry["why"])


def _yes(value: bool) -> str:
    return "yes" if value else "no"
