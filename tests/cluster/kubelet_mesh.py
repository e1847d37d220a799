"""Nodes with kubelets: pods are what the API server binds to a node, with addresses of a real CNI chain, routed between nodes."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.cluster.apiserver import ApiError, ApiServer
from tests.cluster.kinds import Object, make
from tests.cluster.kubelet import Kubelet
from tests.cluster.mesh import ControlPlane, KubeMesh
from tests.cluster.runtime import Container, Driver, Runtime, Sandbox
from tests.mesh.cluster import Agent, wait_until

LABEL = "istio.io/dataplane-mode"
_ADDRESSES_PER_NODE = 4  # third octets: room for 1,000 pods
# Nodes of one cluster differ in these, so that what is shown of two nodes is shown of both.
_KINDS: tuple[tuple[Driver, str], ...] = (("cgroupfs", "bridge"), ("systemd", "ptp"))
_CREATING = 8


class KubeletMesh(KubeMesh):
    """`kubelets` and `runtimes` by the node's number.  Namespaces are the test's, beside those of KubeMesh."""

    kubelets: list[Kubelet]
    runtimes: list[Runtime]

    def __init__(
        self, make_control: Callable[[ApiServer], ControlPlane], namespace: str, account: str, definitions: list[Path]
    ) -> None:
        self.kubelets, self.runtimes = [], []
        super().__init__(make_control, namespace, account, definitions)
        try:
            for agent in self.cluster.agents:
                self._furnish(agent, *_KINDS[agent.number % len(_KINDS)])
        except BaseException:
            self.close()
            raise

    def _furnish(self, agent: Agent, driver: Driver, interface: str) -> None:
        number, node = agent.number, self.cluster.lab.nodes[agent.number]
        first = number * _ADDRESSES_PER_NODE
        subnets = (f"10.20.{first}.0/22", f"fd00:20:{number}::/64")
        for host in (*self.cluster.lab.nodes, self.cluster.lab.external()):
            if host is not node:
                host.add_route(subnets[0], node.address4)
                host.add_route(subnets[1], node.address6)
        runtime = Runtime(node, self.cluster.directory / agent.name, self.cluster.cgroup, driver=driver)
        self.runtimes.append(runtime)
        main: dict[str, Any] = {"type": interface, "ipam": _ipam(runtime.directory, subnets)}
        if interface == "bridge":
            node.bridge("cni0")  # with an address of its own: else it changes with the pods that come and go, under all others
            main |= {"bridge": "cni0", "isGateway": True}
        conflist = {"cniVersion": "1.0.0", "name": "pods", "plugins": [main]}
        (runtime.chain.net_d / "10-pods.conflist").write_text(json.dumps(conflist, indent=1))
        self.kubelets.append(Kubelet(self.api, agent.name, runtime))
        self.kubelets[-1].start()

    def restart_kubelet(self, number: int, away: Callable[[], None] = lambda: None) -> None:
        """Its pods go on; `away` is called while there is none."""
        self.kubelets[number].stop()
        away()
        self.kubelets[number] = Kubelet(self.api, self.cluster.agents[number].name, self.runtimes[number])
        self.kubelets[number].start()

    # ── pods ──

    def space(self, name: str, *, in_mesh: bool = False) -> None:
        self.api.create(make("Namespace", name, labels={LABEL: "ambient"} if in_mesh else {}))
        self.api.create(make("ServiceAccount", "default", name))

    def label(self, namespace: str, value: str | None = "ambient") -> float:
        """Write the label, or take it away; the time at which the API server had it."""
        self.api.patch("Namespace", namespace, metadata={"labels": {LABEL: value}})
        return time.monotonic()

    def create(self, number: int, name: str, namespace: str, *command: str, **more: Any) -> Object:
        """Bind a pod to a node, as a scheduler does; what the API server made of it."""
        return self.api.create(self.manifest(number, name, namespace, *command, **more))

    def create_all(self, manifests: list[Object]) -> None:
        """Many at once, as fast as the API server takes them."""
        left = iter(manifests)  # next() of a list's iterator is one step of the interpreter

        def work() -> None:
            for each in left:
                self.api.create(each)
            self.api.forget_connection()

        with ThreadPoolExecutor(_CREATING) as pool:
            for done in [pool.submit(work) for _ in range(_CREATING)]:
                done.result()

    def manifest(self, number: int, name: str, namespace: str, *command: str, **more: Any) -> Object:
        """A pod of one container, which runs `command` (pod_program.c); `container`: more of its fields, `spec`: of the pod's."""
        container = {"name": "app", "image": "app", "command": list(command), **more.pop("container", {})}
        spec = {"nodeName": self.cluster.agents[number].name, "containers": [container], "terminationGracePeriodSeconds": 5}
        return make("Pod", name, namespace, spec={**spec, **more.pop("spec", {})}, **more)

    def sandbox(self, number: int, name: str, namespace: str) -> Sandbox:
        """The pod as its node has it, once it runs."""
        find = functools.partial(self.kubelets[number].sandbox, namespace, name)
        found: Sandbox = wait_until(find, f"{namespace}/{name} runs on node {number}", 30)
        return found

    def execute(self, number: int, name: str, namespace: str, *command: str) -> Container:
        """Run one more program in a pod, as `kubectl exec` does; it ends with the pod."""
        return self.runtimes[number].start_container(self.sandbox(number, name, namespace), "exec", list(command))

    def running(self, name: str, namespace: str, timeout_s: float = 30.0) -> list[str]:
        """Wait until the API server knows a pod as ready; its addresses."""

        def ready() -> list[str]:
            status = self.api.get("Pod", name, namespace)["status"]
            is_ready = any(each["type"] == "Ready" and each["status"] == "True" for each in status.get("conditions", []))
            return [each["ip"] for each in status["podIPs"]] if is_ready else []

        found: list[str] = wait_until(ready, f"{namespace}/{name} is ready", timeout_s, 0.05)
        return found

    def ended(self, name: str, namespace: str, timeout_s: float = 30.0) -> None:
        """Wait until the API server has a pod no more."""

        def gone() -> bool:
            try:
                self.api.get("Pod", name, namespace)
            except ApiError as error:
                return error.status == 404
            return False

        wait_until(gone, f"{namespace}/{name} is gone", timeout_s, 0.05)

    def close(self) -> None:
        for kubelet in self.kubelets:
            kubelet.stop()
        for runtime in self.runtimes:
            runtime.close()
        super().close()


def _ipam(directory: Path, subnets: tuple[str, str]) -> dict[str, Any]:
    routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    ranges = [[{"subnet": subnet}] for subnet in subnets]
    return {"type": "host-local", "dataDir": str(directory / "addresses"), "ranges": ranges, "routes": routes}
