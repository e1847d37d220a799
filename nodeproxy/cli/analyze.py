"""`nodeproxy analyze`: manifests that can't do what they say."""

from __future__ import annotations

from typing import Any

import click

from nodeproxy.cli.manifests import compiled, manifest_options
from nodeproxy.cli.options import Command, output_option
from nodeproxy.cli.output import plural, print_json, print_table


@click.command(
    cls=Command,
    short_help="Warn of manifests that can't do what they say.",
    examples="""
        nodeproxy analyze shop.yaml
        nodeproxy analyze --strict manifests/ policies.yaml
        kubectl get ns,pods,services,authorizationpolicies -A -o yaml | nodeproxy analyze - -o json
    """,
)
@manifest_options
@click.option("--strict", is_flag=True, help="Exit with status 1 for warnings too.")
@output_option
@click.pass_context
def analyze(ctx: click.Context, /, strict: bool, output: str, **where: Any) -> None:
    """Look for what Kubernetes and Istio resources ask for and will not get.

    A selector that matches nothing, a policy for a service without a waypoint or for pods outside the mesh, a port that no pod
    has, a principal that there is not, a rule that can't match.

    An error can't work whatever else there is in the cluster; a warning can't work with what is in these manifests alone, so
    give all that belong together.

    Exit status 0, or 1 if there is an error or, with --strict, a warning, or if a manifest can't be read.
    """
    import msgspec

    from nodeproxy.translate.analysis.analyze import analyze as diagnose

    found = diagnose(*compiled(**where))
    errors = sum(item.level == "error" for item in found)
    if output == "json":
        print_json({"ok": not errors, "diagnoses": msgspec.to_builtins(found)})
    elif found:
        rows = [
            (str(item.level), f"{item.file}:{item.line}", f"{item.kind} {item.key}", f"{item.field} {item.message}", item.advice)
            for item in found
        ]
        print_table("", ("level", "where", "resource", "what", "advice"), rows)
        click.echo(f"\n{plural(errors, 'error')}, {plural(len(found) - errors, 'warning')}.")
    else:
        click.echo("Nothing found.")
    ctx.exit(1 if errors or (strict and found) else 0)
