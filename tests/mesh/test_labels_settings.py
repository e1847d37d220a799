"""Enrolment by label beside `--xds-on-demand`, with connections from before ended, and with an API server that is away."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nodeproxy.model.node_pod import Membership
from tests.mesh.cluster import exactly, wait_until
from tests.mesh.labelled import LabelledCluster


@pytest.fixture(scope="module")
def mesh() -> Iterator[LabelledCluster]:
    cluster = LabelledCluster(1)
    try:
        cluster.agents[0].source += ["--xds-on-demand", "true", "--standing-connections", "destroy"]
        # Nobody serves there, so that whatever is told of pods waits.
        account = cluster.directory / "account"
        account.mkdir()
        (account / "token").write_text("a token")
        cluster.agents[0].source += ["--kube-api", "127.0.0.1:9", "--kube-account", str(account)]
        cluster.label()
        cluster.serve()
        cluster.start()
        yield cluster
    finally:
        cluster.close()


def told(mesh: LabelledCluster) -> int:
    """How many Events wait."""
    line = next(each for each in mesh.agents[0].metrics().splitlines() if each.startswith("nodeproxy_pod_events_waiting "))
    return int(float(line.split()[1]))


def test_pods_are_put_in_whose_workloads_are_asked_for_by_name(mesh: LabelledCluster) -> None:
    pods = [mesh.run(f"asked-{number}") for number in range(2)]
    for pod in pods:
        pod.tell()
    mesh.wait_in(*pods)
    client, server = (pod.pod for pod in pods)
    with server.listen(7000) as listener, client.connect(server.ip, 7000) as ours:
        theirs, _ = listener.accept()
        with theirs:
            ours.sendall(b"x")
            assert exactly(theirs, 1) == b"x"
    rows = mesh.rows()
    assert [rows[pod.key]["identity"] for pod in pods] == [client.identity, server.identity]
    for pod in pods:
        pod.end()
    mesh.wait_out(*pods)


def test_connections_from_before_are_ended(mesh: LabelledCluster) -> None:
    pod, outside = mesh.run("stood"), mesh.run("outside")
    for each in (pod, outside):
        each.tell(Membership.UNLABELLED)
    before = told(mesh)
    with outside.pod.listen(7001) as listener, pod.pod.connect(outside.pod.ip, 7001) as ours:
        theirs, _ = listener.accept()
        with theirs:
            ours.sendall(b"x")
            assert exactly(theirs, 1) == b"x"
            pod.tell()
            mesh.wait_in(pod)
            with pytest.raises(ConnectionError):
                wait_until(lambda: ours.recv(1), "it is ended")
            assert mesh.rows()[pod.key]["standing_connections"] == 0
            with pod.pod.connect(outside.pod.ip, 7001):  # again, through the mesh
                listener.accept()[0].close()
    wait_until(lambda: told(mesh) == before + 2, "that it is in, and that it had a connection")
    pod.tell(Membership.UNLABELLED)
    mesh.wait_out(pod)
    wait_until(lambda: told(mesh) == before + 3, "and that it has left")
    pod.tell()
    mesh.wait_in(pod)
    assert told(mesh) == before + 3  # the same once more
