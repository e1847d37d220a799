"""Clients that are many, slow, hostile or come and go: others are served in time, and nothing grows."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from nodeproxy.controller.xds import ads
from nodeproxy.controller.xds import stream as xds_stream
from nodeproxy.model.delta import Delta
from nodeproxy.model.policy import Action, Match, Policy, PolicyScope, StringMatch
from nodeproxy.proto import discovery_pb2 as discovery
from nodeproxy.xds.names import ADDRESS, AUTHORIZATION
from tests.unit.state.builders import pod, service
from tests.xds_client import XdsClient, channel
from tests.xds_service import XdsServer, wait_until

# What a change of state may take to every client that reads; the round is 0.1 s, the rest is a busy machine.
IN_TIME_S = 5.0


@pytest.fixture
def server() -> Iterator[XdsServer]:
    with XdsServer() as server:
        yield server


def policy(number: int, version: int, size: int = 100) -> Policy:
    """Some 50 bytes for each of `size`."""
    matches = tuple(Match(principals=(StringMatch(exact=f"td/ns/n{version}/sa/{index:030d}"),)) for index in range(size))
    return Policy(name=f"p{number}", namespace="ns", scope=PolicyScope.GLOBAL, action=Action.DENY, rules=((matches,),))


def rss_mb() -> float:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def test_a_client_that_stops_reading_holds_nobody_back_and_takes_no_memory(
    server: XdsServer, record_property: Callable[[str, object], None]
) -> None:
    names, changes = 100, 2000
    with channel(server.target) as one, channel(server.target) as other, XdsClient(one) as slow, XdsClient(other) as fast:
        for client in (slow, fast):
            client.begin(AUTHORIZATION)
            client.take()
        began, before = time.monotonic(), rss_mb()
        for number in range(changes):
            server.publish(Delta(policies=(policy(number % names, number),)))
            if number % 500 == 499:
                # The fast one sees the latest in time.
                last, key = f"n{number}/", f"ns/p{number % names}"
                began = time.monotonic()
                fast.until(lambda key=key, last=last: last in str(fast.resources[AUTHORIZATION].get(key)), IN_TIME_S)  # type: ignore[misc]
                record_property("xDS: a change's way to a fast client beside a slow one", f"{time.monotonic() - began:.3f} s")
        statistics = server.call(server.publisher.statistics)
        # 14 MB of changes have gone by.
        assert statistics.kept <= names
        assert statistics.pending <= names
        grown_mb = rss_mb() - before
        record_property("xDS: memory beside a client that does not read 14 MB of changes", f"{grown_mb:.1f} MB")
        assert grown_mb < 20
        # The slow one gets what was on its way, and then each name once, as it is now.
        slow.until(lambda: slow.versions(AUTHORIZATION) == fast.versions(AUTHORIZATION))
        assert slow.responses < 10
        assert server.call(server.publisher.statistics).pending == 0


def test_clients_that_do_not_read_a_whole_state_keep_nobody_from_it(
    server: XdsServer, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    monkeypatch.setattr(xds_stream, "WRITE_WAIT_S", 0.5)
    monkeypatch.setattr(ads, "END_WAIT_S", 0.1)
    server.publish(Delta(policies=tuple(policy(number, 0) for number in range(2000))))  # 12 MB: more than any window
    before = rss_mb()
    with ExitStack() as stack:
        stalled = []
        for _ in range(2 * xds_stream.MAX_WHOLE_STATES):
            connection = stack.enter_context(channel(server.target))
            client = stack.enter_context(XdsClient(connection))
            client.begin(AUTHORIZATION)
            stalled.append(client)
        with channel(server.target) as connection, XdsClient(connection) as reader:
            reader.begin(AUTHORIZATION)
            reader.take()
            assert len(reader.resources[AUTHORIZATION]) == 2000
        wait_until(lambda: server.metric("streams_ended_total", reason="stalled") == len(stalled))
        # gRPC has let go of what it could not write.  The clients are in this process too, and have what they read ahead.
        wait_until(lambda: server.ads.streams == 0)
        assert [client.ended().code for client in stalled] == [grpc.StatusCode.UNAVAILABLE] * len(stalled)
        record_property("xDS: memory after 16 clients that did not read 12 MB each", f"{rss_mb() - before:.1f} MB")


def test_fifty_clients_see_each_change(server: XdsServer) -> None:
    server.publish(Delta(workloads=tuple(pod(f"w{number}", f"10.0.0.{number}") for number in range(200))))
    with ExitStack() as stack:
        clients = []
        for number in range(50):
            connection = stack.enter_context(channel(server.target))
            clients.append(stack.enter_context(XdsClient(connection)))
            clients[-1].begin(ADDRESS, on_demand=bool(number % 2))
        for client in clients:
            client.take()
        for client in clients[1::2]:
            client.send(ADDRESS, ["/10.0.0.7", "/10.7.7.7"])
            answer = client.take()
            assert ([r.name for r in answer.resources], list(answer.removed_resources)) == (["w7"], ["/10.7.7.7"])
        began = time.monotonic()
        server.publish(Delta(workloads=(pod("w7", "10.0.0.7", node="elsewhere"), pod("x", "10.7.7.7"))))
        for client in clients:
            client.until(lambda client=client: "x" in client.resources[ADDRESS], IN_TIME_S)  # type: ignore[misc]
            assert client.workload("w7").node == "elsewhere"
        assert time.monotonic() - began < IN_TIME_S
        assert server.metric("clients") == 50


def test_a_thousand_connects_leave_nothing(server: XdsServer, record_property: Callable[[str, object], None]) -> None:
    server.publish(Delta(workloads=tuple(pod(f"w{number}") for number in range(500)), services=(service("s"),)))
    chance = random.Random(5)

    def flap(times: int) -> None:
        for _ in range(times):
            with channel(server.target) as connection, XdsClient(connection) as client:
                step = chance.randrange(4)
                if step > 0:
                    client.begin(ADDRESS, on_demand=chance.random() < 0.3)
                if step > 1:
                    client.take()
                if step > 2:
                    server.publish(Delta(workloads=(pod("w1", f"10.0.{chance.randrange(256)}.1"),)))

    flap(200)  # what a first use allocates
    before = rss_mb()
    flap(1000)
    wait_until(lambda: server.metric("clients") == 0)
    grown_mb = rss_mb() - before
    record_property("xDS: memory after 1,000 clients that came and went", f"{grown_mb:.1f} MB")
    assert grown_mb < 15
    wait_until(lambda: server.call(lambda: (server.ads.streams, server.ads.callers)) == (0, 0))
    with channel(server.target) as connection, XdsClient(connection) as client:
        client.begin(ADDRESS)
        client.take()
        assert len(client.resources[ADDRESS]) == 501


def hostile(chance: random.Random) -> bytes:
    """A request that is none, or one that no client would send."""
    words = [ADDRESS, AUTHORIZATION, "other", "", "*", "/10.0.0.1", "w1", "x" * 600, "ns/s.svc", "\x00", "é" * 100]

    def some(most: int) -> list[str]:
        return [chance.choice(words) for _ in range(chance.randrange(most + 1))]

    request = discovery.DeltaDiscoveryRequest(
        type_url=chance.choice(words[:3]),
        resource_names_subscribe=some(4) * chance.choice((1, 1, 1, 5000)),
        resource_names_unsubscribe=some(3),
        initial_resource_versions=dict(zip(some(3), some(3), strict=False)),
        response_nonce=chance.choice(("", "1", "2", "all-1", "x")),
    )
    if chance.random() < 0.2:
        request.error_detail.message = chance.choice(words) + ": " + chance.choice(words)
    if chance.random() < 0.3:
        request.node.id = chance.choice(words)
        request.node.metadata.update({"NODE_NAME": chance.choice(words[3:]), "x": {"y": [1, None]}})
    data = bytearray(request.SerializeToString())
    if chance.random() < 0.3 and data:
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
    return chance.randbytes(chance.randrange(200)) if chance.random() < 0.1 else bytes(data)


def test_hostile_requests_hurt_nobody_else(server: XdsServer, caplog: pytest.LogCaptureFixture) -> None:
    server.publish(Delta(workloads=tuple(pod(f"w{number}", f"10.0.0.{number}") for number in range(100))))
    chance = random.Random(7)
    ends = set()
    with channel(server.target) as connection, channel(server.target) as theirs, XdsClient(connection) as good:
        good.begin(ADDRESS)
        good.take()
        for turn in range(150):
            with XdsClient(theirs) as client:
                for _ in range(chance.randrange(1, 12)):
                    client.send_bytes(hostile(chance))
                client.finish()
                ends.add(client.ended().code)
            if turn % 10 == 0:
                server.publish(Delta(workloads=(pod("w1", f"10.1.0.{turn}"),)))
                good.until(lambda turn=turn: f"/10.1.0.{turn}" in good.resources[ADDRESS]["w1"].aliases, IN_TIME_S)  # type: ignore[misc]
    # No end of any other kind: an exception of ours would be UNKNOWN.
    assert ends <= {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert grpc.StatusCode.INVALID_ARGUMENT in ends
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    wait_until(lambda: server.metric("clients") == 0)


def test_a_request_beyond_the_limit_ends_its_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    with XdsServer(options={"grpc.max_receive_message_length": 10_000}) as server:
        with channel(server.target) as connection, XdsClient(connection) as client:
            client.send(ADDRESS, ["x" * 100] * 200)
            assert client.ended().code is grpc.StatusCode.RESOURCE_EXHAUSTED
        wait_until(lambda: server.metric("clients") == 0)
