from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from nodeproxy.agent.pods.roster import Roster
from nodeproxy.agent.sources.xds import XdsSource
from nodeproxy.model.node_pod import Membership, MeshNamespace, NodePod
from nodeproxy.model.workload import Workload
from nodeproxy.proto import node_pb2
from nodeproxy.xds.names import ADDRESS, AUTHORIZATION, MAX_NAME_BYTES, MESH_NAMESPACE, NODE_POD
from tests.unit.agent.sources.xds_agent import ABOUT, StoreAgent, control, until
from tests.xds_server import ControlPlaneServer, pod

IN = Workload(uid="Kubernetes//Pod/ns/a", name="a", namespace="ns", addresses=("10.0.0.1",))


def node_pod(name: str, membership: Membership = Membership.UNLABELLED, uid: str = "u") -> NodePod:
    return NodePod(namespace="ns", name=name, pod_uid=uid, membership=membership, workload=IN if membership.in_mesh else None)


@pytest.fixture
def server() -> Iterator[ControlPlaneServer]:
    made = ControlPlaneServer()
    yield made
    made.stop()


@contextlib.asynccontextmanager
async def followed(store: Path, url: str, **more: bool) -> AsyncIterator[tuple[StoreAgent, Roster, XdsSource]]:
    agent = StoreAgent(store)
    roster = Roster(agent.state)
    source = XdsSource(agent, control(url), ABOUT, roster=roster, **more)
    agent.source = source.name
    task = asyncio.create_task(source.run())
    try:
        yield agent, roster, source
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        agent.close()


def test_the_nodes_pods_are_told_after_all_else_and_kept(tmp_path: Path, server: ControlPlaneServer) -> None:
    async def scenario() -> None:
        server.put(pod("a", "10.0.0.1"))
        server.put_node(MeshNamespace(name="ns", labelled=True), node_pod("a", Membership.NAMESPACE_LABEL), node_pod("b"))
        url = server.start()
        async with followed(tmp_path / "s", url) as (agent, roster, _):
            await until(lambda: agent.settled, "all is answered")
            first = list(dict.fromkeys(request.type_url for request in server.streams[0].requests))
            assert first == [AUTHORIZATION, ADDRESS, MESH_NAMESPACE, NODE_POD]
            assert roster.received
            assert [each.key for each in roster.pods()] == ["ns/a", "ns/b"]
            assert roster.namespaces() == {"ns"}
            server.put_node(node_pod("b", Membership.POD_LABEL), node_pod("c"))
            server.remove(NODE_POD, "ns/a")
            await until(lambda: roster.pod("ns", "a") is None, "it has ended")
            assert roster.pod("ns", "b") == node_pod("b", Membership.POD_LABEL)
        server.remove(MESH_NAMESPACE, "ns")
        async with followed(tmp_path / "s", url) as (agent, roster, _):
            assert roster.received  # before the server has spoken
            assert [each.key for each in roster.pods()] == ["ns/b", "ns/c"]
            await until(lambda: agent.settled, "all is answered")
            known = dict(server.requests(NODE_POD)[0].initial_resource_versions)
            assert known == {name: version for name, (_, version, _) in server.resources[NODE_POD].items()}
            assert roster.namespaces() == frozenset()
        assert server.nacks() == []

    asyncio.run(scenario())


def test_another_source_says_which_pods_it_does_not_know(tmp_path: Path, server: ControlPlaneServer) -> None:
    async def scenario() -> None:
        server.put_node(node_pod("a"), node_pod("b"))
        async with followed(tmp_path / "s", server.start()) as (agent, _, _source):
            await until(lambda: agent.settled, "all is answered")
        server.stop()
        server.remove(NODE_POD, "ns/a")
        async with followed(tmp_path / "s", server.start()) as (agent, roster, _source):
            await until(lambda: agent.settled, "all is answered")
            assert dict(server.requests(NODE_POD)[0].initial_resource_versions) == {"ns/a": "", "ns/b": ""}
            assert [each.key for each in roster.pods()] == ["ns/b"]

    asyncio.run(scenario())


def test_what_is_not_understood_stays_as_it_was(tmp_path: Path, server: ControlPlaneServer) -> None:
    async def scenario() -> None:
        server.put_node(node_pod("a", Membership.POD_LABEL))
        async with followed(tmp_path / "s", server.start()) as (agent, roster, source):
            await until(lambda: agent.settled, "all is answered")
            wrong = node_pb2.NodePod(namespace="ns", name="a", pod_uid="u", membership=99)  # type: ignore[arg-type]
            server.put_raw(NODE_POD, "ns/a", wrong.SerializeToString())
            await until(lambda: len(server.nacks()) == 1, "it is rejected")
            assert roster.pod("ns", "a") == node_pod("a", Membership.POD_LABEL)
            server.put_raw(NODE_POD, "ns/other", node_pb2.NodePod(namespace="ns", name="x", pod_uid="u").SerializeToString())
            await until(lambda: len(server.nacks()) == 2, "it is rejected")
            assert "it calls itself 'ns/x'" in server.nacks()[1]
            name = "x" * (MAX_NAME_BYTES + 1)
            server.put_raw(MESH_NAMESPACE, name, node_pb2.MeshNamespace(name=name).SerializeToString())
            await until(lambda: len(server.nacks()) == 3, "it is rejected")
            server.put_node(node_pod("a"))
            await until(lambda: roster.pod("ns", "a") == node_pod("a"), "it is understood again")
            assert source.statistics().rejected_now == {NODE_POD: 1, MESH_NAMESPACE: 1}

    asyncio.run(scenario())


def test_beside_on_demand(tmp_path: Path, server: ControlPlaneServer) -> None:
    async def scenario() -> None:
        server.put(pod("a", "10.0.0.1"))
        server.put_node(node_pod("a", Membership.POD_LABEL))
        connected: list[bool] = []

        class Listener:
            async def arrived(self, keys: object, gone: object) -> None: ...
            def connected(self, is_connected: bool) -> None:
                connected.append(is_connected)

        async with followed(tmp_path / "s", server.start(), on_demand=True) as (agent, roster, source):
            source.listener = Listener()
            await until(lambda: agent.settled and True in connected, "all is answered")
            assert [each.key for each in roster.pods()] == ["ns/a"]
            assert agent.view().counts()["workloads"] == 0

    asyncio.run(scenario())


def test_a_server_that_does_not_know_of_nodes_pods(
    tmp_path: Path, server: ControlPlaneServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        server.silent.add(MESH_NAMESPACE)
        async with followed(tmp_path / "s", server.start()) as (agent, roster, source):
            await until(lambda: source.connection().error, "it gives up")
            assert "needs nodeproxy's own controller" in source.connection().error
            assert (agent.settled, roster.received) == (0, False)

    monkeypatch.setattr("nodeproxy.agent.sources.xds.ANSWER_TIMEOUT_S", 0.1)
    asyncio.run(scenario())
