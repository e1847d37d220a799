"""A cluster whose first node enrols by label: pods run in a kubelet's cgroups, and the test's control plane tells of them."""

from __future__ import annotations

import itertools
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from nodeproxy.lab.topology import Host
from nodeproxy.model.node_pod import Membership, MeshNamespace, NodePod
from nodeproxy.model.workload import Protocol, Workload
from nodeproxy.xds.names import ADDRESS, NODE_POD
from tests.mesh.cluster import MeshPod, wait_until
from tests.mesh.control_plane import ControlledCluster

_uids = itertools.count()


class RunningPod:
    """A pod as a kubelet has it: cgroups, a sandbox's process and an application's."""

    def __init__(self, cluster: LabelledCluster, pod: MeshPod) -> None:
        self.cluster, self.pod = cluster, pod
        self.pod_uid = f"00000000-0000-4000-8000-{next(_uids):012x}"
        self.cgroup = cluster.cgroup / "kubepods" / "burstable" / f"pod{self.pod_uid}"
        self.processes: list[subprocess.Popen[bytes]] = []
        self._containers: list[Path] = []
        self.start()

    @property
    def name(self) -> str:
        return str(self.pod.entry["name"])

    @property
    def namespace(self) -> str:
        return str(self.pod.entry["namespace"])

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"

    def start(self, host: Host | None = None) -> subprocess.Popen[bytes]:
        """One more container."""
        made = self.cgroup / f"container{len(self._containers)}"
        made.mkdir(parents=True)
        self._containers.append(made)
        host = host or self.pod.host

        def enter() -> None:
            (made / "cgroup.procs").write_text(str(os.getpid()))
            host._entering(None)()

        self.processes.append(subprocess.Popen(["sleep", "1000"], preexec_fn=enter))  # noqa: PLW1509
        return self.processes[-1]

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        self.processes.clear()

    def workload(self, **more: Any) -> Workload:
        entry = self.pod.entry
        given = {"addresses": self.pod.host.addresses, "protocol": Protocol.HBONE, **more}
        return Workload(
            uid=self.pod.uid,
            name=entry["name"],
            namespace=entry["namespace"],
            service_account=entry["serviceAccount"],
            node=entry["node"],
            **given,
        )

    def node_pod(self, membership: Membership = Membership.NAMESPACE_LABEL, **more: Any) -> NodePod:
        return NodePod(
            namespace=self.namespace,
            name=self.name,
            pod_uid=self.pod_uid,
            membership=membership,
            workload=self.workload(**more) if membership.in_mesh else None,
        )

    def tell(self, membership: Membership = Membership.NAMESPACE_LABEL) -> None:
        """As the controller: everybody of the workload, its node of the pod."""
        protocol = "HBONE" if membership.in_mesh else "NONE"
        self.cluster.server.put(self.cluster.message(self.pod, tunnel_protocol=protocol))
        self.cluster.server.put_node(self.node_pod(membership))

    def end(self) -> None:
        """It stops, and the controller says so."""
        self.stop()
        self.remove_cgroups()
        server = self.cluster.server
        for type_url, name in ((NODE_POD, self.key), (ADDRESS, self.pod.uid)):
            if name in server.resources[type_url]:
                server.remove(type_url, name)

    def remove_cgroups(self) -> None:
        for path in (*self._containers, self.cgroup):
            _remove(path)


class LabelledCluster(ControlledCluster):
    """Node 0 enrols by label, node 1 by command."""

    def __init__(self, nodes: int = 2) -> None:
        super().__init__(nodes)
        self.running: list[RunningPod] = []
        self.agents[0].source += ["--enrolment", "labels"]

    def run(self, name: str, node: int = 0, **more: Any) -> RunningPod:
        made = RunningPod(self, self.pod(node, name, **more))
        self.running.append(made)
        return made

    @classmethod
    @contextmanager
    def serving(cls) -> Iterator[Self]:
        """A cluster whose agents run, with a server in the mesh on node 1 and namespace shop labelled."""
        cluster = cls()
        try:
            cluster.pod(1, "server")
            cluster.server.put(cluster.message(cluster.pods["server"]))
            cluster.label()
            cluster.serve()
            cluster.start()
            cluster.enrol(cluster.pods["server"])
            yield cluster
        finally:
            cluster.close()

    def start(self) -> None:
        self.write()
        for agent in self.agents:
            agent.start(wait=False)
        for agent in self.agents:
            agent.wait_ready(90)  # both compile at a time

    def label(self, namespace: str = "shop") -> None:
        self.server.put_node(MeshNamespace(name=namespace, labelled=True))

    def rows(self) -> dict[str, dict[str, Any]]:
        """What `status` says of node 0's pods, by "namespace/name"."""
        return {row["workload"]: row for row in self.agents[0].get("/status")["pods"]}

    def wait_in(self, *pods: RunningPod, timeout_s: float = 10.0) -> None:
        def all_in() -> bool:
            rows = self.rows()
            return all(rows.get(pod.key, {}).get("certificate_until", 0.0) > 0 for pod in pods)

        wait_until(all_in, f"{[pod.key for pod in pods]} are in", timeout_s)

    def wait_out(self, *pods: RunningPod, timeout_s: float = 10.0) -> None:
        def all_out() -> bool:
            rows = self.rows()
            return not any(rows.get(pod.key, {}).get("state") == "in" for pod in pods)

        wait_until(all_out, f"{[pod.key for pod in pods]} are out", timeout_s)

    def close(self) -> None:
        for pod in self.running:
            pod.stop()
            pod.remove_cgroups()
        for path in (self.cgroup / "kubepods" / "burstable", self.cgroup / "kubepods"):
            _remove(path)
        super().close()


def _remove(path: Path) -> None:
    """A cgroup is empty a moment after its last process was waited for."""
    for _ in range(200):
        with suppress(OSError):
            if path.exists():
                path.rmdir()
            return
        time.sleep(0.005)
