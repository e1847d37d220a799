"""Whatever a server says of a node's pods: what is understood is in the roster and the store alike, and nothing breaks."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from nodeproxy.agent.pods.roster import Roster
from nodeproxy.agent.sources.xds_node_pods import NODE_TYPES, NodePodsApplier
from nodeproxy.agent.sources.xds_rejected import RejectedResources
from nodeproxy.errors import ResourceError
from nodeproxy.proto import discovery_pb2, node_pb2
from nodeproxy.xds.message import Response
from nodeproxy.xds.names import MESH_NAMESPACE, NODE_POD
from tests.unit.agent.sources.xds_agent import StoreAgent

NAMES = ("a", "b", "ns", "", "x/y", "é", "x" * 490)


def resource(chance: random.Random, type_url: str) -> discovery_pb2.Resource:
    namespace, name = chance.choice(NAMES), chance.choice(NAMES)
    if type_url == NODE_POD:
        membership = chance.randrange(8)
        message = node_pb2.NodePod(namespace=namespace, name=name, pod_uid=chance.choice(NAMES))
        message.membership = membership  # type: ignore[assignment]
        if chance.random() < 0.5:
            message.workload.uid, message.workload.namespace = chance.choice(NAMES), namespace
        raw, own = message.SerializeToString(), f"{namespace}/{name}"
    else:
        raw, own = node_pb2.MeshNamespace(name=name, labelled=chance.random() < 0.5).SerializeToString(), name
    if chance.random() < 0.2:
        raw = bytes(byte ^ (chance.random() < 0.1) * chance.randrange(256) for byte in raw)
    made = discovery_pb2.Resource(name=own if chance.random() < 0.9 else chance.choice(NAMES), version=str(chance.random()))
    made.resource.type_url = type_url if chance.random() < 0.95 else NODE_TYPES[0]
    made.resource.value = raw
    return made


@pytest.mark.parametrize("seed", range(5))
def test_roster_and_store_agree(tmp_path: Path, seed: int) -> None:
    async def scenario() -> None:
        chance = random.Random(seed)
        agent = StoreAgent(tmp_path / "s")
        roster = Roster(agent.state)
        applier = NodePodsApplier(agent, RejectedResources(), roster)
        for number in range(60):
            type_url = chance.choice(NODE_TYPES)
            response = discovery_pb2.DeltaDiscoveryResponse(type_url=type_url, nonce=str(number))
            response.resources.extend(resource(chance, type_url) for _ in range(chance.randrange(6)))
            known = [pod.key for pod in roster.pods()] if type_url == NODE_POD else sorted(roster.namespaces())
            response.removed_resources.extend([*chance.sample(known, min(len(known), 1)), chance.choice(NAMES)])
            try:
                parsed = Response(response.SerializeToString())
            except ResourceError:
                continue
            outcome = await applier.apply(parsed)
            assert outcome.count <= len(response.resources)
            kept = Roster(agent.state)
            assert (kept.pods(), kept.namespaces()) == (roster.pods(), roster.namespaces())
            assert all(pod.membership.in_mesh is (pod.workload is not None) for pod in roster.pods())
        assert {MESH_NAMESPACE, NODE_POD} == set(NODE_TYPES)
        agent.close()

    asyncio.run(scenario())
