"""Whatever happens to pods, nodes and streams: an agent ends up with the pods of its own node, and never has others."""

from __future__ import annotations

import random

import pytest

from nodeproxy.controller.xds.node_tables import NodeTables
from nodeproxy.controller.xds.session import Session
from nodeproxy.model.node_pod import NodePod
from nodeproxy.proto import discovery_pb2 as discovery
from nodeproxy.xds.encode import encode_node_pod
from nodeproxy.xds.names import NODE_POD

pytestmark = pytest.mark.fuzz

NODES = ("n1", "n2", "n3")
PODS = tuple("abcdef")
STEPS = 600


class Agent:
    """A node's proxy, which keeps what it has over its streams."""

    def __init__(self, world: World, node: str) -> None:
        self.world, self.node = world, node
        self.has: dict[str, str] = {}
        self.woken = False
        self.connect()

    def wake(self) -> None:
        self.woken = True

    def connect(self) -> None:
        self.session = Session((), node="", clock=lambda: 0.0)
        self.unacknowledged = ""
        # Some have lost what they had, or say that they have something else.
        had = {name: "other" if self.world.random.random() < 0.1 else version for name, version in self.has.items()}
        if self.world.random.random() < 0.2:
            had = self.has = {}
        self.send(versions=had)
        assert self.session.awaits_place
        self.session.place([self.world.tables.join(self.node, self)])
        self.woken = True

    def disconnect(self) -> None:
        self.world.tables.leave(self.node, self)

    def send(self, nonce: str = "", versions: dict[str, str] | None = None) -> None:
        request = discovery.DeltaDiscoveryRequest(
            type_url=NODE_POD, response_nonce=nonce, initial_resource_versions=versions or {}
        )
        self.session.receive(request.SerializeToString())

    def read(self) -> bool:
        push = self.session.respond()
        if push is None:
            return False
        response = discovery.DeltaDiscoveryResponse.FromString(push.message)
        self.unacknowledged = response.nonce
        for resource in response.resources:
            assert resource.name in self.world.ever[self.node]
            self.has[resource.name] = resource.version
        for name in response.removed_resources:
            self.has.pop(name, None)
        return True

    def acknowledge(self) -> None:
        if self.unacknowledged:
            self.send(self.unacknowledged)
            self.unacknowledged = ""


class World:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.tables = NodeTables()
        self.there: dict[str, dict[str, str]] = {node: {} for node in NODES}
        self.ever: dict[str, set[str]] = {node: set() for node in NODES}
        # Two agents of one node, as while one is replaced; a node without an agent.
        self.agents = [Agent(self, node) for node in ("n1", "n1", "n2")]

    def change(self) -> None:
        node, name = self.random.choice(NODES), self.random.choice(PODS)
        key = f"{node}/{name}"  # its namespace says where it is, so that a stranger is known by its name
        if self.random.random() < 0.4:
            self.tables.remove(node, key, 0.0)
            self.there[node].pop(key, None)
        else:
            encoded = encode_node_pod(NodePod(namespace=node, name=name, pod_uid=str(self.random.randrange(3))))
            self.tables.put(node, encoded, 0.0)
            self.there[node][key] = encoded.version
            self.ever[node].add(key)

    def release(self) -> None:
        for agent in self.tables.release():
            agent.wake()

    def check(self) -> None:
        self.release()
        for agent in self.agents:
            agent.acknowledge()
            # An agent that nobody woke has nothing to read.
            assert agent.woken or not agent.read()
            while agent.read():
                agent.acknowledge()
            agent.woken = False
            assert agent.has == self.there[agent.node]


@pytest.mark.parametrize("seed", range(20))
def test_an_agent_has_the_pods_of_its_node_and_nobody_elses(seed: int) -> None:
    world = World(seed)
    for _ in range(STEPS):
        agent = world.random.choice(world.agents)
        match world.random.randrange(10):
            case 0:
                agent.disconnect()
                agent.connect()
            case 1 | 2:
                agent.read()
            case 3 | 4:
                agent.acknowledge()
            case 5:
                world.release()
            case _:
                world.change()
        if world.random.random() < 0.05:
            world.check()
    world.check()
    for node in NODES:
        for key in list(world.there[node]):
            world.tables.remove(node, key, 0.0)
            del world.there[node][key]
    world.check()
    for agent in world.agents:
        agent.disconnect()
    assert list(world.tables.all()) == []
