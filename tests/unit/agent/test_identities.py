"""Which certificates are wanted, as pods and what they are change."""

from __future__ import annotations

import msgspec
import pytest

from nodeproxy.agent.identities import Identities
from nodeproxy.identity.certificate import IssuedCertificate
from nodeproxy.model.messages import CertificateDropped


class NobodyAsks:
    """A CA that is never reached here: certificates are asked for by `manager.run`."""

    async def issue(self, identity: str) -> IssuedCertificate:
        raise AssertionError(identity)

    def roots(self) -> bytes:
        raise AssertionError


@pytest.fixture
def told() -> list[msgspec.Struct]:
    return []


@pytest.fixture
def identities(told: list[msgspec.Struct]) -> Identities:
    return Identities(NobodyAsks(), told.append)


def wanted(identities: Identities) -> dict[str, int]:
    return {row.identity: row.pods for row in identities.manager.statistics()}


def test_pods_share_an_identity_until_the_last_has_left(identities: Identities, told: list[msgspec.Struct]) -> None:
    identities.assign([("p1", "a"), ("p2", "a"), ("p3", "b")])
    assert wanted(identities) == {"a": 2, "b": 1}
    assert identities.missing() == ["a", "b"]
    identities.assign([("p1", "")])
    assert (wanted(identities), told) == ({"a": 1, "b": 1}, [])
    identities.assign([("p2", "")])
    assert (wanted(identities), told) == ({"b": 1}, [CertificateDropped("a")])
    assert identities.missing() == ["b"]


def test_only_those_that_are_told_of_change(identities: Identities, told: list[msgspec.Struct]) -> None:
    identities.assign([("p1", "a"), ("p2", "b")])
    identities.assign([("p1", "c")])
    assert wanted(identities) == {"b": 1, "c": 1}
    assert told == [CertificateDropped("a")]
    identities.assign([("p1", "c"), ("stranger", "")])
    assert wanted(identities) == {"b": 1, "c": 1}


def test_what_passes_from_pod_to_pod_is_not_dropped(identities: Identities, told: list[msgspec.Struct]) -> None:
    identities.assign([("p1", "a"), ("p2", "b")])
    identities.assign([("p1", "b"), ("p2", "a")])
    assert (wanted(identities), told) == ({"a": 1, "b": 1}, [])
