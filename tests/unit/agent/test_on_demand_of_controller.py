"""Asking nodeproxy's own controller: both ends as they are, over loopback."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeproxy.agent.on_demand import OnDemand
from nodeproxy.agent.sources.xds import XdsSource
from nodeproxy.agent.sources.xds_kept import DemandChange
from nodeproxy.controller.ads import Metadata
from nodeproxy.model.delta import Delta
from nodeproxy.model.messages import NamesAnswered
from tests.unit.agent.sources.xds_agent import ABOUT, StoreAgent, control, until
from tests.unit.state.builders import pod, service
from tests.xds_service import Somebody, XdsServer

MEMBER = {"ns/s.svc": {80: 1}}


async def anybody(metadata: Metadata, peer: str) -> Somebody:
    return Somebody(node="n1", pod_uid="agent")


@pytest.fixture
def server() -> Iterator[XdsServer]:
    with XdsServer(anybody) as made:
        crowd = (pod(f"crowd{number}", f"10.5.0.{number}") for number in range(100))
        own = pod("own", "10.0.0.9", node="n1")
        made.publish(Delta((pod("a", "10.0.0.1", services=MEMBER), own, *crowd), (service("s", "10.1.0.1"),)))
        yield made


def test_a_node_asks_the_controller(tmp_path: Path, server: XdsServer) -> None:
    async def scenario() -> None:
        agent = StoreAgent(tmp_path)
        told: list[NamesAnswered] = []

        async def write(delta: Delta) -> None:
            await agent.apply(DemandChange(delta))

        source = XdsSource(agent, control(f"http://{server.target}"), ABOUT, on_demand=True)
        demand = source.listener = OnDemand(agent.view, write, lambda slot, message: told.append(message))
        await demand.start(source)
        task = asyncio.create_task(source.run())

        async def ask(*names: str) -> None:
            told.clear()
            demand.wanted(0, "pod", names)
            await until(lambda: {name for message in told for name in message.names} == set(names), "it is answered")

        await until(lambda: source.connected, "it is connected")
        await ask("/10.1.0.1", "/10.9.9.9", "ns/none.svc")
        assert agent.view().counts() == {"workloads": 2, "services": 1, "policies": 0}, "its own pods come unasked"
        assert agent.view().is_absent("/10.9.9.9")
        assert agent.view().is_absent("ns/none.svc")
        # Once more: that nothing comes and goes meanwhile.
        epoch, answers = agent.state.epoch, demand.statistics().answers["present"]
        source.ask_again(["/10.1.0.1", "/10.9.9.9"])
        await until(lambda: demand.statistics().answers["present"] > answers, "it is answered once more")
        assert agent.state.epoch == epoch
        # Who takes an address that nobody had, and a new endpoint, are told of.
        server.publish(Delta((pod("late", "10.9.9.9"), pod("b", "10.0.0.7", services=MEMBER))))
        await until(lambda: agent.view().workload_at("", "10.9.9.9"), "it has come")
        await until(lambda: agent.view().count_endpoints("ns/s.svc") == 2, "it has come")
        assert not agent.view().is_absent("/10.9.9.9")
        # Who has gone leaves a question.
        server.publish(Delta(removed_workloads=("late",)))
        await until(lambda: agent.view().workload_at("", "10.9.9.9") is None, "it has gone")
        await ask("/10.9.9.9")
        assert agent.view().is_absent("/10.9.9.9")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        agent.close()

    asyncio.run(scenario())
