"""The same agents with a real istiod for a control plane, in the place of ztunnel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.kinds import endpoint_slice, make
from tests.cluster.mesh import SPACE
from tests.cluster.world import World
from tests.mesh.cluster import wait_until


@pytest.fixture(scope="module")
def world(definitions: list[Path]) -> Iterator[World]:
    made = World.of_istiod(definitions)
    try:
        made.fill()
        yield made
    finally:
        made.close()


def test_pods_talk_mutual_tls_by_istiods_certificates(world: World) -> None:
    world.shows_mutual_tls()


def test_a_policy_closes_live_connections_within_a_second(world: World, record_property: pytest.RecordProperty) -> None:
    what = "a DENY in the API server until a live connection of another node is closed (istiod)"
    record_property(what, world.shows_a_denial())


def test_strict_peer_authentication_refuses_plaintext(world: World) -> None:
    outside = world.outsider(0, "outside")
    world.api.create(make("PeerAuthentication", "default", SPACE, spec={"mtls": {"mode": "STRICT"}}))
    wait_until(lambda: not world.answers(outside, world.server.ip), "plaintext is refused")
    assert world.answers()
    world.api.delete("PeerAuthentication", "default", SPACE)
    wait_until(lambda: world.answers(outside, world.server.ip), "plaintext is let in again")


def test_a_services_waypoint_arrives(world: World) -> None:
    """Its service and its pod are what istiod's and the Deployments' controllers would make of the Gateway."""
    listener = {"name": "mesh", "port": 15008, "protocol": "HBONE"}
    world.api.create(make("Gateway", "wp", SPACE, spec={"gatewayClassName": "istio-waypoint", "listeners": [listener]}))
    labels = {"gateway.networking.k8s.io/gateway-name": "wp"}
    world.service("wp", {15008: 15008}, labels, labels=labels)
    waypoint = world.pod(1, "wp", labels=labels)
    world.api.create(endpoint_slice("wp", SPACE, {"wp": waypoint.ip}, {"p15008": 15008}))
    world.api.patch("Service", "api", SPACE, metadata={"labels": {"istio.io/use-waypoint": "wp"}})

    def through_waypoint() -> bool:
        found = world.cluster.agents[0].get("/why", source=world.client.uid, destination=f"{world.vip}:80")
        return f"{waypoint.ip}:15008" in str(found)

    wait_until(through_waypoint, "connections to the service go to its waypoint", 20)
    world.api.patch("Service", "api", SPACE, metadata={"labels": {"istio.io/use-waypoint": None}})
    wait_until(world.answers, "connections go to the server again", 20)


def test_it_resumes_and_is_told_what_has_gone(world: World) -> None:
    agent = world.cluster.agents[0]
    before = agent.get("/status")["state"]
    world.control.close()
    world.connect().close()
    world.restart(agent)
    world.connect().close()
    world.api.delete("Service", "api", SPACE)
    world.control.start()
    wait_until(lambda: agent.get("/status")["state"]["connection"]["connected"], "it is connected again", 60)
    fewer = before["services"] - 1
    wait_until(lambda: agent.get("/status")["state"]["services"] == fewer, "it is told that the service has gone", 60)
    assert agent.get("/status")["state"]["epoch"] <= before["epoch"] + 4  # what it had was not written again
