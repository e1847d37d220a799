"""Never open: policy, identity, membership and addresses change under load, and no connection stands that was denied.

An attempt fails the test if it was answered while every state that may have been in force denied it, be it for a tenth of a
millisecond after the store had the change; or if it was refused while every one of them allowed it.  Connections that live when a
change denies them must end.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from nodeproxy.state.reader import StateReader
from tests.mesh.attempts import connected, is_open, start_fast, total, until_reset
from tests.mesh.cluster import TIMEOUT_S, Cluster, MeshPod
from tests.mesh.direct import settled
from tests.mesh.timeline import Attempt, Program, Timeline, attempts_of

PORT, SECOND_PORT = 7700, 7701
VIP = "10.96.0.70"
# How long each test changes things: some hundreds of changes.  Thousands were made by hand.
SECONDS = 12.0
# So many changes apart, live connections are looked at.
ROUND = 10

Match = dict[str, Any]
Record = Callable[[str, object], None]


class State(NamedTuple):
    """policy: a key of `POLICIES`.  account: the client's.

    enrolled: whether the client is in the mesh.  owner: the workload that the state gives the address of the server's namespace,
    and entered: the one that this was enrolled as; "second" has the other one.  out: both are just out of the mesh.
    """

    policy: str = "none"
    account: str = "good"
    enrolled: bool = True
    owner: str = "server"
    entered: str = "server"
    out: bool = False


GOOD = {"principals": [{"exact": "cluster.local/ns/web/sa/good"}]}
# name → action, match, dry run
POLICIES: dict[str, tuple[str, Match, bool] | None] = {
    "none": None,
    "deny good": ("Deny", GOOD, False),
    "allow good": ("Allow", GOOD, False),
    "allow others": ("Allow", {"notPrincipals": GOOD["principals"]}, False),
    "deny port": ("Deny", {"destinationPorts": [PORT]}, False),
    "allow port": ("Allow", {"destinationPorts": [PORT]}, False),
    "deny address": ("Deny", {"sourceIps": ["10.10.0.0/24", "fd00:10::/64"]}, False),
    "allow address": ("Allow", {"sourceIps": ["10.10.0.0/24", "fd00:10::/64"]}, False),
    "deny good, dry run": ("Deny", GOOD, True),
}
# The workload "second" denies the client's namespace, always.
SECONDS_OWN = {
    "name": "second",
    "namespace": "shop",
    "scope": "WorkloadSelector",
    "action": "Deny",
    "rules": [[[{"namespaces": [{"exact": "web"}]}]]],
}


def allowed(state: State, port: int) -> bool:
    """What the policy of a state says of the client."""
    good = state.account == "good" and state.enrolled
    return {
        "none": True,
        "deny good": not good,
        "allow good": good,
        "allow others": not good,
        "deny port": port != PORT,
        "allow port": port == PORT,
        "deny address": False,
        "allow address": True,
        "deny good, dry run": True,
    }[state.policy]


class World:
    """The cluster, its timeline, and how a state is put into effect."""

    def __init__(self, cluster: Cluster, watcher: Program) -> None:
        self.cluster = cluster
        self.agent = cluster.agents[0]
        self.changes = 0
        self.state = State()
        self.timeline: Timeline[State] = Timeline()
        self._watcher = watcher
        self._reader = StateReader(self.agent.run_dir / "state")

    def close(self) -> None:
        self._reader.close()

    def pod(self, name: str) -> MeshPod:
        return self.cluster.pods[name]

    def edit(self, state: State) -> None:
        """By an edit of the mesh file; it holds as soon as the store has it."""
        self._describe(state)
        epoch = self._reader.view().epoch
        self._reader.release()
        self._watcher.say(str(epoch))
        self._begins(state)
        self.cluster.write()
        self.timeline.holds(int(self._watcher.hear()))

    def enrol(self, state: State) -> None:
        """The client in the mesh, or out of it."""
        client = self.pod("client")
        self._begins(state)
        if state.enrolled:
            status, _ = self.agent.request("POST", "/pods", {"uid": client.uid, "netns": client.host.netns_path})
        else:
            status, _ = self.agent.request("DELETE", f"/pods/{client.uid}")
        assert status == 200
        self.timeline.holds()

    def exchange(self) -> None:
        """Enrol both namespaces as what the state says that they are."""
        self.note(self.state._replace(out=True))
        other = {"server": "second", "second": "server"}
        for name in other:
            assert self.agent.request("DELETE", f"/pods/{self.pod(name).uid}")[0] == 200
        for name in other:
            host = self.pod(name if self.state.owner == "server" else other[name]).host
            assert self.agent.request("POST", "/pods", {"uid": self.pod(name).uid, "netns": host.netns_path})[0] == 200
        self.note(self.state._replace(out=False, entered=self.state.owner))

    def note(self, state: State) -> None:
        """From now on it is so."""
        self._begins(state)
        self.timeline.holds()

    def _begins(self, state: State) -> None:
        self.timeline.begins(state)
        self.state = state
        self.changes += 1

    def _describe(self, state: State) -> None:
        """The mesh's entries as the state has them."""
        said = POLICIES[state.policy]
        self.cluster.policies[:] = [SECONDS_OWN]
        if said is not None:
            action, match, dry_run = said
            policy = {"name": "p", "namespace": "shop", "scope": "Namespace", "action": action, "rules": [[[match]]]}
            self.cluster.policies.append(policy | ({"dryRun": True} if dry_run else {}))
        self.pod("client").entry["serviceAccount"] = state.account
        hosts = ("server", "second") if state.owner == "server" else ("second", "server")
        for name, host in zip(("server", "second"), hosts, strict=True):
            self.pod(name).entry["workloadIps"] = list(self.pod(host).host.addresses)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    cluster = Cluster(1)
    with contextlib.ExitStack() as closing:
        closing.callback(cluster.close)
        cluster.pod(0, "client", namespace="web", account="good")
        cluster.pod(0, "extra", namespace="web")
        for name in ("server", "second"):
            greeter = Program(cluster.pod(0, name).host, "greet", name, PORT, SECOND_PORT)
            assert greeter.hear() == "listening"
        cluster.pods["second"].entry["authorizationPolicies"] = ["shop/second"]
        cluster.policies.append(SECONDS_OWN)
        cluster.service("web.shop.svc", VIP, {80: PORT}, [cluster.pods["server"]])
        start_fast(cluster)
        made = World(cluster, Program(cluster.lab.nodes[0], "watch", cluster.agents[0].run_dir / "state"))
        closing.callback(made.close)
        yield made


@pytest.fixture
def coming_and_going(world: World) -> Iterator[None]:
    """A pod that has nothing to do with it comes and goes, so that verdicts are being published while other things change."""
    ending = threading.Event()
    pod = world.pod("extra")
    rng = random.Random(6)

    def run() -> None:
        while not ending.wait(rng.random() * 0.05):
            world.agent.request("DELETE", f"/pods/{pod.uid}")
            ending.wait(rng.random() * 0.02)
            world.agent.request("POST", "/pods", {"uid": pod.uid, "netns": pod.host.netns_path})

    thread = threading.Thread(target=run)
    thread.start()
    yield
    ending.set()
    thread.join(TIMEOUT_S)


def knock(world: World, targets: list[tuple[str, int]]) -> list[Program]:
    arguments = [str(part) for target in targets for part in target]
    return [Program(world.pod("client").host, "connect", *arguments, cgroup=world.cluster.programs) for _ in range(2)]


def check(world: World, knocking: list[Program], outcomes: Callable[[State, int], set[str]], record: Record) -> None:
    attempts: list[Attempt] = [attempt for program in knocking for attempt in attempts_of(program)]
    opened, refused = world.timeline.wrong(attempts, outcomes)
    results = Counter(bool(attempt.who) for attempt in attempts)
    direct = total(world.agent, "nodeproxy_direct_connections_ended_total")
    told = f"attempts answered {results[True]}, refused {results[False]}; {direct:.0f} connections were direct"
    record("changes under load", f"{world.changes}; {told}")
    assert not opened, f"{len(opened)} of {len(attempts)}: {opened[:3]}"
    assert not refused, f"{len(refused)} of {len(attempts)}: {refused[:3]}"
    assert min(results[True], results[False]) > 30


# ── policy and identity ──


def targets(world: World) -> list[tuple[str, int]]:
    server = world.pod("server")
    return [(server.ip, PORT), (server.ip6, PORT), (VIP, 80), (server.ip, SECOND_PORT)]


def outcome(state: State, place: int) -> str:
    return "server" if allowed(state, SECOND_PORT if place == 3 else PORT) else ""


def live(world: World) -> dict[str, socket.socket]:
    """Connections of the client that stand now, by the place of their target: those that the state allows."""
    found = {}
    for place in range(4):
        if outcome(world.state, place):
            found[str(place)], who = connected(world.pod("client").host, *targets(world)[place])
            assert who == "server"
    return found


def judged(socks: dict[str, socket.socket], state: State) -> None:
    """Those that the new state denies end, those that it allows do not."""
    denied = {place: sock for place, sock in socks.items() if not outcome(state, int(place))}
    kept = [sock for place, sock in socks.items() if place not in denied]
    assert until_reset(denied).keys() == denied.keys()
    assert all(map(is_open, kept))
    for sock in socks.values():
        sock.close()


def test_policy_and_identity(world: World, coming_and_going: None, record_property: Record) -> None:
    rng = random.Random(4)
    world.edit(State(policy="deny port"))
    world.edit(State())
    knocking = knock(world, targets(world))
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        # One thing at a time: a connection that the proxy carries is judged again with the identity that it began with.
        if rng.random() < 0.3:
            state = world.state._replace(account="bad" if world.state.account == "good" else "good")
        else:
            state = world.state._replace(policy=rng.choice([name for name in POLICIES if name != world.state.policy]))
        if world.changes % ROUND:
            if rng.random() < 0.5:
                settled(world.agent)
            world.edit(state)
            continue
        settled(world.agent)
        socks = live(world)
        world.edit(state)
        judged(socks, state)
    check(world, knocking, lambda state, place: {outcome(state, place)}, record_property)


# ── membership, and addresses ──


def test_membership_and_addresses(world: World, coming_and_going: None, record_property: Record) -> None:
    """Two workloads exchange namespaces and addresses; the client leaves the mesh, where it has no identity, and returns."""
    rng = random.Random(5)
    world.timeline, world.changes = Timeline(), 0
    world.edit(State("deny port"))
    world.edit(State("allow good"))
    knocking = knock(world, [(world.pod("server").ip, PORT), (world.pod("second").ip, PORT)])
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if rng.random() < 0.5:
            settled(world.agent)
        if world.state.owner != world.state.entered:
            world.exchange()
        elif rng.random() < 0.5:
            world.edit(world.state._replace(owner="second" if world.state.owner == "server" else "server"))
        else:
            world.enrol(world.state._replace(enrolled=not world.state.enrolled))
    if world.state.owner != world.state.entered:
        world.exchange()

    def outcomes(state: State, place: int) -> set[str]:
        host = ("server", "second")[place]
        if state.out:
            return {host, ""}
        workload = ("server", "second")[(host == "server") != (state.owner == "server")]
        if workload == "second" and state.enrolled:
            return {""}  # it denies the client's namespace
        if not allowed(state, PORT):
            return {""}
        return {host} if state.owner == state.entered else {host, ""}  # what it is said to be and what it is are not the same

    check(world, knocking, outcomes, record_property)
