"""Whatever a control plane sends: nothing crashes, nothing goes that it did not name, nothing is let in."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from nodeproxy.agent.sources.xds_apply import Applier
from nodeproxy.agent.sources.xds_rejected import RejectedResources
from nodeproxy.errors import ResourceError
from nodeproxy.policy.authorize import authorize
from nodeproxy.policy.match import Subject
from nodeproxy.proto import authorization_pb2, discovery_pb2, workload_pb2
from nodeproxy.xds.decode import decode_address, decode_policy, stand_in
from nodeproxy.xds.message import Response
from nodeproxy.xds.names import ADDRESS, AUTHORIZATION
from tests.unit.agent.sources.xds_agent import StoreAgent
from tests.xds_server import pod, policy

SEEDS = range(40)
SUBJECT = Subject("spiffe://cluster.local/ns/a/sa/b", "10.0.0.1", "10.0.0.2", 80)


def mutated(chance: random.Random, raw: bytes) -> bytes:
    """The bytes with some of them changed, cut out, doubled or put in."""
    data = bytearray(raw)
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(5):
            case 0 if at < len(data):
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                del data[at : at + chance.randint(1, 8)]
            case 2:
                data[at:at] = data[at : at + chance.randint(1, 16)]
            case 3:
                data[at:at] = chance.randbytes(chance.randint(1, 4))
            case _:
                del data[at:]
    return bytes(data)


def a_workload(chance: random.Random) -> bytes:
    made = pod(f"p{chance.randrange(20)}", f"10.0.0.{chance.randrange(20)}", trust_domain="td", node="n", capacity={"value": 3})
    made.services["ns/s"].ports.add(service_port=80, target_port=8080)
    made.waypoint.address.address = b"\x0a\0\0\1"
    return workload_pb2.Address(workload=made).SerializeToString()


def a_policy(chance: random.Random) -> bytes:
    match = {
        "principals": [{"exact": "cluster.local/ns/a/sa/b"}],
        "not_source_ips": [{"address": bytes(4), "length": 8}],
        "destination_ports": [80],
    }
    made = policy(f"p{chance.randrange(20)}", scope=chance.randrange(3), rules=[{"clauses": [{"matches": [match]}]}])
    return made.SerializeToString()


@pytest.mark.parametrize("seed", SEEDS)
def test_decoding_says_yes_or_names_the_error(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(200):
        for make, decode in ((a_workload, decode_address), (a_policy, decode_policy)):
            raw = mutated(chance, make(chance)) if chance.random() < 0.9 else chance.randbytes(chance.randrange(60))
            try:
                decode(raw)
            except ResourceError as error:
                if decode is decode_policy:
                    made = stand_in("ns/p", raw, error, is_root=False)
                    assert made.dry_run or not authorize((made,), SUBJECT).allowed


@pytest.mark.parametrize("seed", SEEDS)
def test_messages_are_walked_as_protobuf_reads_them(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(100):
        response = discovery_pb2.DeltaDiscoveryResponse(type_url="t", nonce="n", removed_resources=["x", "y"])
        for number in range(chance.randrange(4)):
            response.resources.add(name=f"r{number}", version="v").resource.value = chance.randbytes(chance.randrange(200))
        raw = mutated(chance, response.SerializeToString())
        try:
            whole = discovery_pb2.DeltaDiscoveryResponse.FromString(raw)
        except Exception:
            whole = None
        try:
            walked = Response(raw)
            resources = list(walked.resources())
        except ResourceError:
            assert whole is None or b"\x0b" in raw or b"\x0c" in raw or any(byte & 7 in (3, 4) for byte in raw)  # groups
            continue
        if whole is not None:
            assert (walked.type_url, walked.nonce, walked.removed) == (
                whole.type_url,
                whole.nonce,
                tuple(whole.removed_resources),
            )
            assert [each for each in resources if not isinstance(each, ResourceError)] == list(whole.resources)


@pytest.mark.parametrize("seed", SEEDS)
def test_applying_keeps_what_was_good(tmp_path: Path, seed: int) -> None:
    """Mutated responses over a state: what they do not name stays as it was."""
    chance = random.Random(seed)
    agent = StoreAgent(tmp_path / "s")
    applier = Applier(agent, RejectedResources())

    async def apply(raw: bytes) -> None:
        try:
            response = Response(raw)
        except ResourceError:
            return
        if response.type_url in (ADDRESS, AUTHORIZATION):
            outcome = await applier.apply(response)
            assert outcome.count >= len(outcome.rejected)

    async def scenario() -> None:
        good = discovery_pb2.DeltaDiscoveryResponse(type_url=ADDRESS)
        resource = good.resources.add(name="Kubernetes//Pod/ns/stays")
        resource.resource.type_url = ADDRESS
        resource.resource.value = workload_pb2.Address(workload=pod("stays", "10.9.9.9")).SerializeToString()
        await apply(good.SerializeToString())
        for _ in range(30):
            type_url = chance.choice((ADDRESS, AUTHORIZATION))
            response = discovery_pb2.DeltaDiscoveryResponse(type_url=type_url, nonce="n")
            for _ in range(chance.randrange(6)):
                raw = (a_workload if type_url == ADDRESS else a_policy)(chance)
                name = f"Kubernetes//Pod/ns/p{chance.randrange(20)}" if type_url == ADDRESS else f"ns/p{chance.randrange(20)}"
                added = response.resources.add(name=name, version=f"{chance.randrange(9)}")
                added.resource.type_url = type_url
                added.resource.value = mutated(chance, raw) if chance.random() < 0.6 else raw
            response.removed_resources.extend(chance.sample([f"ns/p{n}" for n in range(20)], chance.randrange(3)))
            raw = response.SerializeToString()
            await apply(mutated(chance, raw) if chance.random() < 0.4 else raw)
            stays = agent.view().workload("Kubernetes//Pod/ns/stays")
            assert stays is not None
            assert stays.addresses == ("10.9.9.9",)
            for each in agent.view().policies():
                authorization_pb2.Scope.Value(each.scope)

    try:
        asyncio.run(scenario())
    finally:
        agent.close()
