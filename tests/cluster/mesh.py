"""Two nodes whose agents have state and certificates from a control plane, which runs with its API server outside of both."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, Self

from nodeproxy.lab.topology import Host
from tests.cluster import istiod, replica
from tests.cluster.apiserver import ApiServer
from tests.cluster.kinds import Object, ambient, make, node, pod, service
from tests.mesh.cluster import Agent, Cluster, MeshPod, wait_until

SPACE = "shop"


class ControlPlane(Protocol):
    """nodeproxy's controller, or istiod."""

    address: str

    def start(self) -> None: ...

    def roots(self) -> Path: ...

    def close(self) -> None: ...

    def log(self) -> str: ...


class KubeMesh:
    """The nodes, the API server, and `control`, which `make_control` makes; `namespace` and `account` are the node agents'."""

    def __init__(
        self, make_control: Callable[[ApiServer], ControlPlane], namespace: str, account: str, definitions: list[Path]
    ) -> None:
        self.namespace, self.account = namespace, account
        self.cluster = Cluster()
        self.pods: dict[str, MeshPod] = {}
        try:
            self.api = ApiServer(self.cluster.lab.external())
            self.api.start()
            self.api.install_definitions(*definitions)
            self.control = make_control(self.api)
            self.control.start()
            self.api.create(*(node(agent.name) for agent in self.cluster.agents), ambient(SPACE))
            for agent in self.cluster.agents:
                self._prepare(agent)
        except BaseException:
            self.close()
            raise

    @classmethod
    def of_controller(cls, definitions: list[Path], **settings: str) -> Self:
        def make_control(api: ApiServer) -> ControlPlane:
            return replica.Controller(api, **settings)

        return cls(make_control, replica.NAMESPACE, replica.NODE_AGENT, definitions)

    @classmethod
    def of_istiod(cls, definitions: list[Path]) -> Self:
        return cls(istiod.Istiod, istiod.NAMESPACE, istiod.NODE_AGENT, definitions)

    # ── agents ──

    def _prepare(self, agent: Agent) -> None:
        """The agent's own pod, as a DaemonSet has it, and the options that name its control plane."""
        host: Host = self.cluster.lab.nodes[agent.number]
        spec = {"hostNetwork": True}
        labels = {"app": "nodeproxy"}
        name, ips = f"agent-{agent.name}", [host.address4]
        self.api.create(pod(name, self.namespace, node=agent.name, ips=ips, account=self.account, spec=spec, labels=labels))
        self.renew_token(agent)
        roots = self.roots_file
        roots.write_bytes(self.control.roots().read_bytes())
        where = f"https://{self.control.address}"
        agent.source = ["--source", "xds", "--xds-address", where, "--ca-address", where, "--xds-root-ca", str(roots)]
        agent.source += ["--ca-root-ca", str(roots), "--auth-token", str(self.token_file(agent))]

    @property
    def roots_file(self) -> Path:
        return self.cluster.directory / "control-roots.pem"

    def token_file(self, agent: Agent) -> Path:
        return self.cluster.directory / f"token-{agent.name}"

    def renew_token(self, agent: Agent, seconds: int = 3600) -> None:
        """As the kubelet does it: the file is replaced."""
        name = f"agent-{agent.name}"
        token = self.api.token(self.namespace, self.account, audience=replica.AUDIENCE, pod=name, seconds=seconds)
        new = self.token_file(agent).with_suffix(".new")
        new.write_text(token)
        new.rename(self.token_file(agent))

    def start_agents(self) -> None:
        for agent in self.cluster.agents:
            agent.start(wait=False)
        for agent in self.cluster.agents:
            agent.wait_ready()

    # ── pods ──

    def pod(self, number: int, name: str, **more: Any) -> MeshPod:
        """A pod in the lab and in the API; it is not yet enrolled."""
        made = self.outsider(number, name)
        self.announce(made, **more)
        return made

    def outsider(self, number: int, name: str) -> MeshPod:
        """A pod that the API does not know (yet)."""
        agent = self.cluster.agents[number]
        made = MeshPod(self.cluster.lab.pod(number, name), SPACE, name, agent.name, "HBONE")
        self.pods[name] = made
        return made

    def announce(self, each: MeshPod, *, labels: dict[str, str] | None = None, **more: Any) -> None:
        """Have the API know a pod, and a service account of its name."""
        name, agent = each.host.name, self.cluster.agents[each.host.node]
        self.api.apply(make("ServiceAccount", name, SPACE))
        ips = [each.ip, each.ip6]
        self.api.create(pod(name, SPACE, node=agent.name, ips=ips, account=name, labels=labels or {"app": name}, **more))

    def service(self, name: str, ports: dict[int, int | str], selector: dict[str, str], **spec: Any) -> str:
        """A service in the API; its virtual address."""
        made: Object = self.api.create(service(name, SPACE, selector, ports, **spec))
        return str(made["spec"]["clusterIP"])

    def enrol(self, *pods: MeshPod) -> None:
        """Put pods in, and wait until their nodes know them and have their certificates."""
        for each in pods:
            agent = self.cluster.agents[each.host.node]
            status, answer = agent.request("POST", "/pods", {"uid": each.uid, "netns": each.host.netns_path})
            assert status == 200, answer
            wait_until(lambda agent=agent, uid=each.uid: _certified(agent, uid), f"{each.uid} has its certificate", 30)

    def policy(self, name: str, **spec: Any) -> float:
        """Write an AuthorizationPolicy; the time at which the API server had it."""
        self.api.apply(make("AuthorizationPolicy", name, SPACE, spec=spec))
        return time.monotonic()

    def close(self) -> None:
        for part in ("control", "api"):
            if hasattr(self, part):
                getattr(self, part).close()
        self.cluster.close()


def _certified(agent: Agent, uid: str) -> bool:
    return any(pod["uid"] == uid and pod["certificate_until"] for pod in agent.get("/status")["pods"])
