"""Two nodes with agents that run as a user would run them, and pods whose sockets a test holds in its own hands.

The test's own process is moved into a cgroup below the one that is steered, so that a socket it makes inside a pod's namespace is
steered like any program's there.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nodeproxy.identity.local_ca import LocalCA
from nodeproxy.kernel.steering import Steering
from nodeproxy.lab.topology import Host, Lab, LabPod
from nodeproxy.linux import cgroup
from nodeproxy.linux.netns import inside
from tests.pace import PACE

_numbers = itertools.count()
TIMEOUT_S = 10.0 * PACE
ENTRY = ["-m", "nodeproxy"]


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = 10.0, interval_s: float = 0.01) -> Any:
    """Poll `condition` until it is true; what it returned."""
    deadline = time.monotonic() + timeout_s * PACE
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        time.sleep(interval_s)


def exactly(sock: socket.socket, count: int) -> bytes:
    """`count` bytes from `sock`, or what came before its end."""
    data = bytearray()
    while len(data) < count:
        chunk = sock.recv(count - len(data))
        if not chunk:
            break
        data += chunk
    return bytes(data)


class MeshPod:
    """A pod, its entry in the mesh file, and sockets inside it."""

    def __init__(self, host: LabPod, namespace: str, account: str, node: str, protocol: str) -> None:
        self.host = host
        self.uid = f"Kubernetes//Pod/{namespace}/{host.name}"
        self.identity = f"spiffe://cluster.local/ns/{namespace}/sa/{account}"
        self.entry: dict[str, Any] = {
            "uid": self.uid,
            "name": host.name,
            "namespace": namespace,
            "serviceAccount": account,
            "workloadIps": list(host.addresses),
            "protocol": protocol,
            "node": node,
        }

    @property
    def ip(self) -> str:
        return self.host.address4

    @property
    def ip6(self) -> str:
        return self.host.address6

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> socket.socket:
        with inside(self.host.netns_fd):
            made = socket.socket(family, kind)
        made.settimeout(TIMEOUT_S)
        return made

    def listen(self, port: int, address: str = "", backlog: int = 4096) -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = self.socket(family)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen(backlog)
        return sock

    def connect(self, address: str, port: int) -> socket.socket:
        sock = self.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        try:
            sock.connect((address, port))
        except BaseException:
            sock.close()
            raise
        return sock


class Agent:
    """`nodeproxy run` on one node."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        self.cluster = cluster
        self.number = number
        self.name = f"node{number}"
        self.instance = f"{cluster.prefix}-{number}"
        self.run_dir = cluster.directory / f"run{number}"
        self.mesh = cluster.directory / f"mesh{number}.yaml"
        self.log_path = cluster.directory / f"log{number}"
        self.process: subprocess.Popen[bytes] | None = None
        self.source = ["--mesh", str(self.mesh), "--ca", str(cluster.ca)]
        self.arguments: list[str] = []
        self.wrapper: list[str] = []  # a program that starts it, with its arguments

    def start(self, wait: bool = True) -> None:
        """Start it; by default until it is ready."""
        node: Host = self.cluster.lab.nodes[self.number]
        argv = [*self.wrapper, sys.executable, *ENTRY, "run", "--node", self.name, *self.source]
        argv += ["--instance", self.instance, "--cgroup-root", str(self.cluster.cgroup), "--run-dir", str(self.run_dir)]
        argv += ["--log-format", "json", *self.arguments]
        with self.log_path.open("ab") as log:
            self.process = node.popen(argv, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        if wait:
            self.wait_ready()

    def wait_ready(self, timeout_s: float = 30.0) -> None:
        def ready() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, f"the agent ended with {self.process.poll()}: {self.log()[-3000:]}"
            try:
                return bool(self.get("/status")["ready"])
            except (OSError, http.client.HTTPException):
                return False

        try:
            wait_until(ready, "the agent is ready", timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()[-3000:]}") from None

    def kill(self, number: int = signal.SIGKILL) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(40)
        self.process = None

    def get(self, path: str, **query: str) -> Any:
        return self.request("GET", path + ("?" + urllib.parse.urlencode(query) if query else ""))[1]

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("agent", timeout=TIMEOUT_S)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(TIMEOUT_S)
        try:
            connection.sock.connect(str(self.run_dir / "admin.sock"))
            connection.request(method, path, json.dumps(body) if body is not None else None)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def access_log(self) -> list[dict[str, Any]]:
        """The lines about connections."""
        rows = []
        for line in self.log().rpartition("\n")[0].splitlines():  # the last one may be half written
            if line.startswith("{"):
                row = json.loads(line)
                if "src.addr" in row:
                    rows.append(row)
        return rows

    def metrics(self) -> str:
        node: Host = self.cluster.lab.nodes[self.number]
        with inside(node.netns_fd):
            connection = http.client.HTTPConnection("127.0.0.1", 15020, timeout=TIMEOUT_S)
            connection.connect()
        try:
            connection.request("GET", "/metrics")
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def pids(self) -> list[int]:
        assert self.process is not None
        return [self.process.pid, *(worker["pid"] for worker in self.get("/status")["workers"])]

    def nodeproxy(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command against this agent."""
        node: Host = self.cluster.lab.nodes[self.number]
        where = ["--instance", self.instance, "--run-dir", str(self.run_dir)]
        return node.run([sys.executable, "-m", "nodeproxy", *arguments, *where])


class Cluster:
    """The lab, its mesh file and its agents."""

    def __init__(self, nodes: int = 2) -> None:
        self.prefix = f"npm{os.getpid()}x{next(_numbers)}"
        self.directory = Path(tempfile.mkdtemp(prefix="nodeproxy-test-"))
        self.cgroup = cgroup.cgroup2_mount() / self.prefix
        self.programs = self.cgroup / "programs"
        self._home = cgroup.cgroup2_mount() / Path("/proc/self/cgroup").read_text().split("0::")[1].splitlines()[0].strip("/")
        self.programs.mkdir(parents=True)
        (self.programs / "cgroup.procs").write_text(str(os.getpid()))
        self.lab = Lab(self.prefix, nodes)
        self.ca = self.directory / "ca"
        LocalCA.create(self.ca)
        self.pods: dict[str, MeshPod] = {}
        self.services: list[dict[str, Any]] = []
        self.policies: list[dict[str, Any]] = []
        self.extra_workloads: list[dict[str, Any]] = []
        self.agents = [Agent(self, number) for number in range(nodes)]

    def pod(
        self, node: int, name: str, namespace: str = "shop", account: str | None = None, protocol: str = "HBONE", **more: Any
    ) -> MeshPod:
        families = more.pop("families", (4, 6))
        pod = MeshPod(self.lab.pod(node, name, families=families), namespace, account or name, f"node{node}", protocol)
        pod.entry.update(more)
        self.pods[name] = pod
        return pod

    def service(self, hostname: str, vip: str, ports: dict[int, int], pods: list[MeshPod], **more: Any) -> dict[str, Any]:
        namespace = "shop"
        entry = {"name": hostname.split(".")[0], "namespace": namespace, "hostname": hostname}
        entry |= {"vips": [f"/{vip}"], "ports": ports, **more}
        self.services.append(entry)
        for pod in pods:
            pod.entry.setdefault("services", {})[f"{namespace}/{hostname}"] = ports
        return entry

    def write(self) -> None:
        """The mesh file of each node: the same but for its pods.  JSON is YAML."""
        for agent in self.agents:
            local = [
                {"uid": pod.uid, "netns": pod.host.netns_path}
                for pod in self.pods.values()
                if pod.host.node == agent.number and pod.entry["protocol"] == "HBONE"
            ]
            mesh = {
                "workloads": [*(pod.entry for pod in self.pods.values()), *self.extra_workloads],
                "services": self.services,
                "policies": self.policies,
                "pods": local,
            }
            temporary = agent.mesh.with_suffix(".new")
            temporary.write_text(json.dumps(mesh, indent=1))
            temporary.rename(agent.mesh)

    def apply(self) -> None:
        """Write, and wait until every running agent has it in use."""
        before = {agent: agent.get("/status")["state"]["epoch"] for agent in self.agents if agent.process is not None}
        self.write()
        for agent, epoch in before.items():
            wait_until(lambda agent=agent, epoch=epoch: agent.get("/status")["state"]["epoch"] > epoch, "the edit is in use")

    def start(self) -> None:
        self.write()
        for agent in self.agents:
            agent.start(wait=False)
        for agent in self.agents:
            agent.wait_ready()

    def close(self) -> None:
        for agent in self.agents:
            if agent.process is not None:
                agent.kill(signal.SIGKILL)
        (self._home / "cgroup.procs").write_text(str(os.getpid()))
        self.lab.close()
        for agent in self.agents:
            Steering.uninstall(agent.instance)
            group = cgroup.instance_cgroup(self.cgroup, agent.instance)
            if group.exists():
                wait_until(lambda group=group: not (group / "cgroup.procs").read_text(), "the agent's cgroup is empty")
                group.rmdir()
        self.programs.rmdir()
        self.cgroup.rmdir()
        shutil.rmtree(self.directory)
