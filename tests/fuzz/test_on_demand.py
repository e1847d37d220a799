"""Random meshes, asked for name by name: the decision is that of whoever knows all, or none yet; never another one."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeproxy.decide.demand import Unanswered
from nodeproxy.decide.inbound import Admission, admit_hbone
from nodeproxy.decide.outbound import Route, outbound, outbound_on_demand
from nodeproxy.model.delta import Delta, Everything
from nodeproxy.model.reason import Refusal
from nodeproxy.model.workload import Balancing, Gateway, LoadBalancer, Protocol, Service, WeightedGateway, Workload
from nodeproxy.proxy.waiting import MAX_ROUNDS
from nodeproxy.state.balance import Balancer
from nodeproxy.state.resources import service_names, workload_names
from nodeproxy.state.store import StateWriter
from tests.unit.state.builders import pod, service

SEEDS = range(60)
NETWORKS = ("", "", "n")


class Mesh:
    """All there is; `answer` is what a control plane says that is asked for a name (istiod's Lookup: workload, then service)."""

    def __init__(self, chance: random.Random) -> None:
        self.workloads: list[Workload] = []
        self.services: list[Service] = []
        gateways = [Gateway("ns/s0.svc", is_hostname=True), Gateway("/10.96.0.0"), Gateway("/10.0.0.0"), Gateway("/192.0.2.9")]
        gateways += [Gateway("ns/none.svc", is_hostname=True)]

        def waypoint() -> Gateway | None:
            return chance.choice(gateways) if chance.random() < 0.3 else None

        for number in range(6):
            weighted = (WeightedGateway(chance.choice(gateways), 1),) if chance.random() < 0.1 else ()
            mode = chance.choice([Balancing.UNSPECIFIED] * 4 + [Balancing.PASSTHROUGH])
            vips = tuple(f"{network}/10.96.0.{number}" for network in {"", chance.choice(NETWORKS)})
            made = service(f"s{number}", waypoint=waypoint() if number else None, load_balancer=LoadBalancer(mode=mode))
            self.services.append(_with(made, vips=vips, weighted_waypoints=weighted))
        for number in range(10):
            keys = {f"ns/s{chance.randrange(7)}.svc": {} for _ in range(chance.randrange(3))}
            more = {"services": keys, "waypoint": waypoint() if number else None, "network": chance.choice(NETWORKS)}
            more |= {"protocol": chance.choice(list(Protocol)), "host_network": chance.random() < 0.1}
            more |= {"service_account": chance.choice("ab")}
            self.workloads.append(pod(f"w{number}", f"10.0.0.{number}", **more))

    def answer(self, name: str) -> Delta:
        for each in self.workloads:
            if name in workload_names(each):
                return Delta(workloads=(each,))
        for found in self.services:
            if name in service_names(found):
                return Delta(tuple(each for each in self.workloads if found.key in each.services), (found,))
        return Delta(absent=(name,))


def _with(made: Service, **more: object) -> Service:
    return Service(**{name: getattr(made, name) for name in made.__struct_fields__} | more)  # type: ignore[arg-type]


class Stores:
    """One that knows all, one that is asked."""

    def __init__(self, path: Path, mesh: Mesh) -> None:
        self.mesh = mesh
        self.all, self.asked = StateWriter(path / "all"), StateWriter(path / "asked")
        self.all.replace(Everything(tuple(mesh.workloads), tuple(mesh.services), ()))
        self.all_reader, self.asked_reader = self.all.reader(), self.asked.reader()

    def ask(self, names: tuple[str, ...]) -> None:
        for name in names:
            assert not self.asked_reader.view().is_absent(name), "it was answered"
            self.asked.apply(self.mesh.answer(name))

    def close(self) -> None:
        for each in (self.all_reader, self.asked_reader, self.all, self.asked):
            each.close()


@pytest.fixture(params=SEEDS)
def chance(request: pytest.FixtureRequest) -> random.Random:
    return random.Random(request.param)


@pytest.fixture
def stores(tmp_path: Path, chance: random.Random) -> Iterator[Stores]:
    made = Stores(tmp_path, Mesh(chance))
    yield made
    made.close()


def test_outbound_decides_as_whoever_knows_all(stores: Stores, chance: random.Random) -> None:
    addresses = [f"10.0.0.{number}" for number in range(12)] + [f"10.96.0.{number}" for number in range(8)] + ["192.0.2.9"]
    for _ in range(40):
        source, ip, port = chance.choice(stores.mesh.workloads), chance.choice(addresses), chance.choice([80, 8080, 15008])
        stores.asked.apply(Delta((source,)))
        everything = outbound(stores.all_reader.view(), source, ip, port, Balancer(1), lambda uid: uid in ("w1", "w2"))
        for _ in range(MAX_ROUNDS):
            view = stores.asked_reader.view()
            found = outbound_on_demand(view, source, ip, port, Balancer(1), lambda uid: uid in ("w1", "w2"), set())
            if not isinstance(found, Unanswered):
                break
            stores.ask(found.names)
        assert not isinstance(found, Unanswered), "a few answers are enough"
        assert _told(found) == _told(everything)


def test_inbound_decides_as_whoever_knows_all(stores: Stores, chance: random.Random) -> None:
    for _ in range(40):
        who = chance.choice([each for each in stores.mesh.workloads])
        stores.asked.apply(Delta((who,)))
        authority = chance.choice(
            [f"s{chance.randrange(8)}.svc:80", f"10.96.0.{chance.randrange(8)}:80", f"{who.addresses[0]}:80"]
        )
        arguments = (who, authority, who.addresses[0], "spiffe://cluster.local/ns/ns/sa/a", "10.0.0.1")
        everything = admit_hbone(stores.all_reader.view(), *arguments)
        for _ in range(MAX_ROUNDS):
            found = admit_hbone(stores.asked_reader.view(), *arguments, names=set())
            if not isinstance(found, Unanswered):
                break
            stores.ask(found.names)
        assert not isinstance(found, Unanswered)
        if isinstance(everything, Admission) and isinstance(found, Admission):
            assert (found.address, found.subject) == (everything.address, everything.subject), "the service is for the log alone"
        else:
            assert found == everything


def _told(found: Route | Refusal) -> object:
    if isinstance(found, Refusal):
        return found
    return found.kind, found.address, found.authority, found.peer, found.identities, found.destination
