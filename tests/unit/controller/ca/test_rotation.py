"""Whatever is alive leads to what is published, at each step of a change of root."""

from __future__ import annotations

import asyncio
from dataclasses import replace as changed

import pytest
from cryptography import x509

from nodeproxy.controller.ca import keys as ca_keys
from nodeproxy.controller.ca.keys import CaKeys, Phase
from nodeproxy.controller.ca.rotation import FOLLOW_S, Rotation, next_step
from nodeproxy.controller.ca.settings import CaSettings
from nodeproxy.identity import pki
from tests.unit.controller.material import DAY_S, KEYS, NOW, ca_certificate, verifies

IDENTITY = "spiffe://cluster.local/ns/shop/sa/cart"
SETTINGS = CaSettings(root_overlap_s=3600.0)
YEAR_S = 365 * DAY_S


class Store:
    """Keys that two leaders may write."""

    def __init__(self, keys: CaKeys | None) -> None:
        self.keys = keys
        self.is_asked = False
        self.others_write = False

    def confirmed(self) -> CaKeys | None:
        return self.keys

    def asked(self) -> bool:
        return self.is_asked

    async def replace(self, keys: CaKeys) -> bool:
        if self.others_write:
            return False
        self.keys, self.is_asked = keys, False
        return True


class World:
    """A CA at a time, everything it ever signed, and who trusts what it published last or the time before."""

    def __init__(self) -> None:
        self.now = NOW
        self.keys = ca_keys.create("cluster.local", NOW)
        self.leaves: list[tuple[x509.Certificate, tuple[x509.Certificate, ...]]] = []

    def step(self, seconds: float, asked: bool = False) -> Phase:
        self.now += seconds
        self.keys = next_step(self.keys, SETTINGS, self.now, asked) or self.keys
        return self.keys.phase

    def sign(self) -> None:
        self.leaves.append((self.keys.sign(IDENTITY, KEYS[0].public_key(), self.now, SETTINGS.max_lifetime_s), self.keys.chain))

    def check(self, before: tuple[x509.Certificate, ...]) -> None:
        for leaf, chain in self.leaves:
            if leaf.not_valid_after_utc.timestamp() > self.now:
                assert verifies(leaf, chain, self.keys.roots, self.now)
                assert verifies(leaf, chain, before, self.now)


def test_a_whole_change_of_root() -> None:
    world = World()
    world.sign()
    first = world.keys.certificate
    phases = []
    while len(phases) < 2 or phases[-1] is not Phase.STEADY:
        before = world.keys.roots
        phase = world.step(7200.0, asked=not phases)
        world.sign()
        world.check(before)
        if phase is Phase.DRAINING:  # also for a node that has not heard of the new root yet
            assert verifies(*world.leaves[-1], [first], world.now)
        if not phases or phases[-1] is not phase:
            phases.append(phase)
    assert phases == [Phase.SPREADING, Phase.DRAINING, Phase.STEADY]
    assert world.keys.roots == (world.keys.certificate,)
    assert world.keys.certificate != first
    assert world.now - NOW >= SETTINGS.root_overlap_s + SETTINGS.max_lifetime_s + FOLLOW_S


def test_it_begins_at_two_thirds_of_a_roots_life() -> None:
    world = World()
    assert world.step(6.66 * YEAR_S) is Phase.STEADY
    assert world.step(0.01 * YEAR_S) is Phase.SPREADING
    assert world.step(SETTINGS.root_overlap_s - 1.0) is Phase.SPREADING
    assert world.step(1.0) is Phase.DRAINING
    assert world.step(DAY_S) is Phase.DRAINING
    assert world.step(FOLLOW_S + pki.CLOCK_SKEW_S) is Phase.STEADY
    assert world.step(DAY_S) is Phase.STEADY


def test_what_is_asked_during_a_change_waits_for_its_end() -> None:
    world = World()
    world.step(0.0, asked=True)
    following = world.keys.following
    world.step(1.0, asked=True)
    assert world.keys.following is following


def test_roots_that_somebody_added_stay() -> None:
    world = World()
    other = ca_certificate("other", KEYS[1])
    world.keys = ca_keys.decode(ca_keys.encode(world.keys) | {"ca.crt": world.keys.roots_pem() + pki.certificate_pem(other)}, NOW)
    for seconds in (0.0, SETTINGS.root_overlap_s, 2 * DAY_S):
        world.step(seconds, asked=seconds == 0.0)
    assert world.keys.phase is Phase.STEADY
    assert set(world.keys.roots) == {other, world.keys.certificate}


def test_an_intermediate_is_left_to_who_made_it() -> None:
    root = ca_certificate("root", KEYS[0])
    lower = ca_certificate("lower", KEYS[1], root, KEYS[0], days=(-100, 1))
    keys = CaKeys(certificate=lower, key=KEYS[1], chain=(lower,), roots=(root,))
    assert next_step(keys, SETTINGS, NOW, asked=True) is None


def test_the_leader_writes_one_step_at_a_time() -> None:
    store = Store(ca_keys.create("cluster.local", NOW))
    now = [NOW]
    rotation = Rotation(store, changed(SETTINGS, root_overlap_s=60.0), clock=lambda: now[0])
    assert not asyncio.run(rotation.rotate_if_due())
    store.is_asked = True
    store.others_write = True
    assert not asyncio.run(rotation.rotate_if_due())
    store.others_write = False
    assert [asyncio.run(rotation.rotate_if_due()) for _ in range(2)] == [True, False]
    assert store.keys is not None
    assert store.keys.phase is Phase.SPREADING
    now[0] += 60.0
    assert [asyncio.run(rotation.rotate_if_due()) for _ in range(2)] == [True, False]
    assert not asyncio.run(Rotation(Store(None), SETTINGS).rotate_if_due())


def test_a_root_that_may_vouch_for_nobody_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    root = ca_certificate("root", KEYS[0], path_length=0)
    store = Store(CaKeys(certificate=root, key=KEYS[0], roots=(root,)))
    store.is_asked = True
    rotation = Rotation(store, SETTINGS, clock=lambda: NOW)
    assert [asyncio.run(rotation.rotate_if_due()) for _ in range(3)] == [False] * 3
    assert len(caplog.records) == 1
    assert "path length 0" in caplog.text
