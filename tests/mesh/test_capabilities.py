"""An agent does all that it does with the capabilities that the manifest gives it, as root without the others."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from tests.manifests import BASE, documents, only
from tests.mesh.cluster import Cluster, exactly, wait_until

POLICY = {"name": "no-neighbours", "namespace": "shop", "scope": "Namespace", "action": "Deny"}
GRANTED = only(documents(BASE), "DaemonSet")["spec"]["template"]["spec"]["containers"][0]["securityContext"]["capabilities"][
    "add"
]


def limited_to(names: list[str]) -> list[str]:
    sets = ",".join(["-all", *(f"+{name.lower()}" for name in names)])
    return ["setpriv", "--bounding-set", sets, "--inh-caps", "-all", "--no-new-privs"]


@pytest.fixture(scope="module")
def mesh(run_cluster: Callable[[Callable[[Cluster], None]], Cluster]) -> Cluster:
    def populate(cluster: Cluster) -> None:
        for node, name in ((0, "client"), (0, "neighbour"), (1, "server")):
            cluster.pod(node, name)
        for agent in cluster.agents:
            agent.wrapper = limited_to(GRANTED)
        cluster.cgroup.chmod(0o555)  # as that of a hierarchy's root

    return run_cluster(populate)


@pytest.mark.parametrize("family", [4, 6])
def test_pods_talk_between_nodes_with_their_own_addresses(mesh: Cluster, family: int) -> None:
    client, server = mesh.pods["client"], mesh.pods["server"]
    address, own = (server.ip, client.ip) if family == 4 else (server.ip6, client.ip6)
    with server.listen(9000, "" if family == 4 else "::") as listener, client.connect(address, 9000) as ours:
        theirs, peer = listener.accept()
        with theirs:
            assert peer[0] == own
            ours.sendall(b"hello")
            assert exactly(theirs, 5) == b"hello"


def test_what_policy_denies_is_ended_between_pods_of_the_node(mesh: Cluster) -> None:
    client, neighbour = mesh.pods["client"], mesh.pods["neighbour"]
    wait_until(lambda: mesh.agents[0].get("/status")["direct"]["open"], "the direct path is open")
    with neighbour.listen(9001) as listener, client.connect(neighbour.ip, 9001) as ours:
        theirs, _ = listener.accept()
        with theirs:
            mesh.policies.append(
                {**POLICY, "rules": [[[{"principals": [{"exact": client.identity.removeprefix("spiffe://")}]}]]]}
            )
            mesh.apply()
            with pytest.raises(OSError, match="reset|abort"):
                ours.recv(1)
    mesh.policies.clear()
    mesh.apply()


def test_it_adopts_what_the_one_before_left(mesh: Cluster) -> None:
    agent = mesh.agents[0]
    agent.kill(signal.SIGKILL)
    agent.start()
    assert agent.get("/status")["kernel"]["adopted"]
    assert len(agent.get("/status")["pods"]) == 2


@pytest.mark.parametrize("name", ["SYS_ADMIN", "NET_ADMIN", "DAC_OVERRIDE"])
def test_none_of_them_can_be_left_out(mesh: Cluster, name: str) -> None:
    agent = mesh.agents[0]
    agent.kill(signal.SIGTERM)
    agent.wrapper = limited_to([each for each in GRANTED if each != name])
    agent.start(wait=False)
    assert agent.process is not None
    assert agent.process.wait(20) == 1
    agent.process = None
    assert f"missing: CAP_{name}" in agent.log()
    agent.wrapper = limited_to(GRANTED)
    agent.start()
