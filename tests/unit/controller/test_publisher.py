"""When subscribers are woken, and what a publisher does with what can't be sent or is rejected."""

from __future__ import annotations

import asyncio
import logging

import pytest
from prometheus_client import CollectorRegistry

from nodeproxy.controller import publisher as module
from nodeproxy.controller.bucket import Bucket
from nodeproxy.controller.publisher import Publisher
from nodeproxy.controller.xds_metrics import XdsMetrics
from nodeproxy.controller.xds_session import Session
from nodeproxy.model.delta import Delta
from nodeproxy.model.policy import Action, Policy, PolicyScope
from nodeproxy.proto import discovery_pb2
from nodeproxy.xds.names import ADDRESS, AUTHORIZATION
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
        publisher.rejected(ADDRESS, "a: unknown protocol; b: bad address", client)
        publisher.rejected(AUTHORIZATION, "something: else", client)
    assert [record.getMessage().count("rejects") for record in caplog.records] == [1, 1, 1]
    publisher.publish(Delta(workloads=(pod("a", "10.0.0.1"),)))
    publisher.rejected(ADDRESS, "a: unknown protocol", "ztunnel~1")
    assert len(caplog.records) == 4
    assert registry.get_sample_value("nodeproxy_controller_xds_nacks_total", {"kind": "address"}) == 3
    # What a hostile client says is neither kept nor logged without end.
    for number in range(1000):
        publisher.rejected(ADDRESS, f"hostile {number}", "x")
    assert len(caplog.records) < 150
    publisher._log_lines = Bucket(1e9, 1e9)
    monkeypatch.setattr(module, "_MAX_REJECTIONS", 100)
    for number in range(110):
        publisher.rejected(ADDRESS, f"other {number}", "x")
    assert len(publisher._rejections) == 100
