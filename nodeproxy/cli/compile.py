"""`nodeproxy compile`: the mesh file that manifests mean."""

from __future__ import annotations

from typing import Any

import click

from nodeproxy.cli.manifests import compiled, manifest_options
from nodeproxy.cli.options import Command
from nodeproxy.cli.output import plural, print_json


@click.command(
    "compile",
    cls=Command,
    short_help="Turn Kubernetes manifests into a mesh file.",
    examples="""
        nodeproxy compile shop.yaml > mesh.yaml
        nodeproxy compile --strict manifests/ policies.yaml
        kubectl get pods,services,authorizationpolicies -A -o yaml | nodeproxy compile -
        nodeproxy compile shop.yaml -o json
    """,
)
@manifest_options
@click.option("--strict", is_flag=True, help="Exit with status 1 if anything was not understood.")
@click.option(
    "-o",
    "--output",
    type=click.Choice(["yaml", "json"]),
    default="yaml",
    show_default=True,
    help="The mesh file; JSON, with what was not understood, for programs.",
)
@click.pass_context
def compile_(ctx: click.Context, /, strict: bool, output: str, **where: Any) -> None:
    """Print the mesh file that Kubernetes and Istio resources mean: workloads, services and policies.

    FILE is a manifest with any number of documents and lists, a directory of them, or - for standard input.  Workloads are made
    of Pods that have an address, WorkloadEntries, and endpoints of ServiceEntries and EndpointSlices; a Deployment is none.

    What was not understood, and what was done about it, is told on standard error.  A policy that can't be enforced as it is
    written never allows more for it.

    Exit status 0, or 1 if a manifest can't be read or, with --strict, something was not understood.
    """
    from nodeproxy.translate.mesh_writer import mesh_tree, mesh_yaml

    compilation, _ = compiled(**where)
    tree, findings = mesh_tree(compilation.everything), compilation.findings
    if output == "json":
        print_json({"mesh": tree, "notes": [_row(finding) for finding in findings]})
    else:
        click.echo(mesh_yaml(tree), nl=False)
        for finding in findings:
            click.echo(str(finding), err=True)
        if findings:
            click.echo(f"{plural(len(findings), 'thing')} not understood as written.", err=True)
    ctx.exit(1 if strict and findings else 0)


def _row(finding: Any) -> dict[str, Any]:
    note = finding.note
    return {
        "file": finding.file,
        "line": finding.line,
        "kind": note.kind,
        "key": note.key,
        "field": note.field,
        "message": note.message,
        "consequence": note.consequence,
    }
