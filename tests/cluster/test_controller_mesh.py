"""From an empty API server to pods in mutual TLS, with nothing but nodeproxy; and what goes on as its control plane dies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.replica import Controller
from tests.cluster.world import World
from tests.mesh.attempts import is_open
from tests.mesh.cluster import wait_until
from tests.mesh.evidence import rows_of


@pytest.fixture(scope="module")
def world(definitions: list[Path]) -> Iterator[World]:
    made = World.of_controller(definitions)
    try:
        made.fill()
        yield made
    finally:
        made.close()


def test_pods_talk_mutual_tls_by_the_controllers_certificates(world: World) -> None:
    world.shows_mutual_tls()


def test_a_policy_closes_live_connections_within_a_second(world: World, record_property: pytest.RecordProperty) -> None:
    what = "a DENY in the API server until a live connection of another node is closed (controller)"
    record_property(what, world.shows_a_denial())


def test_connections_go_on_while_the_control_plane_is_away(world: World) -> None:
    """The controller, the API server and etcd die one after the other; then an agent as well."""
    standing = world.connect()
    assert isinstance(world.control, Controller)
    world.control.kill()
    world.connect().close()
    world.api.kill_apiserver()
    world.connect().close()
    world.api.kill_etcd()
    world.connect().close()
    assert is_open(standing)
    standing.close()
    for agent in world.cluster.agents:
        world.restart(agent)
    told = [len(rows_of(agent)) for agent in world.cluster.agents]
    world.connect().close()
    for agent, count in zip(world.cluster.agents, told, strict=True):
        (row,) = wait_until(lambda agent=agent, count=count: rows_of(agent)[count:], "the connection is in the log")
        assert (row["src.identity"], row["dst.identity"]) == (world.client.identity, world.server.identity), row

    world.api.start_etcd()
    world.api.start_apiserver()
    world.control.start()
    late = world.pod(0, "late")
    world.enrol(late)
    wait_until(lambda: world.answers(late), "a new pod talks")
    wait_until(
        lambda: all(each.get("/status")["state"]["connection"]["connected"] for each in world.cluster.agents),
        "agents are connected",
        30,
    )
