"""Tokens, certificates and the controller's root change while pods talk: no connection fails, and a standing one goes on."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from tests.cluster.replica import NAMESPACE, ROOTS
from tests.cluster.world import World
from tests.mesh.attempts import is_open
from tests.mesh.cluster import wait_until

# The shortest that the controller signs for: renewed after half of it.
LIFETIME_S = 60
# The next root is published for longer than it takes each node to renew.
OVERLAP_S = 40
SECRET = "nodeproxy-ca"
ROTATE = "nodeproxy.io/rotate-root"


@pytest.fixture(scope="module")
def world(definitions: list[Path]) -> Iterator[World]:
    made = World.of_controller(definitions, root_overlap_s=str(OVERLAP_S))
    try:
        for agent in made.cluster.agents:
            agent.arguments += ["--secret-ttl-s", str(LIFETIME_S)]
        made.fill()
        yield made
    finally:
        made.close()


class Callers(threading.Thread):
    """Makes new connections, one after the other, for as long as it is asked to; counts what failed."""

    def __init__(self, world: World) -> None:
        super().__init__(daemon=True)
        self.made, self.failures = 0, list[str]()
        self._world, self._stopping = world, threading.Event()
        self.start()

    def run(self) -> None:
        while not self._stopping.wait(0.02):
            try:
                self._world.connect().close()
                self.made += 1
            except (OSError, AssertionError) as error:
                self.failures.append(repr(error))

    def stop(self) -> None:
        self._stopping.set()
        self.join()


@pytest.mark.timeout(240)
def test_everything_changes_under_traffic(world: World, record_property: pytest.RecordProperty) -> None:
    before = _roots(world)
    standing = world.connect()
    callers = Callers(world)
    try:
        world.api.patch("Secret", SECRET, NAMESPACE, metadata={"annotations": {ROTATE: "now"}})
        wait_until(lambda: _roots(world) > before, "the next root is published", 30)
        following = _first_certificate(world, "next.crt")
        began = time.monotonic()
        # Over the whole of a change: the next root spreads, then it signs, then everything has been renewed by it.
        while time.monotonic() < began + OVERLAP_S + LIFETIME_S / 2 + 10:
            for agent in world.cluster.agents:
                world.renew_token(agent, seconds=600)
            assert not callers.failures, callers.failures[:5]
            threading.Event().wait(3)
    finally:
        callers.stop()
    assert not callers.failures, callers.failures[:5]
    assert is_open(standing)
    standing.close()
    assert _first_certificate(world, "tls.crt") == following
    record_property("connections while tokens, certificates and the root changed", f"{callers.made}, none failed")


def _roots(world: World) -> int:
    """How many roots are published."""
    return str(world.api.get("ConfigMap", ROOTS, NAMESPACE)["data"]["root-cert.pem"]).count("BEGIN CERTIFICATE")


def _first_certificate(world: World, name: str) -> x509.Certificate:
    """Of an entry of the CA's Secret."""
    return x509.load_pem_x509_certificates(base64.b64decode(world.api.get("Secret", SECRET, NAMESPACE)["data"][name]))[0]
