"""Whatever happens between a server and its clients, in whatever order: once it is quiet, a client has what it subscribed to."""

from __future__ import annotations

import random

import pytest

from nodeproxy.controller.xds.limits import StreamEnd
from nodeproxy.controller.xds.session import PassedOver, Rejected, Session
from nodeproxy.controller.xds.tables import Table
from nodeproxy.errors import CallerError
from nodeproxy.proto import discovery_pb2 as discovery
from nodeproxy.xds.encode import encode_service, encode_workload
from nodeproxy.xds.names import ADDRESS, WILDCARD
from tests.unit.state.builders import pod, service

NAMES = tuple("abcdefgh")
IPS = tuple(f"10.0.0.{number}" for number in range(6))
NODES = ("n1", "n2", "")
SERVICES = ("s1", "s2", "s3")
KEYS = (*NAMES, *(f"/{ip}" for ip in IPS), *(f"ns/{name}.svc" for name in SERVICES), "nobody", "/10.9.9.9")
SEEDS = range(30)
STEPS = 400


class World:
    """A table that changes by chance, and its readers."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        # So few removed names are kept that now and then a client is too far behind.
        self.table = Table(ADDRESS, max_removed=3)
        self.clients = [Client(self, on_demand=bool(number % 2), node=NODES[number % 3]) for number in range(4)]

    def change(self) -> None:
        choice = self.random.choice
        match self.random.randrange(4):
            case 0:
                self.table.remove(choice(NAMES), 0.0)
            case 1:
                self.table.remove(f"ns/{choice(SERVICES)}.svc", 0.0)
            case 2:
                vips = self.random.sample(IPS, self.random.randrange(2))
                self.table.put(encode_service(service(choice(SERVICES), *vips, ports={80: self.random.randrange(3)})), 0.0)
            case _:
                members = self.random.sample(SERVICES, self.random.randrange(3))
                services = {f"ns/{name}.svc": {80: 1} for name in members}
                addresses = self.random.sample(IPS, self.random.randrange(3))
                self.table.put(encode_workload(pod(choice(NAMES), *addresses, services=services, node=choice(NODES))), 0.0)

    def round(self) -> None:
        self.table.release()
        seen = [s.seen for client in self.clients for s in client.session.subscriptions.values() if s.seen is not None]
        self.table.forget(min([*seen, self.table.released]))

    def settle(self) -> None:
        self.round()
        for client in self.clients:
            client.acknowledge()
            while client.read():
                client.acknowledge()


class Client:
    def __init__(self, world: World, *, on_demand: bool, node: str) -> None:
        self.world, self.on_demand, self.node = world, on_demand, node
        self.has: dict[str, str] = {}
        self.keys: set[str] = set()
        self.unacknowledged = ""
        self.resumed = 0
        self.connect()

    def connect(self) -> None:
        """The client keeps what it has, and names it; ztunnel names what it asked for as well, without versions."""
        chance = self.world.random.random
        self.session = Session([self.world.table], node=self.node, clock=lambda: 0.0)
        self.unacknowledged = ""
        versions = {key: "" for key in self.keys} if self.on_demand else {}
        versions |= {name: version if chance() < 0.8 else "" for name, version in self.has.items()}
        if self.on_demand:
            # Server and client agree: what is named is subscribed to.
            self.keys |= set(versions)
        names = [WILDCARD] if self.on_demand else []
        self.send(names, names, versions)

    def send(self, subscribe=(), unsubscribe=(), versions=None, nonce="", error="") -> list[object]:  # type: ignore[no-untyped-def]
        request = discovery.DeltaDiscoveryRequest(
            type_url=ADDRESS,
            resource_names_subscribe=subscribe,
            resource_names_unsubscribe=unsubscribe,
            initial_resource_versions=versions or {},
            response_nonce=nonce,
        )
        if error:
            request.error_detail.message = error
        return list(self.session.receive(request.SerializeToString()))

    def read(self) -> bool:
        try:
            push = self.session.respond()
        except CallerError as exc:
            if exc.reason != StreamEnd.BEHIND:
                raise
            self.resumed += 1
            self.connect()
            return True
        if push is None:
            return False
        response = discovery.DeltaDiscoveryResponse.FromString(push.message)
        assert (len(response.resources), len(response.removed_resources)) == (push.resources, push.removed)
        assert not {r.name for r in response.resources} & set(response.removed_resources)
        assert not self.unacknowledged
        self.unacknowledged = response.nonce
        self.has.update({resource.name: resource.version for resource in response.resources})
        for name in response.removed_resources:
            self.has.pop(name, None)
        return True

    def acknowledge(self) -> None:
        if self.unacknowledged:
            rejects = self.world.random.random() < 0.1
            events = self.send(nonce=self.unacknowledged, error="no" if rejects else "")
            assert isinstance(events[0], Rejected) == rejects
            self.unacknowledged = ""

    def ask(self) -> None:
        choice = self.world.random.choice
        if self.on_demand and self.world.random.random() < 0.6:
            keys = self.world.random.sample(KEYS, 2)
            self.keys.update(keys)
            self.send(keys)
        elif self.on_demand:
            key = choice(KEYS)
            self.keys.discard(key)
            self.send((), [key])
        else:
            assert self.send(nonce=f"old-{choice(KEYS)}") == [PassedOver(ADDRESS, "nonce")]

    def wanted(self) -> dict[str, str]:
        table = self.world.table
        if not self.on_demand:
            return {name: resource.version for name, resource in table.resources.items()}
        found = [resource for key in self.keys for resource in table.find(key)]
        found += table.on_node(self.node)
        return {resource.name: resource.version for resource in found}


@pytest.mark.parametrize("seed", SEEDS)
def test_every_client_ends_up_with_what_it_subscribed_to(seed: int) -> None:
    world = World(seed)
    for _ in range(STEPS):
        client = world.random.choice(world.clients)
        match world.random.randrange(12):
            case 0:
                client.connect()
            case 1 | 2:
                client.ask()
            case 3 | 4:
                client.read()
            case 5 | 6:
                client.acknowledge()
            case 7:
                world.round()
            case _:
                world.change()
        if world.random.random() < 0.05:
            check(world)
    check(world)


def check(world: World) -> None:
    world.settle()
    for client in world.clients:
        wanted = client.wanted()
        if client.on_demand:
            # It may have more, of what it once asked for: then of the latest version.
            current = {name: resource.version for name, resource in world.table.resources.items()}
            assert wanted.items() <= client.has.items()
            assert client.has.items() <= current.items()
        else:
            assert client.has == wanted


def test_clients_fell_behind_and_resumed() -> None:
    """Else the above would not show that they may."""
    world = World(1)
    for _ in range(200):
        for _ in range(20):
            world.change()
        world.table.release()
        check(world)
    assert sum(client.resumed for client in world.clients) > 0
