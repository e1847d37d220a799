"""The demo's world: two nodes with pods and an agent each, an outside host, a CA and the mesh files.

    node-a: frontend, batch (clients), orders-1 (server)       node-b: orders-2, orders-3 (servers)       outside: a host

Invariant: `close` leaves nothing, however far the making came.  Knows how to build and remove; nothing of what is shown.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from nodeproxy.lab import demo_signals, demo_sweep
from nodeproxy.lab.capture import Capture
from nodeproxy.lab.demo_agent import Agent, environment, nodeproxy_command
from nodeproxy.lab.demo_mesh import DemoPod, write_mesh
from nodeproxy.lab.demo_programs import PORT, TIMEOUT_S, fetch_command, serve, wait_until
from nodeproxy.lab.demo_report import Failed
from nodeproxy.lab.topology import Host, Lab
from nodeproxy.linux.bpffs import ensure_bpffs
from nodeproxy.linux.netns import inside

_NODES = ("node-a", "node-b")
_PODS = (("frontend", 0), ("batch", 0), ("orders-1", 0), ("orders-2", 1), ("orders-3", 1))
CALLER = "frontend"
_TCP_ESTABLISH_S = 10.0


class World:
    """Makes all of it; a context manager.  `keep()` lets it stay."""

    def __init__(self) -> None:
        self.identifier = secrets.token_hex(2)
        self.secret = f"secret-{secrets.token_hex(8)}"
        self.pods: dict[str, DemoPod] = {}
        self._kept = False
        self._lab: Lab | None = None
        self.agents: dict[str, Agent] = {}
        self.directory, self._lock = demo_sweep.make_directory(self.identifier)
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def _build(self) -> None:
        ensure_bpffs()
        cgroup = demo_sweep.cgroup_of(self.identifier)
        self._make_ca()
        self._lab = lab = Lab(demo_sweep.prefix(self.identifier), len(_NODES))
        for host, name in zip(lab.nodes, _NODES, strict=True):
            (cgroup / name).mkdir(parents=True)
            instance = f"{demo_sweep.prefix(self.identifier)}-{name.removeprefix('node-')}"
            self.agents[name] = Agent(host, name, instance, cgroup / name, self.directory)
        for name, node in _PODS:
            demo_signals.check()
            pod = DemoPod(name, _NODES[node], lab.pod(node, name), cgroup / _NODES[node] / name, self.directory / name)
            pod.cgroup.mkdir()
            pod.directory.mkdir()
            self.pods[name] = pod
        self.outside: Host = lab.external()
        self.write_mesh(enrolled=False)
        for agent in self.agents.values():
            agent.start()
        for pod in self.servers:
            (pod.directory / "index.html").write_text(f"{pod.name} {self.secret}\n", encoding="utf-8")
            serve(pod.host, pod.cgroup, pod.directory)
        for pod in self.servers:
            wait_until(partial(_listens, pod.host), f"the web server of {pod.name} listens", _TCP_ESTABLISH_S)

    def _make_ca(self) -> None:
        argv = [*nodeproxy_command(), "ca", "init", str(self.directory / "ca")]
        made = subprocess.run(argv, env=environment(), capture_output=True, text=True, check=False)
        if made.returncode != 0:
            raise Failed(f"nodeproxy ca init failed: {made.stderr.strip()}")

    @property
    def servers(self) -> list[DemoPod]:
        """The endpoints of the service."""
        return [pod for pod in self.pods.values() if pod.serves]

    def write_mesh(self, *, enrolled: bool, caller: str = CALLER) -> None:
        """Write both mesh files.  enrolled: whether pods are in the mesh; caller: who may talk to the service."""
        inside_pods = self.pods.values() if enrolled else ()
        for name, agent in self.agents.items():
            write_mesh(agent.mesh, name, self.pods, inside_pods, caller)

    def fetch(self, client: DemoPod | Host, *urls: str) -> subprocess.CompletedProcess[str]:
        """Get pages, as a program in a pod or on a host."""
        demo_signals.check()
        argv, timeout_s = fetch_command(urls), TIMEOUT_S * len(urls) + 1.0
        if isinstance(client, DemoPod):
            return client.host.run(argv, cgroup=client.cgroup, timeout_s=timeout_s)
        return client.run(argv, timeout_s=timeout_s)

    def capture(self) -> Capture:
        """A capture between the nodes."""
        if self._lab is None:
            raise Failed("there is no network to capture from")
        return self._lab.capture()

    def keep(self) -> None:
        """Let everything stay when this process ends."""
        self._kept = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if not self._kept:
            self.close()

    def close(self) -> None:
        """Remove all of it, whoever wants this process to end meanwhile: what is left then would be left for good."""
        demo_signals.stop_listening()
        with ExitStack() as removing:  # in reverse order, each even if another fails
            removing.callback(os.close, self._lock)
            removing.callback(demo_sweep.sweep, self.identifier)
            if self._lab is not None:
                removing.callback(self._lab.close)
            removing.callback(demo_sweep.kill_processes, self.identifier)
            for agent in self.agents.values():
                removing.callback(agent.terminate)


def _listens(host: Host) -> bool:
    with inside(host.netns_fd):
        probe = socket.socket()
    with probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", PORT)) == 0


def in_pod_script(world: World) -> Path:
    """A script that runs a command as a program of a pod: in its network and its cgroup."""
    path = world.directory / "in-pod"
    cases = "\n".join(
        f'{pod.name}) echo $$ > {pod.cgroup}/cgroup.procs; shift; exec nsenter --net={pod.host.netns_path} "$@" ;;'
        for pod in world.pods.values()
    )
    path.write_text(
        f'#!/bin/sh\n# in-pod POD COMMAND…\ncase "$1" in\n{cases}\n*) echo "pods: {" ".join(world.pods)}" >&2; exit 2 ;;\nesac\n'
    )
    path.chmod(0o755)
    return path
