"""`nodeproxy run`: the settings' flags.  What they mean, their checks and their other sources are in `nodeproxy.config`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from nodeproxy import config
from nodeproxy.cli.options import Command
from nodeproxy.errors import ConfigError


@click.command(
    cls=Command,
    short_help="Run this node's agent.",
    examples="""
        nodeproxy ca init /etc/nodeproxy/ca
        nodeproxy run --node "$(hostname)" --mesh /etc/nodeproxy/mesh.yaml --ca /etc/nodeproxy/ca
        NODEPROXY_LOG_FORMAT=json nodeproxy run --config /etc/nodeproxy/nodeproxy.yaml
        nodeproxy run --node b --mesh b.yaml --ca ca --instance b --admin off --metrics off --ready off
        nodeproxy run --node "$(hostname)" --source xds --xds-address https://istiod.istio-system.svc:15012
    """,
)
@click.option(
    "--config", "config_path", metavar="FILE", help="A YAML file with settings: the options' names without dashes in front."
)
@click.option("--node", metavar="NAME", help="This node's name, as the mesh file's workloads have it.  [required]")
@click.option("--source", metavar="file|xds", help="Who says what the mesh is.  [default: as --mesh or --xds-address is given]")
@click.option("--mesh", metavar="FILE", help="Source file: the mesh file; it is read again when it changes.")
@click.option("--ca", metavar="DIR", help="The CA's directory, made by `nodeproxy ca init`.  This, or --ca-address.")
@click.option(
    "--xds-address", metavar="URL,…", help="Source xds: the control plane, https://HOST:PORT; several are tried in turn."
)
@click.option(
    "--xds-on-demand",
    metavar="true|false",
    is_flag=False,
    flag_value="true",
    help="Ask the control plane for an address when it is first needed.  [default: false]",
)
@click.option(
    "--enrolment",
    metavar="HOW",
    help="Who puts pods into the mesh: file, command, labels or zds.  [default: file with --mesh, else command]",
)
@click.option(
    "--zds-socket", metavar="FILE", help=f"Enrolment zds: istio-cni's socket.  [default: {config.RunConfig.zds_socket}]"
)
@click.option(
    "--standing-connections", metavar="keep|destroy", help="Those that a pod had before it was enrolled.  [default: keep]"
)
@click.option("--ca-address", metavar="URL,…", help="The CA's servers.  [default: those of --xds-address, without --ca]")
@click.option(
    "--xds-root-ca", metavar="FILE", help=f"Roots that check the control plane.  [default: {config.RunConfig.xds_root_ca}]"
)
@click.option(
    "--ca-root-ca", metavar="FILE", help=f"Roots that check the CA's servers.  [default: {config.RunConfig.ca_root_ca}]"
)
@click.option("--auth-token", metavar="FILE", help=f"Token for both, or off.  [default: {config.RunConfig.auth_token}]")
@click.option("--cluster-id", metavar="NAME", help="The cluster, as the control plane calls it.  [default: Kubernetes]")
@click.option("--cluster-domain", metavar="NAME", help="The domain of the cluster's names.  [default: cluster.local]")
@click.option("--network", metavar="NAME", help="The network that this node is in.  [default: none]")
@click.option("--trust-domain", metavar="NAME", help="The trust domain of this node's pods.  [default: cluster.local]")
@click.option("--secret-ttl-s", metavar="TIME", help="Lifetime of certificates to ask for: seconds, or 24h.  [default: 24h]")
@click.option("--pod-name", metavar="NAME", help="The agent's own pod, for the control plane.  [default: the node's name]")
@click.option("--pod-namespace", metavar="NAME", help="Its namespace, the same as the token's.  [default: istio-system]")
@click.option("--pod-ip", metavar="ADDR", help="Its address.  [default: 127.0.0.1]")
@click.option("--kube-api", metavar="ADDR:PORT", help="Where Events on pods go, or off.  [default: as Kubernetes tells a pod]")
@click.option("--kube-account", metavar="DIR", help=f"Token and roots for that.  [default: {config.RunConfig.kube_account}]")
@click.option("--instance", metavar="NAME", help="Tells agents on one machine apart: a-z, 0-9, '-'.  [default: default]")
@click.option("--cgroup-root", metavar="PATH", help="Steer only pods below this cgroup (v2).  [default: all]")
@click.option("--kubelet-cgroup", metavar="PATH", help="Whose probes pass policy: a cgroup (v2), auto or off.  [default: auto]")
@click.option(
    "--admin", metavar="ADDR:PORT", help="Admin over TCP, or off; the Unix socket is always there.  [default: 127.0.0.1:15000]"
)
@click.option("--metrics", metavar="ADDR:PORT", help="Prometheus metrics, or off.  [default: 0.0.0.0:15020]")
@click.option("--ready", metavar="ADDR:PORT", help="Readiness, or off.  [default: 0.0.0.0:15021]")
@click.option("--workers", metavar="N", help="Processes that carry traffic, 1 to 16.  [default: 2, at most one a core]")
@click.option("--same-node", metavar="direct|hbone", help="How two pods of this node reach one another.  [default: direct]")
@click.option(
    "--takeover",
    metavar="true|false",
    is_flag=False,
    flag_value="true",
    help="Take over from an agent of this instance that runs, refusing no connection.  [default: false]",
)
@click.option(
    "--wait-after-handover",
    metavar="true|false",
    is_flag=False,
    flag_value="true",
    help="When another one has taken over: wait for SIGTERM.  [default: false, end]",
)
@click.option("--run-dir", metavar="DIR", help=f"State, socket and token.  [default: {config.RUN_ROOT}/INSTANCE]")
@click.option("--node-dir", metavar="DIR", help=f"What outlives a boot.  [default: {config.RunConfig.node_dir}]")
@click.option("--cni-conf-dir", metavar="DIR", help="Keep our CNI plug-in in the chain there, or off.  [default: off]")
@click.option("--cni-bin-dir", metavar="DIR", help=f"The runtime's plug-ins.  [default: {config.RunConfig.cni_bin_dir}]")
@click.option("--cni-plugin", metavar="FILE", help="The plug-in's program.  [default: libexec/nodeproxy-cni beside ours]")
@click.option(
    "--cni-exempt-namespaces",
    metavar="NAME,…",
    help=f"Whose pods start while the agent is away.  [default: {','.join(config.RunConfig.cni_exempt_namespaces)}]",
)
@click.option("--log-format", metavar="text|json", help="How log lines are written.  [default: text]")
@click.option("--grace-s", metavar="SECONDS", help="From SIGTERM to SIGKILL; connections get it less 5 s to end.  [default: 30]")
@click.pass_context
def run(ctx: click.Context, /, config_path: str | None, **flags: Any) -> None:
    """Run this node's agent, in the foreground.

    Each setting is also an environment variable (--run-dir is NODEPROXY_RUN_DIR) and a key of the --config file (run-dir); the
    command line wins over the environment, and that over the file.  Of Istio's names these are understood: NODE_NAME,
    LOCAL_XDS_PATH, XDS_ADDRESS, XDS_ON_DEMAND, CA_ADDRESS, XDS_ROOT_CA, CA_ROOT_CA, AUTH_TOKEN, CLUSTER_ID, CLUSTER_DOMAIN,
    NETWORK, TRUST_DOMAIN, SECRET_TTL, POD_NAME, POD_NAMESPACE, INSTANCE_IP, LOG_FORMAT, TERMINATION_GRACE_PERIOD_SECONDS and
    ISTIO_META_….

    SIGTERM drains and ends it.  Pods stay steered, and closed, until it runs again or `nodeproxy uninstall`.
    """
    try:
        settings = config.load(flags, os.environ, None if config_path is None else Path(config_path))
    except ConfigError as exc:
        raise click.UsageError(str(exc), ctx) from exc
    from nodeproxy.app.run import run as run_agent

    ctx.exit(run_agent(settings))
