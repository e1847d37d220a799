"""`nodeproxy run`: what must be so before the first pod is steered, then the agent, then an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
from pathlib import Path

import uvloop

from nodeproxy import __version__
from nodeproxy.agent.admin import Admin
from nodeproxy.agent.endpoints import Endpoints
from nodeproxy.agent.node import Node
from nodeproxy.agent.sources.mesh_watch import MeshFile
from nodeproxy.app.process import set_up_grpc, set_up_logging
from nodeproxy.config import RunConfig
from nodeproxy.errors import ConfigError, NodeproxyError, PrivilegeError, SourceError, StateError
from nodeproxy.identity.certificate import CertificateAuthority
from nodeproxy.identity.kept import KeptCertificates
from nodeproxy.identity.local_ca import LocalAuthority
from nodeproxy.kernel.steering import Steering
from nodeproxy.linux import cgroup
from nodeproxy.linux.bpffs import ensure_bpffs
from nodeproxy.linux.preflight import capabilities, kernel

log = logging.getLogger("nodeproxy")

LOCK_FILE = "lock"  # in the run directory, as is the state's store
STORE = "state"


def run(config: RunConfig) -> int:
    """Serve until SIGTERM or SIGINT.  Raises what makes a start impossible; returns the exit status."""
    set_up_logging(config.log_format)
    set_up_grpc()
    _require_privileges()
    lock = _own_run_dir(config.run_dir, config.instance)
    authority, kept = _authority(config)
    root = config.cgroup_root or cgroup.cgroup2_mount()
    own = cgroup.instance_cgroup(root, config.instance)
    own_id = cgroup.enter(own)
    try:
        ensure_bpffs()
        steering = Steering.open(config.instance, root, own_cgroup_id=own_id, workers=config.workers)
        log.info("steering is %s", "adopted from the agent before" if steering.adopted else "compiled and loaded")
        uvloop.run(_serve(config, steering, authority, kept))
    finally:
        cgroup.leave_and_remove(own)
        os.close(lock)
    return 0


def _authority(config: RunConfig) -> tuple[CertificateAuthority, KeptCertificates | None]:
    """What makes certificates and, if it may be away, where they are kept for the next agent."""
    if config.ca is not None:
        return LocalAuthority(config.ca), None
    from nodeproxy.app.control_plane import remote_authority

    return remote_authority(config)


async def _serve(config: RunConfig, steering: Steering, authority: CertificateAuthority, kept: KeptCertificates | None) -> None:
    node = Node(
        store=config.run_dir / STORE,
        steering=steering,
        authority=authority,
        workers=config.workers,
        log_json=config.log_format == "json",
        same_node=config.same_node,
        version=__version__,
        source=source_name(config),
        kept=kept,
        on_demand=config.xds_on_demand,
        cluster_domain=config.cluster_domain,
    )
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    endpoints = Endpoints()
    identification = {"version": __version__, "instance": config.instance, "run_dir": str(config.run_dir)}
    admin = Admin(node, identification=identification, name=config.node, stop=stopping.set)
    await endpoints.serve_admin(admin, config.run_dir, config.admin)
    if config.metrics is not None:
        await endpoints.serve_metrics(node, config.metrics)
    if config.ready is not None:
        await endpoints.serve_ready(node.pending, config.ready)
    await node.start()
    tasks = [
        loop.create_task(node.identities.manager.run(), name="certificates"),
        loop.create_task(_source(config, node), name="source"),
        loop.create_task(node.enrolment.watch(), name="pods"),
        loop.create_task(node.direct.run(), name="direct path"),
        loop.create_task(_note_ready(node), name="readiness"),
    ]
    if node.on_demand is not None:
        tasks.append(loop.create_task(node.on_demand.run(), name="on demand"))
    ending = loop.create_task(stopping.wait(), name="signal")
    await asyncio.wait([*tasks, ending], return_when=asyncio.FIRST_COMPLETED)
    failed = [task for task in tasks if task.done() and task.exception() is not None]
    log.info("ending: connections get %.0f s; pods stay closed until the next start or `nodeproxy uninstall`", config.drain_s)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await node.drain(config.drain_s)
    await endpoints.stop()
    await authority.close()
    for task in failed:
        task.result()


def source_name(config: RunConfig) -> str:
    """What the source of the state is called, for people."""
    return f"file {config.mesh}" if config.mesh is not None else f"xds {','.join(map(str, config.xds_address))}"


async def _source(config: RunConfig, node: Node) -> None:
    """Follow the source without end."""
    if config.mesh is not None:
        await _follow(node, MeshFile(config.mesh, config.run_dir / STORE))
    else:
        from nodeproxy.app.control_plane import xds_source

        source = xds_source(config, node)
        if node.on_demand is not None:
            await node.on_demand.start(source)
        await source.run()


async def _follow(node: Node, file: MeshFile) -> None:
    """The first reading decides whether there is anything to serve; after that, what can't be used changes nothing."""
    async with contextlib.aclosing(file.changes()) as changes:
        async for change in changes:
            try:
                if isinstance(change, NodeproxyError):
                    raise change
                await node.apply(change)
            except (ConfigError, SourceError, StateError) as exc:
                if isinstance(exc, SourceError):
                    file.read_again()
                if not node.state_statistics().received:
                    if not node.has_last_state:
                        raise
                    await node.go_on_with_last_state()
                node.refuse(exc)


async def _note_ready(node: Node) -> None:
    while node.pending():
        await asyncio.sleep(0.05)
    log.info("ready: %d pods in the mesh", len(node.enrolment.pods))
    await asyncio.Event().wait()


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


def _own_run_dir(run_dir: Path, instance: str) -> int:
    """Make it, and lock it against a second agent.  A stale one, whose agent is dead, is simply taken over."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        run_dir.chmod(0o700)
        fd = os.open(run_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"--run-dir {run_dir}: {error.strerror}; give a directory that root can write") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.read(fd, 32).decode(errors="replace").strip() or "?"
        os.close(fd)
        raise ConfigError(
            f"instance {instance} runs already, as process {holder}; stop it, or choose another name with --instance and "
            f"--run-dir"
        ) from error
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd
