"""A node is drained while others connect to services with endpoints there; endpoints that are not reached are passed over."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeproxy.lab.topology import remove_netns
from tests.mesh.attempts import answer, total
from tests.mesh.cluster import Agent, Cluster, MeshPod, wait_until
from tests.mesh.roll import PORT, Load

VIP = "10.96.0.10"
_KNOCKING = Path(__file__).parent / "knocking.py"


class Greeter:
    """The application of a pod, until it ends."""

    def __init__(self, pod: MeshPod) -> None:
        self._program = pod.host.popen(
            [sys.executable, str(_KNOCKING), "greet", pod.host.name, str(PORT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._program.stdout is not None
        self._program.stdout.readline()

    def end(self) -> None:
        self._program.communicate()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    try:
        yield made
    finally:
        made.close()


def evict(cluster: Cluster, pod: MeshPod, greeter: Greeter) -> None:
    """As Kubernetes does where the application goes on for a moment after SIGTERM (preStop, say): told first, then it ends."""
    pod.entry["status"] = "Unhealthy"
    cluster.apply()
    wait_until(lambda: not any(_connections(agent, pod) for agent in cluster.agents), "what it began is done")
    greeter.end()
    remove_netns(pod.host.netns_name)
    del cluster.pods[next(name for name, each in cluster.pods.items() if each is pod)]
    cluster.write()


def _connections(agent: Agent, pod: MeshPod) -> int:
    ends = f"{pod.ip}:{PORT}"
    return sum(each["destination"]["address"] == ends for each in agent.get("/connections")["connections"])


def test_a_node_is_drained_under_load(cluster: Cluster) -> None:
    """Its pods go one by one; clients on both nodes see nothing of it."""
    client, neighbour = cluster.pod(0, "client"), cluster.pod(1, "neighbour")
    pods = [cluster.pod(0, "stays"), *(cluster.pod(1, f"goes{number}") for number in range(3))]
    cluster.service("drained.shop.svc.cluster.local", VIP, {PORT: PORT}, pods)
    greeters = [Greeter(pod) for pod in pods]
    try:
        cluster.start()
        loads = [Load(client, [VIP], 60), Load(neighbour, [VIP], 40)]
        try:
            wait_until(lambda: total(cluster.agents[1], "istio_tcp_connections_opened_total") > 50, "there is load")
            for pod, greeter in zip(pods[1:], greeters[1:], strict=True):
                evict(cluster, pod, greeter)
        finally:
            told = [load.end() for load in loads]
    finally:
        for greeter in greeters[:1]:
            greeter.end()
    print(*(f"{each['tried']} connections, {each['rate']:.0f}/s, slowest {each['slowest_s']:.2f} s" for each in told), sep="\n")
    assert [failure for each in told for failure in each["failures"]] == []
    assert all(each["tried"] > 50 for each in told)


def test_endpoints_that_are_not_reached_are_passed_over(cluster: Cluster) -> None:
    """Nothing listens, nobody is there, or it is not in the mesh as the state says: the next one has the connection."""
    client, alive = cluster.pod(0, "client"), cluster.pod(1, "alive")
    silent = cluster.pod(1, "silent")  # the application does not listen
    plain = cluster.pod(1, "plain", protocol="TCP")  # nor here, and it is not in the mesh
    local = cluster.pod(0, "local")  # nor here, on the client's own node
    lost = cluster.pod(1, "lost")  # in the mesh by the state, and not enrolled
    dead: dict[str, MeshPod] = {"silent": silent, "plain": plain, "local": local, "lost": lost}
    for number, (name, pod) in enumerate(dead.items()):
        cluster.service(f"{name}.shop.svc.cluster.local", f"10.96.1.{number + 1}", {PORT: PORT}, [pod, alive])
    cluster.service("all.shop.svc.cluster.local", "10.96.1.9", {PORT: PORT}, list(dead.values()))
    cluster.service("one.shop.svc.cluster.local", "10.96.1.10", {PORT: PORT}, [silent])
    cluster.agents[0].arguments = ["--same-node", "hbone"]
    greeter = Greeter(alive)
    try:
        cluster.start()
        cluster.agents[1].request("DELETE", f"/pods/{lost.uid}")
        for number, name in enumerate(dead):
            answers = Counter(answer(client.host, f"10.96.1.{number + 1}", PORT) for _ in range(8))
            assert answers == {alive.host.name: 8}, name
        assert answer(client.host, "10.96.1.9", PORT) is None
        assert answer(client.host, "10.96.1.10", PORT) is None
        passed = sum(_passed_over(cluster, reason) for reason in ("hbone_refused", "connect_refused", "reset_by_destination"))
        assert passed >= 4 * 3 + 2
        rows = cluster.agents[0].access_log()
        assert sum("error" not in row for row in rows) == 32, "a line for each connection, of the endpoint that had it"
    finally:
        greeter.end()


def test_a_refusal_of_policy_is_final(cluster: Cluster) -> None:
    """Whoever is denied by one endpoint is not led to another one, which might not know the policy yet."""
    client, open_, closed = cluster.pod(0, "client"), cluster.pod(1, "open"), cluster.pod(1, "closed")
    cluster.service("both.shop.svc.cluster.local", VIP, {PORT: PORT}, [open_, closed])
    closed.entry["authorizationPolicies"] = ["shop/none"]
    cluster.policies.append({"name": "none", "namespace": "shop", "scope": "WorkloadSelector", "action": "Allow", "rules": []})
    greeters = [Greeter(open_), Greeter(closed)]
    try:
        cluster.start()
        answers = Counter(answer(client.host, VIP, PORT) for _ in range(20))
        assert answers == {open_.host.name: 10, None: 10}
        assert _passed_over(cluster, "hbone_denied") == 0
    finally:
        for greeter in greeters:
            greeter.end()


def _passed_over(cluster: Cluster, reason: str) -> float:
    return total(cluster.agents[0], "nodeproxy_endpoints_passed_over_total", reason=reason)
