"""When subscribers are woken, and what a publisher does with what can't be sent or is rejected."""

from __future__ import annotations

import asyncio
import logging

import pytest
from prometheus_client import CollectorRegistry

from nodeproxy.controller.bucket import Bucket
from nodeproxy.controller.xds import publisher as module
from nodeproxy.controller.xds.metrics import XdsMetrics
from nodeproxy.controller.xds.publisher import Publisher
from nodeproxy.controller.xds.session import Session
from nodeproxy.model.delta import Delta
from nodeproxy.model.node_pod import Membership, MeshNamespace, NodePod
from nodeproxy.model.policy import Action, Policy, PolicyScope
from nodeproxy.proto import discovery_pb2
from nodeproxy.xds.names import ADDRESS, AUTHORIZATION, MESH_NAMESPACE, NODE_POD
from tests.unit.state.builders import pod, service

POLICY = Policy(name="p", namespace="ns", scope=PolicyScope.NAMESPACE, action=Action.DENY)


class Subscriber:
    def __init__(self, publisher: Publisher) -> None:
        self.session = Session(publisher.tables, node="", clock=publisher.clock)
        self.woken = asyncio.Event()
        self.times = 0

    def wake(self) -> None:
        self.times += 1
        self.woken.set()

    def subscribe(self) -> None:
        self.session.receive(discovery_pb2.DeltaDiscoveryRequest(type_url=ADDRESS).SerializeToString())

    def told(self) -> list[str]:
        push = self.session.respond()
        if push is None:
            return []
        response = discovery_pb2.DeltaDiscoveryResponse.FromString(push.message)
        request = discovery_pb2.DeltaDiscoveryRequest(type_url=push.type_url, response_nonce=push.nonce)
        self.session.receive(request.SerializeToString())
        return [resource.name for resource in response.resources]


def make() -> tuple[Publisher, CollectorRegistry]:
    registry = CollectorRegistry()
    return Publisher(XdsMetrics(registry)), registry


def test_a_lone_change_is_told_at_once_and_a_burst_together() -> None:
    async def body() -> None:
        publisher, _ = make()
        publisher.start()
        subscriber = Subscriber(publisher)
        publisher.join(subscriber)
        subscriber.subscribe()
        subscriber.told()
        loop = asyncio.get_running_loop()
        began = loop.time()
        publisher.publish(Delta(workloads=(pod("a"),)))
        assert subscriber.told() == []  # what else is published in this turn goes with it
        publisher.publish(Delta(workloads=(pod("b"),)))
        await subscriber.woken.wait()
        assert loop.time() - began < module.ROUND_S / 2
        assert subscriber.told() == ["a", "b"]
        subscriber.woken.clear()
        for number in range(20):
            publisher.publish(Delta(workloads=(pod("a", f"10.0.0.{number}"),)))
            await asyncio.sleep(0)
        await subscriber.woken.wait()
        assert loop.time() - began >= module.ROUND_S * 0.9
        assert subscriber.told() == ["a"]
        assert subscriber.times == 2
        publisher.publish(Delta(workloads=(pod("a", "10.0.0.19"),)))  # nothing new
        assert publisher.statistics().kept <= 1
        publisher.close()

    asyncio.run(asyncio.wait_for(body(), 5.0))


def test_many_subscribers_make_rounds_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROUND_S", 0.0)
    monkeypatch.setattr(module, "ROUND_S_A_CLIENT", 0.05)

    async def body() -> None:
        publisher, _ = make()
        publisher.start()
        subscribers = [Subscriber(publisher) for _ in range(2)]
        for subscriber in subscribers:
            publisher.join(subscriber)
        loop = asyncio.get_running_loop()
        publisher.publish(Delta(workloads=(pod("a"),)))
        await subscribers[0].woken.wait()
        began = loop.time()
        subscribers[0].woken.clear()
        publisher.publish(Delta(workloads=(pod("b"),)))
        await subscribers[0].woken.wait()
        assert loop.time() - began >= 0.09
        assert [subscriber.times for subscriber in subscribers] == [2, 2]

    asyncio.run(asyncio.wait_for(body(), 5.0))


def test_what_everybody_has_been_told_is_forgotten_and_what_one_has_not_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROUND_S", 0.0)
    monkeypatch.setattr(module, "ROUND_S_A_CLIENT", 0.0)

    async def body() -> None:
        publisher, registry = make()
        publisher.publish(Delta(workloads=(pod("a"), pod("b")), services=(service("s"),), policies=(POLICY,)))
        publisher.start()
        assert publisher.statistics().kept == 0
        slow, fast = Subscriber(publisher), Subscriber(publisher)
        for subscriber in (slow, fast):
            publisher.join(subscriber)
            subscriber.subscribe()
        fast.told()
        slow.session.respond()  # never acknowledged
        for number in range(50):
            fast.woken.clear()
            publisher.publish(Delta(workloads=(pod(f"x{number % 5}", f"10.0.0.{number}"),)))
            await fast.woken.wait()
            fast.told()
        assert publisher.statistics().kept == 5
        assert registry.get_sample_value("nodeproxy_controller_xds_pending") == publisher.statistics().pending > 0
        publisher.leave(slow)
        publisher.publish(Delta(removed_workloads=("a", "never-there"), removed_policies=(POLICY.key,)))
        fast.woken.clear()
        await fast.woken.wait()
        assert publisher.statistics().kept == 1
        statistics = publisher.statistics()
        assert (statistics.addresses, statistics.policies, statistics.subscribers) == (7, 0, 1)
        publisher.close()

    asyncio.run(asyncio.wait_for(body(), 5.0))


def node_pod(name: str, uid: str = "u") -> NodePod:
    return NodePod(namespace="ns", name=name, pod_uid=uid, membership=Membership.POD_LABEL, workload=pod(name))


class Agent(Subscriber):
    """The proxy of a node ("": of none)."""

    def __init__(self, publisher: Publisher, node: str) -> None:
        super().__init__(publisher)
        publisher.join(self)
        for type_url in (NODE_POD, MESH_NAMESPACE, AUTHORIZATION, ADDRESS):
            self.session.receive(discovery_pb2.DeltaDiscoveryRequest(type_url=type_url).SerializeToString())
            if self.session.awaits_place:
                self.session.place(publisher.place(self, node))
        self.first = [self.told() for _ in range(4)]


def test_nodes_are_told_of_their_own_pods_and_nobody_else_is_woken() -> None:
    async def body() -> None:
        publisher, registry = make()
        publisher.publish(Delta(node_pods=(("n1", node_pod("a")), ("n2", node_pod("b")))))
        publisher.publish(Delta(mesh_namespaces=(MeshNamespace(name="ns", labelled=False),)))
        publisher.start()
        agents = [Agent(publisher, node) for node in ("n1", "n2", "n3", "")]
        assert [agent.first[:2] for agent in agents] == [[["ns/a"], ["ns"]], [["ns/b"], ["ns"]], [[], ["ns"]], [[], []]]
        publisher.publish(Delta(node_pods=(("n1", node_pod("c")),)))
        publisher.publish(Delta(node_pods=(("n1", node_pod("d")),)))
        await agents[0].woken.wait()
        assert [agent.times for agent in agents] == [1, 0, 0, 0]
        assert agents[0].told() == ["ns/c", "ns/d"]
        for kind, count in (("node_pod", 4), ("mesh_namespace", 1)):
            assert registry.get_sample_value("nodeproxy_controller_xds_resources", {"kind": kind}) == count
        for agent in agents:
            publisher.leave(agent)
        publisher.close()

    asyncio.run(asyncio.wait_for(body(), 5.0))


def test_a_pod_is_told_its_node_after_its_policies_and_before_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        publisher, _ = make()
        publisher.start()
        agent = Agent(publisher, "n1")
        publisher.publish(Delta(policies=(POLICY,)))
        publisher.publish(Delta(workloads=(pod("a"),), node_pods=(("n1", node_pod("a")),)))
        publisher._tell_nodes()
        assert agent.told() == []  # as the policy has not been told yet
        await agent.woken.wait()
        assert [agent.told() for _ in range(3)] == [["ns/p"], ["ns/a"], ["a"]]
        publisher.close()

    # The round of nodes' pods is behind: the address does not overtake it.
    monkeypatch.setattr(module.Publisher, "_schedule_nodes", lambda self: None)
    asyncio.run(asyncio.wait_for(body(), 5.0))


def test_an_address_waits_until_its_node_has_taken_the_pod() -> None:
    async def body() -> None:
        publisher, _ = make()
        publisher.start()
        agent = Agent(publisher, "n1")
        publisher.publish(Delta(node_pods=(("n1", node_pod("a")),)))
        await agent.woken.wait()
        first = agent.session.respond()
        agent.woken.clear()
        publisher.publish(Delta(workloads=(pod("b"),), node_pods=(("n1", node_pod("b")),)))
        while publisher.addresses.released != publisher.addresses.revision:
            await agent.woken.wait()
            agent.woken.clear()
        assert agent.session.respond() is None
        taken = discovery_pb2.DeltaDiscoveryRequest(type_url=NODE_POD, response_nonce=first.nonce)
        agent.session.receive(taken.SerializeToString())
        assert [agent.told(), agent.told()] == [["ns/b"], ["b"]]
        publisher.close()

    asyncio.run(asyncio.wait_for(body(), 5.0))


def test_rounds_of_nodes_take_a_third_of_the_time_however_many_are_concerned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROUND_S_A_CLIENT", 0.01)

    async def body() -> None:
        publisher, _ = make()
        publisher.start()
        agents = [Agent(publisher, f"n{number}") for number in range(10)]
        publisher.publish(Delta(node_pods=tuple((f"n{number}", node_pod("a")) for number in range(10))))
        await agents[0].woken.wait()
        agents[0].woken.clear()
        began = publisher.clock()
        publisher.publish(Delta(node_pods=(("n0", node_pod("b")),)))
        await agents[0].woken.wait()
        assert publisher.clock() - began >= 0.09
        publisher.close()

    asyncio.run(asyncio.wait_for(body(), 5.0))


def test_what_cannot_be_sent_stays_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    publisher, registry = make()
    publisher.publish(Delta(workloads=(pod("a", "10.0.0.1"), pod("b"))))
    before = publisher.addresses.resources["a"]
    publisher.publish(Delta(workloads=(pod("a", "nonsense"), pod("b", "10.0.0.2"))))
    assert publisher.addresses.resources["a"] is before
    assert publisher.addresses.resources["b"].aliases == ("/10.0.0.2",)
    assert registry.get_sample_value("nodeproxy_controller_xds_unsendable_total", {"kind": "address"}) == 1
    assert "workload a can't be sent" in caplog.text


def test_a_rejection_is_logged_once_for_each_resource_and_version(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher, registry = make()
    publisher.publish(Delta(workloads=(pod("a"), pod("b")), policies=(POLICY,)))
    caplog.set_level(logging.WARNING)
    for client in ("ztunnel~1", "ztunnel~2"):
        publisher.rejected(publisher.addresses, "a: unknown protocol; b: bad address", client)
        publisher.rejected(publisher.policies, "something: else", client)
    assert [record.getMessage().count("rejects") for record in caplog.records] == [1, 1, 1]
    publisher.publish(Delta(workloads=(pod("a", "10.0.0.1"),)))
    publisher.rejected(publisher.addresses, "a: unknown protocol", "ztunnel~1")
    assert len(caplog.records) == 4
    assert registry.get_sample_value("nodeproxy_controller_xds_nacks_total", {"kind": "address"}) == 3
    # What a hostile client says is neither kept nor logged without end.
    for number in range(1000):
        publisher.rejected(publisher.addresses, f"hostile {number}", "x")
    assert len(caplog.records) < 150
    publisher._log_lines = Bucket(1e9, 1e9)
    monkeypatch.setattr(module, "_MAX_REJECTIONS", 100)
    for number in range(110):
        publisher.rejected(publisher.addresses, f"other {number}", "x")
    assert len(publisher._rejections) == 100
