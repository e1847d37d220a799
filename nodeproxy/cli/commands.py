"""The root of the commands: which there are, in the order in which one meets them."""

from __future__ import annotations

import click

from nodeproxy import __version__
from nodeproxy.cli import (
    analyze,
    ca,
    check,
    cni,
    compile,
    connections,
    controller,
    demo,
    enrolment,
    run,
    status,
    uninstall,
    version,
    why,
)
from nodeproxy.cli.options import Group


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="nodeproxy")
def nodeproxy() -> None:
    """Put the pods of a node into a mesh: mutual TLS, identity and policy by eBPF, without touching them.

    \b
    Try it:            nodeproxy demo
    Will it run here?  nodeproxy check
    Run a node:        nodeproxy ca init DIR, then nodeproxy run
    See a cluster:     nodeproxy status --kubeconfig FILE, from anywhere
    """


for _command in (
    demo.demo,
    check.check,
    ca.ca,
    run.run,
    status.status,
    connections.connections,
    why.why,
    enrolment.enrol,
    enrolment.leave,
    cni.cni,
    compile.compile_,
    analyze.analyze,
    uninstall.uninstall,
    controller.controller,
    version.version,
):
    nodeproxy.add_command(_command)
