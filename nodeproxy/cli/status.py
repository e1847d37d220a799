"""`nodeproxy status`: is the node well, first in a sentence each, then in tables."""

from __future__ import annotations

from typing import Any

import click

from nodeproxy.cli.options import Command, connect, instance_options, output_option
from nodeproxy.cli.output import ago, ahead, mark, plural, print_json, print_table


@click.command(
    cls=Command,
    examples="""
        sudo nodeproxy status
        sudo nodeproxy status --instance blue
        nodeproxy status --admin 127.0.0.1:15000 -o json
    """,
)
@instance_options
@output_option
def status(output: str, **where: Any) -> None:
    """Show whether the agent is ready, how old its state is, and its pods, workers and certificates.

    Exit status 0 if an agent answers, ready or not.
    """
    found = connect(**where).get("/status")
    if output == "json":
        print_json(found)
        return
    _summary(found)
    if found["pods"]:
        headers = ("pod", "addresses", "identity", "enrolled", "certificate ends", "error")
        print_table("Pods", headers, [_pod(pod) for pod in found["pods"]])
    headers = ("worker", "pid", "ready", "restarts")
    print_table("Workers", headers, [(f"{w['slot']}", f"{w['pid']}", _yes(w["ready"]), f"{w['restarts']}") for w in found["workers"]])
    if found["certificates"]:
        headers = ("identity", "pods", "ends", "renewing", "failures", "why")
        print_table("Certificates", headers, [_certificate(entry) for entry in found["certificates"]])
    if drops := [(name, f"{count}") for name, count in found["kernel"]["drops"].items() if count]:
        print_table("Refused by the kernel's side", ("reason", "count"), drops)


def _summary(found: dict[str, Any]) -> None:
    name = f"{found['node']} (instance {found['instance']}, nodeproxy {found['version']})"
    if found["ready"]:
        click.echo(f"{mark(True)} {name} is ready, started {ago(found['started'])}.")
    else:
        click.echo(f"{mark(False)} {name} is not ready; it waits for: {', '.join(found['pending']) or 'nothing that it names'}.")
    state = found["state"]
    counts = ", ".join(plural(state[f"{word[:-1]}ies" if word.endswith("y") else f"{word}s"], word) for word in ("workload", "service", "policy"))
    received = f"last changed {ago(state['received'])}" if state["received"] else "never received"
    click.echo(f"{mark(not state['error'] and bool(state['received']))} State from {state['source']}: {counts}; {received} (epoch {state['epoch']}).")
    if state["error"]:
        click.echo(f"  The last edit was refused, the state before it stays: {state['error']}")
    failed = [pod for pod in found["pods"] if pod["error"]]
    inside = len(found["pods"]) - len(failed)
    click.echo(f"{mark(not failed)} {plural(inside, 'pod')} enrolled" + (f", {len(failed)} failed." if failed else "."))


def _pod(pod: dict[str, Any]) -> tuple[str, ...]:
    return (
        pod["uid"],
        " ".join(pod["addresses"]),
        pod["identity"],
        "" if pod["error"] else ago(pod["since"]),
        ahead(pod["certificate_until"]),
        pod["error"],
    )


def _certificate(entry: dict[str, Any]) -> tuple[str, ...]:
    renewing = "failing" if entry["alarm"] else _yes(entry["renewing"])
    return (entry["identity"], f"{entry['pods']}", ahead(entry["valid_until"]), renewing, f"{entry['failures']}", entry["why"])


def _yes(value: bool) -> str:
    return "yes" if value else "no"
