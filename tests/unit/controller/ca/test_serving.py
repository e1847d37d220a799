"""The port's certificate: renewed at half-life and with each change of keys, and the one before served where that fails."""

from __future__ import annotations

import pytest

from nodeproxy.controller.ca import keys as ca_keys
from nodeproxy.controller.ca.keys import CaKeys
from nodeproxy.controller.ca.serving import ServingCertificate, dns_names
from nodeproxy.errors import IdentityError
from tests.unit.controller.material import KEYS, NOW, ca_certificate

DAY_S = 86_400.0


class World:
    def __init__(self) -> None:
        self.now = NOW
        self.keys: CaKeys | None = ca_keys.create("cluster.local", NOW)
        self.serving = ServingCertificate(lambda: self.keys, ["a.svc"], clock=lambda: self.now)


def test_renewed_at_half_life_and_with_the_keys() -> None:
    world = World()
    assert world.serving.not_after() == NOW + DAY_S
    assert world.serving.fetch() is None
    world.now += DAY_S / 2 - 1
    assert world.serving.fetch() is None
    world.now += 1
    assert world.serving.fetch() is not None
    assert world.serving.fetch() is None
    assert world.serving.not_after() == NOW + 1.5 * DAY_S
    world.keys = ca_keys.create("cluster.local", NOW)
    assert world.serving.fetch() is not None
    assert world.serving.fetch() is None


def test_what_can_not_be_renewed_is_served_on(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    ended = ca_certificate("root", KEYS[0], days=(-9, -1))
    for keys in (CaKeys(certificate=ended, key=KEYS[0], roots=(ended,)), None):
        world.keys = keys
        assert world.serving.fetch() is None
    assert world.serving.not_after() == NOW + DAY_S
    assert len(caplog.records) == 2
    world.keys = ca_keys.create("cluster.local", NOW)
    assert world.serving.fetch() is not None


def test_not_without_keys() -> None:
    with pytest.raises(IdentityError, match="no key yet"):
        ServingCertificate(lambda: None, ["a.svc"])


def test_names() -> None:
    assert dns_names("nodeproxy-system", more=["istiod.istio-system.svc"]) == [
        "nodeproxy-controller",
        "nodeproxy-controller.nodeproxy-system",
        "nodeproxy-controller.nodeproxy-system.svc",
        "nodeproxy-controller.nodeproxy-system.svc.cluster.local",
        "istiod.istio-system.svc",
    ]
