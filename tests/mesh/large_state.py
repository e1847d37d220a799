"""A node with as large a state as one likes, and what changes of it cost: for tests and for the bench."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Iterator

import msgspec

from nodeproxy.model.delta import Delta
from nodeproxy.model.policy import Action, Match, Policy, PolicyScope, StringMatch
from nodeproxy.model.workload import Protocol, Service, Workload
from tests.bench import processes
from tests.mesh.cluster import Cluster, exactly
from tests.mesh.delta_source import Control

RULES = 10
_WORKLOADS_A_SERVICE = 10
_BATCH = 2000
_DENY = "shop/deny"


class Node:
    """One agent with one pod in the mesh, `server`, and one outside of it, `client`."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.agent = cluster.agents[0]
        self.server, self.client = cluster.pods["server"], cluster.pods["client"]
        self.control = Control(self.agent.run_dir)
        self.listener = self.server.listen(8080)
        self.workload = Workload(
            uid=self.server.uid,
            name="server",
            namespace="shop",
            addresses=tuple(self.server.host.addresses),
            protocol=Protocol.HBONE,
            service_account="server",
            node="node0",
        )

    def pss_mb(self) -> float:
        assert self.agent.process is not None
        return processes.pss_bytes(processes.tree(self.agent.process.pid)) / 1e6

    def stored_mb(self) -> float:
        return (self.agent.run_dir / "state" / "data.mdb").stat().st_size / 1e6

    def connect_ms(self) -> float:
        """How long a connection takes from its connect to its first byte at the other end."""
        began = time.monotonic()
        with self.client.connect(self.server.ip, 8080) as ours:
            ours.sendall(b"x")
            theirs, _ = self.listener.accept()
            with theirs:
                assert exactly(theirs, 1) == b"x"
        return (time.monotonic() - began) * 1000

    def change_ms(self) -> float:
        """How long after a change of one workload a connection that it forbids is ended."""
        with self.client.connect(self.server.ip, 8080) as ours:
            ours.sendall(b"x")
            theirs, _ = self.listener.accept()
            with theirs:
                assert exactly(theirs, 1) == b"x"
                began = self.control.apply(Delta(workloads=(msgspec.structs.replace(self.workload, policies=(_DENY,)),)))
                _see_reset(ours)
                taken_ms = (time.monotonic() - began) * 1000
        self._see_refused()
        self.control.apply(Delta(workloads=(self.workload,)))
        return taken_ms

    def _see_refused(self) -> None:
        """A new connection does not begin."""
        try:
            ours = self.client.connect(self.server.ip, 8080)
        except ConnectionResetError:
            return
        with ours:
            _see_reset(ours)

    def load(self, deltas: Iterable[Delta]) -> None:
        for delta in deltas:
            self.control.apply(delta)

    def close(self) -> None:
        self.listener.close()
        self.control.close()


def _see_reset(sock: socket.socket) -> None:
    try:
        data = sock.recv(1)
    except ConnectionResetError:
        return
    raise AssertionError(f"the connection goes on: {data!r}")


def populate(cluster: Cluster) -> None:
    """What `Node` needs to be there before the agent starts."""
    cluster.pod(0, "server")
    cluster.pod(0, "client", protocol="TCP")
    cluster.policies.append({"name": "deny", "namespace": "shop", "scope": "WorkloadSelector", "action": "Deny", "rules": [[]]})


def workload(number: int) -> Workload:
    return Workload(
        uid=f"Kubernetes//Pod/many/w{number}",
        name=f"w{number}",
        namespace="many",
        addresses=(f"10.{64 + (number >> 16)}.{number >> 8 & 255}.{number & 255}",),
        protocol=Protocol.HBONE,
        service_account=f"a{number // 10}",
        node=f"other{number // 200}",
        services={f"many/s{number // 10}.many.svc": {80: 8080}},
    )


def service(number: int) -> Service:
    vip = f"/10.{128 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"
    return Service(name=f"s{number}", namespace="many", hostname=f"s{number}.many.svc", vips=(vip,), ports={80: 8080})


def policy(number: int) -> Policy:
    """From one of ten identities, each to a port of its own: two clauses a rule, as Istio writes them."""

    def rule(index: int) -> tuple[tuple[Match, ...], ...]:
        principal = StringMatch(exact=f"cluster.local/ns/n{number}/sa/a{index}")
        return ((Match(principals=(principal,)),), (Match(destination_ports=(8000 + index,)),))

    return Policy(
        name=f"p{number}", namespace="root", scope=PolicyScope.GLOBAL, action=Action.DENY, rules=tuple(map(rule, range(RULES)))
    )


def workloads(count: int) -> Iterator[Delta]:
    """So many workloads, with a service for ten of them."""
    for numbers in _batches(count):
        yield Delta(workloads=tuple(map(workload, numbers)))
    for numbers in _batches(count // _WORKLOADS_A_SERVICE):
        yield Delta(services=tuple(map(service, numbers)))


def policies(count: int) -> Iterator[Delta]:
    """So many policies for all."""
    return (Delta(policies=tuple(map(policy, numbers))) for numbers in _batches(count))


def _batches(count: int) -> Iterator[range]:
    return (range(first, min(first + _BATCH, count)) for first in range(0, count, _BATCH))
