"""`nodeproxy why` across a cluster: the way from the source's node to the destination's, each as its agent tells it."""

from __future__ import annotations

from typing import Any

import click

from nodeproxy.cli.cluster import reach
from nodeproxy.cli.output import mark, print_json, printable
from nodeproxy.errors import ConfigError

_ASKED = {"source": "where it comes from", "destination": "where it arrives"}
_INSTEAD = "asked for want of an agent where it comes from"


def show(ctx: click.Context, source: str, destination: str) -> None:
    """Ask, and write it as `-o` says; exit status 1 if the connection would not pass, or nobody could say."""
    from nodeproxy.fleet.names import parse
    from nodeproxy.fleet.why import explain

    try:
        asked = (parse(source), parse(destination))
        namespace = ctx.params["namespace"] or ""
        found = reach(ctx, lambda fleet, default: explain(fleet, *asked, namespace=namespace, default=default))
    except ConfigError as exc:
        raise click.UsageError(str(exc), ctx) from exc
    if ctx.params["output"] == "json":
        print_json(found)
    else:
        _print(found)
    ctx.exit(0 if found["passes"] else 1)


def _print(found: dict[str, Any]) -> None:
    click.echo(f"{printable(found['source'])} ({found['source_node']}) → {printable(found['destination']) or '?'}")
    for note in found["notes"]:
        click.echo(f"  {printable(note)}")
    for part in found["parts"]:
        instead = part["side"] == "source" and part["node"] != found["source_node"]
        click.echo(f"\n{printable(part['node'])}, {_INSTEAD if instead else _ASKED[part['side']]}:")
        if part["answer"] is None:
            click.echo(f"  {mark(False)} it did not say: {printable(part['error'])}")
        else:
            show_steps(part["answer"])
            click.echo(f"  {mark(not part['answer'].get('refusal'))} {printable(part['answer'].get('outcome', ''))}")
    passes = found["passes"]
    said = "It would pass" if passes else "It would not pass" if passes is False else "Nobody can say"
    click.echo(f"\n{mark(bool(passes))} {said}: {printable(found['outcome'])}")


def show_steps(answer: dict[str, Any]) -> None:
    """The numbered steps of one agent's answer."""
    for number, step in enumerate(answer.get("steps", ()), 1):
        resource = click.style(f"  [{printable(step['resource'])}]", dim=True) if step.get("resource") else ""
        click.echo(f"{number:3}. {printable(step.get('what', ''))} {printable(step.get('outcome', ''))}{resource}")
