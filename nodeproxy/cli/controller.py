"""`nodeproxy controller run`: the settings' flags.  What they mean and their checks are in `nodeproxy.controller.settings`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from nodeproxy.cli.options import Command, Group
from nodeproxy.errors import ConfigError


@click.group(cls=Group, short_help="Run a control plane of nodeproxy's own on Kubernetes.")
def controller() -> None:
    """Run a control plane of nodeproxy's own: it tells nodes what is in the cluster, and is their CA.

    No Istio is needed.  Where there is istiod, nodes can ask that instead: see `nodeproxy run --help`.
    """


@controller.command(
    cls=Command,
    short_help="Run a replica of the controller.",
    examples="""
        nodeproxy controller run --kubeconfig ~/.kube/config --namespace nodeproxy-system
        NODEPROXY_LOG_FORMAT=json nodeproxy controller run --cluster-id west --trust-domain example.org
        nodeproxy controller run --ca-secret intermediate-ca --serving-names istiod.istio-system.svc
        nodeproxy controller run --kubeconfig dev.yaml --listen 127.0.0.1:15012 --metrics off --ready off
    """,
)
@click.option(
    "--config", "config_path", metavar="FILE", help="A YAML file with settings: the options' names without dashes in front."
)
@click.option("--kubeconfig", metavar="FILE", help="The API server, and who we are to it.  [default: as pods are told]")
@click.option("--namespace", metavar="NAME", help="Where Lease and CA's Secret are.  [default: the pod's, else nodeproxy-system]")
@click.option("--listen", metavar="ADDR:PORT", help="xDS and the CA, in TLS.  [default: 0.0.0.0:15012]")
@click.option("--metrics", metavar="ADDR:PORT", help="Prometheus metrics, or off.  [default: 0.0.0.0:15014]")
@click.option("--ready", metavar="ADDR:PORT", help="Readiness, or off.  [default: 0.0.0.0:15021]")
@click.option("--trust-domain", metavar="NAME", help="Of all identities.  [default: cluster.local]")
@click.option("--cluster-id", metavar="NAME", help="The cluster's name, first in workloads' uids.  [default: Kubernetes]")
@click.option("--network", metavar="NAME", help="That pods' and services' addresses belong to.  [default: the nameless one]")
@click.option("--cluster-domain", metavar="DOMAIN", help="What names of services end in.  [default: cluster.local]")
@click.option("--root-namespace", metavar="NAME", help="Whose policies hold for the whole mesh.  [default: istio-system]")
@click.option("--ca-secret", metavar="NAME", help="A Secret with an intermediate CA, kept by others.  [default: our own CA]")
@click.option("--token-audience", metavar="NAME", help="Whom callers' tokens must be made for.  [default: istio-ca]")
@click.option(
    "--node-accounts",
    metavar="NS/ACCOUNT,…",
    help="Node proxies, which get their node's identities.  [default: nodeproxy-system/nodeproxy,istio-system/ztunnel]",
)
@click.option("--serving-names", metavar="NAME,…", help="More names or addresses for the controller's own certificate.")
@click.option("--root-overlap-s", metavar="TIME", help="How long the next root spreads before it signs.  [default: 24h]")
@click.option("--pod-name", metavar="NAME", help="Tells replicas apart in the Lease.  [default: the host's name]")
@click.option("--log-format", metavar="text|json", help="How log lines are written.  [default: text]")
@click.pass_context
def run(ctx: click.Context, /, config_path: str | None, **flags: Any) -> None:
    """Run a replica of the controller, in the foreground.

    It reads pods, nodes, namespaces, services and policies, serves them to nodes as delta xDS, and signs certificates for what
    runs on them.  All that lasts is in the API server, so replicas may come and go; one of them leads, and it alone writes.  The
    rights that it needs are in daemonset/base.

    Each setting is also an environment variable (--cluster-id is NODEPROXY_CLUSTER_ID) and a key of the --config file; the
    command line wins over the environment, and that over the file.  Of other names, KUBECONFIG, POD_NAMESPACE, POD_NAME,
    CLUSTER_ID, TRUST_DOMAIN and LOG_FORMAT are understood.

    While the API server is away, the last state is served on.  SIGTERM drains and ends it.
    """
    # Here, for cryptography and grpc take half a second to import, which other commands need not pay.
    from nodeproxy.app.process import set_up_grpc

    set_up_grpc()
    from nodeproxy.controller import settings

    try:
        config = settings.load(flags, os.environ, None if config_path is None else Path(config_path))
    except ConfigError as exc:
        raise click.UsageError(str(exc), ctx) from exc
    from nodeproxy.app.controller import run as run_controller

    ctx.exit(run_controller(config))
