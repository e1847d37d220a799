"""`nodeproxy run`: what must be so before the first pod is steered, then the agent, then an orderly end."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import uvloop

from nodeproxy import __version__
from nodeproxy.agent.handover.taking import Predecessor
from nodeproxy.agent.pods.event_api import TOKEN, EventApi
from nodeproxy.agent.pods.events import Events
from nodeproxy.agent.run_dir import RunDir
from nodeproxy.app.process import set_up_grpc, set_up_logging
from nodeproxy.app.serving import Serving
from nodeproxy.config import RunConfig
from nodeproxy.errors import ConfigError, HandoverError, PrivilegeError
from nodeproxy.identity.certificate import CertificateAuthority
from nodeproxy.identity.kept import KeptCertificates
from nodeproxy.identity.local_ca import LocalAuthority
from nodeproxy.kernel.steering import Steering
from nodeproxy.linux import cgroup
from nodeproxy.linux.bpffs import ensure_bpffs
from nodeproxy.linux.preflight import capabilities, kernel

log = logging.getLogger("nodeproxy")


def run(config: RunConfig) -> int:
    """Serve until SIGTERM or SIGINT, or until another agent has taken over.

    Raises what makes a start impossible; returns the exit status.
    """
    set_up_logging(config.log_format)
    set_up_grpc()
    _require_privileges()
    run_dir = RunDir(config.run_dir)
    predecessor = _predecessor(config, run_dir)
    root = config.cgroup_root or cgroup.cgroup2_mount()
    own = cgroup.instance_cgroup(root, config.instance)
    own_id = cgroup.enter(own)
    again = False
    try:
        ensure_bpffs()
        steering = _steering(config, predecessor, root, own_id)
        authority, kept = _authority(config)

        async def serve() -> bool:
            serving = Serving(
                config,
                run_dir,
                steering,
                authority,
                kept,
                _events(config),
                cgroup_root=root,
                own_cgroup_id=own_id,
                predecessor=predecessor,
            )
            return await serving.run()

        again = uvloop.run(serve())
    finally:
        cgroup.leave_and_remove(own)
        if predecessor is not None:
            predecessor.close()
        if not again:
            run_dir.close()
    if again:
        log.warning("nobody serves this node any more: this agent starts over")
        run_dir.keep_over_exec()
        os.execv(sys.executable, sys.orig_argv)
    return 0


def _predecessor(config: RunConfig, run_dir: RunDir) -> Predecessor | None:
    """The agent to take over from; None: there is none, and the run directory is this one's."""
    if run_dir.hold():
        run_dir.remove_other_stores()
        return None
    if not config.takeover:
        raise ConfigError(
            f"instance {config.instance} runs already, as process {run_dir.holder}; stop it, take over from it with --takeover, "
            f"or choose another name with --instance and --run-dir"
        )
    return Predecessor.ask(run_dir, __version__)


def _steering(config: RunConfig, predecessor: Predecessor | None, root: Path, own_id: int) -> Steering:
    if predecessor is None:
        steering = Steering.open(config.instance, root, own_cgroup_id=own_id, workers=config.workers)
    elif predecessor.offer.own_cgroup_id != own_id:
        raise HandoverError(
            f"process {predecessor.offer.pid} has its workers in another cgroup (inode {predecessor.offer.own_cgroup_id}, not "
            f"{own_id}): the connections of one of both would be steered; give the same --cgroup-root, or stop that one first"
        )
    else:
        steering = Steering.prepare(config.instance)
    log.info("steering is %s", "adopted from the agent before" if steering.adopted else "compiled and loaded")
    return steering


def _authority(config: RunConfig) -> tuple[CertificateAuthority, KeptCertificates | None]:
    """What makes certificates and, if it may be away, where they are kept for the next agent."""
    if config.ca is not None:
        return LocalAuthority(config.ca), None
    from nodeproxy.app.control_plane import remote_authority

    return remote_authority(config)


def _events(config: RunConfig) -> Events:
    """Who is told of pods: whoever looks at them in Kubernetes, if we may tell."""
    if config.kube_api is not None and not (config.kube_account / TOKEN).exists():
        log.warning("no Events on pods: there is no %s; see --kube-account", config.kube_account / TOKEN)
        return Events(config.node, None)
    return Events(config.node, None if config.kube_api is None else EventApi(config.kube_api, config.kube_account))


def _require_privileges() -> None:
    if os.geteuid() != 0:
        raise PrivilegeError(
            "nodeproxy run needs root: it loads eBPF programs and enters pods' network namespaces; try `sudo nodeproxy run …`"
        )
    if not (row := kernel()).ok:
        raise PrivilegeError(f"this is Linux {row.found}, and nodeproxy needs {row.name}: {row.remedy}; nothing was changed")
    missing = [row for row in capabilities() if not row.ok]
    if missing:
        names = ", ".join(row.name for row in missing)
        raise PrivilegeError(
            f"missing: {names}; give them to the process (in a DaemonSet: securityContext.capabilities.add); `nodeproxy "
            f"check` lists all"
        )
