"""A container runtime for the simulated kubelet: network namespaces by CNI, kubelets' cgroups, real processes in both.

As containerd does it: the namespace is made and attached to its networks while no process is in it yet; then the pause process,
then the containers.  A container's process is in its cgroup and in the namespace before its program's first instruction.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nodeproxy.lab.topology import Host, make_netns, remove_netns
from nodeproxy.linux.netns import inside, open_netns
from tests.cluster.cni_chain import Attachment, Chain, CniError
from tests.cluster.pod_program import pod_program

Driver = Literal["cgroupfs", "systemd"]


class Container:
    """A process of a pod; `exit_status` is None while it runs."""

    def __init__(self, container_id: str, process: subprocess.Popen[bytes], cgroup: Path, output: Path) -> None:
        self.id, self.process, self.cgroup, self.output = container_id, process, cgroup, output
        self.exit_status: int | None = None
        self.ended = threading.Event()


@dataclass
class Sandbox:
    """A pod as the runtime has it."""

    attachment: Attachment
    cgroup: Path
    result: dict[str, Any] | None = None
    netns_name: str = ""  # empty: the node's network
    pause: Container | None = None
    containers: dict[str, Container] = field(default_factory=dict)
    restarts: dict[str, int] = field(default_factory=dict)

    @property
    def addresses(self) -> list[str]:
        """Of the CNI's result, in its order."""
        return [each["address"].partition("/")[0] for each in (self.result or {}).get("ips", [])]


class Runtime:
    """The pods of a node.  cgroup_root: below it is `kubepods`; on_exit: told the pod's uid when a container has ended."""

    def __init__(self, node: Host, directory: Path, cgroup_root: Path, *, driver: Driver = "cgroupfs") -> None:
        self.node, self.directory, self.driver = node, directory, driver
        self._root = cgroup_root
        for name in ("net.d", "bin", "logs"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        self.chain = Chain(node, directory / "net.d", directory / "bin")
        self.sandboxes: dict[str, Sandbox] = {}  # pod uid → its sandbox
        self.on_exit: Callable[[str], None] | None = None
        self.kubelet_cgroup = cgroup_root / f"kubelet-{node.name}"  # where its kubelet runs
        self.kubelet_cgroup.mkdir()
        self._selector = selectors.DefaultSelector()
        self._selecting = threading.Lock()
        self._wake, self._waker = os.pipe2(os.O_CLOEXEC)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._reaper = threading.Thread(target=self._reap, name=f"reaper {node.name}", daemon=True)
        self._reaper.start()

    # ── sandboxes ──

    def pod_cgroup(self, uid: str, qos: str) -> Path:
        """Where a kubelet with this driver has a pod of a class ("Guaranteed", "Burstable", "BestEffort")."""
        kind = "" if qos == "Guaranteed" else qos.lower()
        if self.driver == "cgroupfs":
            return self._root / "kubepods" / kind / f"pod{uid}"
        prefix = f"kubepods-{kind}" if kind else "kubepods"
        slices = self._root / "kubepods.slice" / (f"{prefix}.slice" if kind else "")
        return slices / f"{prefix}-pod{uid.replace('-', '_')}.slice"

    def run_sandbox(self, namespace: str, name: str, uid: str, qos: str = "Burstable", *, host_network: bool = False) -> Sandbox:
        """Raises CniError; then nothing is left."""
        container_id = secrets.token_hex(32)
        cgroup = self.pod_cgroup(uid, qos)
        cgroup.mkdir(parents=True, exist_ok=True)
        netns_name = "" if host_network else f"cni-{self.node.netns_name}-{secrets.token_hex(8)}"
        path = self.node.netns_path if host_network else make_netns(netns_name)
        sandbox = Sandbox(Attachment(container_id, path, namespace, name, uid), cgroup, netns_name=netns_name)
        if not host_network:
            _prepare(path)
            try:
                sandbox.result = self.chain.add(sandbox.attachment)
            except CniError:
                self._remove_network(sandbox)
                self._remove_cgroup(cgroup)
                raise
        sandbox.pause = self._start(sandbox, container_id, ["pod", "pause"], "pause")
        self.sandboxes[uid] = sandbox
        return sandbox

    def stop_sandbox(self, uid: str, grace_s: float = 30.0) -> None:
        """End its containers, take it off its networks, and remove all of it.  What the CNI says of it is no obstacle."""
        sandbox = self.sandboxes.pop(uid, None)
        if sandbox is None:
            return
        running = [each for each in sandbox.containers.values() if each.exit_status is None]
        for each in running:
            each.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        for each in running:
            if not each.ended.wait(max(deadline - time.monotonic(), 0)):
                self._kill(each)
        if sandbox.netns_name:
            self._remove_network(sandbox)
        if sandbox.pause is not None:
            self._kill(sandbox.pause)
        for each in sandbox.containers.values():
            each.ended.wait(10)
        self._remove_cgroup(sandbox.cgroup)

    # ── containers ──

    def start_container(self, sandbox: Sandbox, name: str, command: list[str]) -> Container:
        """Also again, after it has ended."""
        if name in sandbox.containers:
            sandbox.restarts[name] = sandbox.restarts.get(name, 0) + 1
        started = self._start(sandbox, secrets.token_hex(32), command, f"{name}.{sandbox.restarts.get(name, 0)}")
        sandbox.containers[name] = started
        return started

    def output(self, namespace: str, pod: str, container: str, restart: int = 0) -> str:
        """What a container has printed, also after its pod's end; of pods of the same name the last one's."""
        path = self._output(namespace, pod, f"{container}.{restart}")
        return path.read_text() if path.exists() else ""

    def _output(self, namespace: str, pod: str, name: str) -> Path:
        return self.directory / "logs" / f"{namespace}_{pod}_{name}"

    def _start(self, sandbox: Sandbox, container_id: str, command: list[str], name: str) -> Container:
        scope = f"cri-containerd-{container_id}.scope" if self.driver == "systemd" else container_id
        cgroup = sandbox.cgroup / scope
        cgroup.mkdir()
        output = self._output(sandbox.attachment.namespace, sandbox.attachment.name, name)
        argv = [str(pod_program()), "run", str(cgroup / "cgroup.procs"), sandbox.attachment.netns, *command]
        with output.open("wb") as log:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        started = Container(container_id, process, cgroup, output)
        with self._selecting:
            self._selector.register(os.pidfd_open(process.pid), selectors.EVENT_READ, (sandbox.attachment.uid, started))
        return started

    def _kill(self, container: Container) -> None:
        with contextlib.suppress(ProcessLookupError):
            container.process.kill()
        container.ended.wait(10)

    def _reap(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    return
                with self._selecting:
                    self._selector.unregister(key.fd)
                os.close(key.fd)
                uid, container = key.data
                container.exit_status = container.process.wait()
                with contextlib.suppress(OSError):  # a process that it left is in it
                    container.cgroup.rmdir()
                container.ended.set()
                if self.on_exit is not None:
                    self.on_exit(uid)

    # ── removal ──

    def _remove_network(self, sandbox: Sandbox) -> None:
        with contextlib.suppress(CniError):  # a runtime tries again; here the namespace's end takes its links
            self.chain.delete(sandbox.attachment, sandbox.result)
        remove_netns(sandbox.netns_name)

    def _remove_cgroup(self, cgroup: Path) -> None:
        for child in (each for each in cgroup.iterdir() if each.is_dir()):
            child.rmdir()
        cgroup.rmdir()

    def close(self) -> None:
        """Remove every pod, and what there was for them."""
        for uid in list(self.sandboxes):
            self.stop_sandbox(uid, 1.0)
        os.write(self._waker, b".")
        self._reaper.join(10)
        for key in list(self._selector.get_map().values()):
            os.close(key.fd)
        os.close(self._waker)
        self._selector.close()
        self.kubelet_cgroup.rmdir()
        for top in (self._root / "kubepods", self._root / "kubepods.slice"):
            for folder in (*sorted(path for path in top.glob("*") if path.is_dir()), top):
                with contextlib.suppress(OSError):  # there is none, or another node's pods are in it
                    folder.rmdir()


def _prepare(path: str) -> None:
    """Clusters run for more than a test's minute: addresses may be used at once, and ports of one address do not run out."""
    descriptor = open_netns(path)
    try:
        with inside(descriptor):
            Path("/proc/sys/net/ipv6/conf/default/accept_dad").write_text("0")
            Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("10240 65000")
    finally:
        os.close(descriptor)
