"""A client on one node and a server on the other, whatever the control plane is."""

from __future__ import annotations

import socket
from typing import Any

from tests.cluster.mesh import SPACE, KubeMesh
from tests.mesh.attempts import Greeter, connected, until_reset
from tests.mesh.cluster import Agent, MeshPod, wait_until
from tests.mesh.evidence import tunnelled

PORT = 8080


class World(KubeMesh):
    """A client on the first node, a server on the second, and a service of it."""

    client: MeshPod
    server: MeshPod
    vip: str
    greeter: Greeter

    def fill(self) -> None:
        self.start_agents()
        self.client, self.server = self.pod(0, "client"), self.pod(1, "server")
        self.vip = self.service("api", {80: PORT}, {"app": "server"})
        self.enrol(self.client, self.server)
        self.greeter = Greeter(self.server.host, (PORT,))

    def connect(self, address: str = "", port: int = 80, client: MeshPod | None = None) -> socket.socket:
        """A connection that has been answered by the server."""
        sock, said = connected((client or self.client).host, address or self.vip, port)
        if said != self.server.host.name:
            sock.close()
            raise AssertionError(f"answered by {said!r}")
        return sock

    def answers(self, client: MeshPod | None = None, address: str = "") -> bool:
        """Whether a connection to the service, or to the server's own `address`, is answered now."""
        try:
            self.connect(address, PORT if address else 80, client).close()
        except (OSError, AssertionError):
            return False
        return True

    def shows_mutual_tls(self) -> None:
        """By service and by pod, with certificates of no identities but the pods' own."""
        for sock in (self.connect(), self.connect(self.server.ip, PORT)):
            sock.close()
        tunnelled(self.cluster, self.client, self.server, PORT)
        for agent, pod in zip(self.cluster.agents, (self.client, self.server), strict=True):
            assert [each["identity"] for each in agent.get("/status")["certificates"]] == [pod.identity]

    def shows_a_denial(self) -> str:
        """A DENY is written, and lifted again; how long a live connection of the other node outlived it."""
        with self.connect() as live:
            written = self.policy("deny", action="DENY", rules=[self.rule_from_client()])
            took = until_reset({"": live})[""] - written
        assert took < 1
        assert not self.answers()
        self.api.delete("AuthorizationPolicy", "deny", SPACE)
        wait_until(self.answers, "it is allowed again")
        return f"{took:.2f} s"

    def rule_from_client(self) -> dict[str, Any]:
        """A rule that matches the client's identity."""
        return {"from": [{"source": {"principals": [self.client.identity.removeprefix("spiffe://")]}}]}

    def close(self) -> None:
        if hasattr(self, "greeter"):
            self.greeter.close()
        super().close()

    def restart(self, agent: Agent) -> None:
        agent.kill()
        agent.start()
