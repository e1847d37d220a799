from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from nodeproxy.agent.sources import xds, xds_apply
from nodeproxy.agent.sources.change import Change
from nodeproxy.errors import StateError
from nodeproxy.model.delta import Delta
from nodeproxy.model.workload import Workload
from nodeproxy.proto import discovery_pb2
from nodeproxy.proto.workload_pb2 import PortList, Service
from nodeproxy.xds import backoff
from nodeproxy.xds.names import ADDRESS, AUTHORIZATION
from tests.unit.agent.sources.xds_agent import control, following, until
from tests.xds_server import ControlPlaneServer, Root, pod, policy, write_root


@pytest.fixture
def server() -> Iterator[ControlPlaneServer]:
    made = ControlPlaneServer()
    yield made
    made.stop()


def test_everything_then_changes(tmp_path: Path, server: ControlPlaneServer) -> None:
    async def scenario() -> None:
        server.put(pod("a", "10.0.0.1"), pod("b", "10.0.0.2"), policy("p"))
        async with following(tmp_path / "s", control(server.start())) as (agent, source):
            await until(lambda: agent.settled, "both types are answered")
            assert agent.view().counts() == {"workloads": 2, "services": 0, "policies": 1}
            assert [request.node.id for request in server.streams[0].requests] == [
                "ztunnel~127.0.0.1~p.ns~ns.svc.cluster.local",
                *[""] * (len(server.streams[0].requests) - 1),
            ]
            assert server.streams[0].metadata["clusterid"] == "c1"
            assert server.streams[0].requests[0].type_url == AUTHORIZATION
            server.put(pod("c", "10.0.0.3"))
            server.remove(ADDRESS, "Kubernetes//Pod/ns/a")
            await until(lambda: agent.view().workload_at("", "10.0.0.1") is None, "a is gone")
            assert agent.view().workload_at("", "10.0.0.3") is not None
            assert agent.settled == 1
            assert source.connection().connected
            statistics = source.statistics()
            assert statistics.messages == {ADDRESS: 3, AUTHORIZATION: 1}
            assert statistics.message_bytes[ADDRESS] > 100
            await until(lambda: [r.response_nonce for r in server.requests(ADDRESS)][-1:] == ["n4"], "it is acknowledged")
        assert server.nacks() == []

    asyncio.run(scenario())


def test_a_bad_resource_is_named_and_the_good_ones_apply(tmp_path: Path, server: ControlPlaneServer) -> None:
    async def scenario() -> None:
        server.put(pod("good", "10.0.0.1"), pod("bad", "10.0.0.2", tunnel_protocol="LEGACY_ISTIO_MTLS"))
        async with following(tmp_path / "s", control(server.start())) as (agent, source):
            await until(lambda: agent.settled, "both types are answered")
            assert [each.name for each in agent.view().workloads()] == ["good"]
            await until(server.nacks, "it is rejected")
            assert "Kubernetes//Pod/ns/bad: a workload's tunnel protocol has the value 2" in server.nacks()[0]
            assert source.statistics().rejected == {(ADDRESS, "unknown_value"): 1}
            assert [each["name"] for each in source.connection().rejected] == ["Kubernetes//Pod/ns/bad"]
            server.put(pod("good", "10.0.0.1", tunnel_protocol=9))
            await until(lambda: len(server.nacks()) == 2, "it is rejected")
            assert [each.name for each in agent.view().workloads()] == ["good"]  # as it was
            server.put(pod("bad", "10.0.0.2"))
            await until(lambda: agent.view().counts()["workloads"] == 2, "it has been mended")
            assert source.statistics().rejected_now == {ADDRESS: 1}

    asyncio.run(scenario())


def test_a_policy_that_is_not_understood(tmp_path: Path, server: ControlPlaneServer) -> None:
    async def scenario() -> None:
        extension = [{"name": "x"}]
        server.put(policy("never-good", extensions=extension), policy("once-good"))
        async with following(tmp_path / "s", control(server.start())) as (agent, source):
            await until(lambda: agent.settled, "both types are answered")
            stand_in = agent.view().policy("ns/never-good")
            assert stand_in is not None
            assert (stand_in.rules, "extension" in stand_in.stands_in) == (((),), True)
            server.put(policy("once-good", extensions=extension, action="ALLOW"))
            await until(lambda: len(server.nacks()) == 2, "it is rejected")
            kept = agent.view().policy("ns/once-good")
            assert kept is not None
            assert (kept.action, kept.stands_in) == ("DENY", "")
            server.put(policy("never-good"))
            await until(lambda: not agent.view().policy("ns/never-good").stands_in, "it has been mended")  # type: ignore[union-attr]
            assert source.statistics().rejected_now == {AUTHORIZATION: 1}

    asyncio.run(scenario())


def test_resumes_by_versions_also_after_a_restart(tmp_path: Path, server: ControlPlaneServer) -> None:
    async def scenario() -> None:
        server.put(pod("a", "10.0.0.1"), pod("b", "10.0.0.2"), policy("p"), policy("bad", extensions=[{"name": "x"}]))
        url = server.start()
        async with following(tmp_path / "s", control(url)) as (agent, source):
            await until(lambda: agent.settled, "both types are answered")
            server.end_streams()
            await until(lambda: len(server.past) == 1 and len(server.requests(ADDRESS)) > 1, "it is back")
            known = dict(server.requests(ADDRESS)[0].initial_resource_versions)
            assert known == {name: version for name, (_, version, _) in server.resources[ADDRESS].items()}
            policies = dict(server.requests(AUTHORIZATION)[0].initial_resource_versions)
            assert policies == {
                "ns/p": server.resources[AUTHORIZATION]["ns/p"][1],
                "ns/bad": "",
            }  # what is not known is sent again
            assert source.statistics().terminations == {"complete": 1}
        server.remove(ADDRESS, "Kubernetes//Pod/ns/a")
        server.put(pod("c", "10.0.0.3"))
        async with following(tmp_path / "s", control(url)) as (agent, _):
            await until(lambda: agent.settled, "both types are answered")
            assert agent.went_on
            assert dict(server.requests(ADDRESS)[0].initial_resource_versions) == known
            assert [each.name for each in agent.view().workloads()] == ["b", "c"]

    asyncio.run(scenario())


def test_what_another_source_left_is_known_by_name_only(tmp_path: Path, server: ControlPlaneServer) -> None:
    async def scenario() -> None:
        other = ControlPlaneServer()
        other.put(pod("a", "10.0.0.1"), pod("b", "10.0.0.2"), policy("old"))
        try:
            async with following(tmp_path / "s", control(other.start())) as (agent, _):
                await until(lambda: agent.settled, "both types are answered")
        finally:
            other.stop()
        server.put(pod("b", "10.0.0.2"))
        async with following(tmp_path / "s", control(server.start())) as (agent, _):
            await until(lambda: agent.settled, "both types are answered")
            known = dict(server.requests(ADDRESS)[0].initial_resource_versions)
            assert known == {"Kubernetes//Pod/ns/a": "", "Kubernetes//Pod/ns/b": ""}
            assert agent.view().counts() == {"workloads": 1, "services": 0, "policies": 0}

    asyncio.run(scenario())


def test_a_policy_goes_after_the_addresses_that_follow_it(
    tmp_path: Path, server: ControlPlaneServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xds, "HOLD_S", 60.0)

    async def scenario() -> None:
        server.put(pod("a", "10.0.0.1", authorization_policies=["ns/p"]), policy("p"), policy("r"))
        async with following(tmp_path / "s", control(server.start())) as (agent, _):
            await until(lambda: agent.settled, "both types are answered")
            server.remove(AUTHORIZATION, "ns/p")
            server.put(policy("q"))
            await until(lambda: agent.view().policy("ns/q"), "its successor is there")
            assert agent.view().policy("ns/p")
            server.put(pod("a", "10.0.0.1", authorization_policies=["ns/q"]))
            await until(lambda: agent.view().policy("ns/p") is None, "it goes")
            assert agent.view().workload("Kubernetes//Pod/ns/a").policies == ("ns/q",)  # type: ignore[union-attr]
            monkeypatch.setattr(xds, "HOLD_S", 0.01)
            server.remove(AUTHORIZATION, "ns/q")
            await until(lambda: agent.view().policy("ns/q") is None, "it goes, though no address follows")

    asyncio.run(scenario())


def test_the_first_state_is_none_until_it_is_whole(tmp_path: Path, server: ControlPlaneServer) -> None:
    async def scenario() -> None:
        server.put(pod("a", "10.0.0.1"))
        server.silent.add(ADDRESS)
        url = server.start()
        async with following(tmp_path / "s", control(url)) as (agent, _):
            await until(lambda: server.requests(ADDRESS), "policies are answered")
            server.put(pod("b", "10.0.0.2"), push=False)
            agent.state.apply(Delta(workloads=(Workload(uid="c", name="c", namespace="ns"),)))  # as a piece of the answer
            assert agent.view().is_incomplete
        async with following(tmp_path / "s", control(url)) as (agent, _):
            assert agent.view().is_incomplete
            epoch = agent.view().epoch
            server.silent.clear()
            server.end_streams()
            await until(lambda: agent.settled, "both types are answered")
            assert not agent.view().is_incomplete
            assert agent.view().epoch > epoch
        async with following(tmp_path / "s", control(url)) as (agent, _):
            assert not agent.view().is_incomplete

    asyncio.run(scenario())


def test_what_went_while_it_was_away_goes_when_all_is_answered(
    tmp_path: Path, server: ControlPlaneServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xds, "HOLD_S", 0.0)

    async def scenario() -> None:
        server.put(pod("a", "10.0.0.1", authorization_policies=["ns/p"]), policy("p"))
        url = server.start()
        async with following(tmp_path / "s", control(url)) as (agent, _):
            await until(lambda: agent.settled, "both types are answered")
        server.remove(AUTHORIZATION, "ns/p")
        server.put(policy("q"))
        server.silent.add(ADDRESS)
        async with following(tmp_path / "s", control(url)) as (agent, source):
            await until(lambda: agent.view().policy("ns/q"), "policies are answered")
            await until(lambda: server.requests(ADDRESS), "addresses are asked for")
            server.put(policy("r"))
            await until(lambda: agent.view().policy("ns/r"), "it goes on to follow policies")
            assert agent.view().policy("ns/p")
            server.silent.clear()
            server.put(pod("a", "10.0.0.1", authorization_policies=["ns/q"]))
            await until(lambda: agent.view().policy("ns/p") is None, "it goes")
            assert source.connected

    asyncio.run(scenario())


def test_garbage_ends_the_stream_and_changes_nothing(tmp_path: Path, server: ControlPlaneServer) -> None:
    async def scenario() -> None:
        server.put(pod("a", "10.0.0.1"))
        async with following(tmp_path / "s", control(server.start())) as (agent, source):
            await until(lambda: agent.settled, "both types are answered")
            for count, garbage in enumerate(
                (b"\xff" * 100, b"\x12\x7f", discovery_pb2.DeltaDiscoveryResponse(type_url=ADDRESS).SerializeToString()[:-3]), 1
            ):
                await until(lambda: source.connected, "it is connected")
                server.send_raw(garbage)
                await until(lambda count=count: source.statistics().terminations.get("malformed") == count, "it ended")
            assert agent.view().counts()["workloads"] == 1
            await until(lambda: source.connected, "it is back")

    asyncio.run(scenario())


def test_a_type_that_was_not_asked_for_is_rejected(tmp_path: Path, server: ControlPlaneServer) -> None:
    async def scenario() -> None:
        async with following(tmp_path / "s", control(server.start())) as (agent, source):
            await until(lambda: agent.settled, "both types are answered")
            server.send_raw(discovery_pb2.DeltaDiscoveryResponse(type_url="t/Cluster", nonce="x").SerializeToString())
            await until(server.nacks, "it is rejected")
            assert source.statistics().rejected == {("", "unexpected_type"): 1}
            server.put(pod("a", "10.0.0.1"))
            await until(lambda: agent.view().counts()["workloads"] == 1, "the stream goes on")

    asyncio.run(scenario())


def test_too_large_a_message(tmp_path: Path, server: ControlPlaneServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        server.put(pod("a", "10.0.0.1"))
        async with following(tmp_path / "s", control(server.start())) as (agent, source):
            await until(lambda: agent.settled, "both types are answered")
            server.send_raw(bytes(20_000))
            await until(lambda: source.statistics().terminations.get("message_too_large"), "it ended")
            assert agent.view().counts()["workloads"] == 1

    from nodeproxy.identity import control_plane

    options = tuple((name, 10_000 if "max_receive" in name else value) for name, value in control_plane._OPTIONS)
    monkeypatch.setattr(control_plane, "_OPTIONS", options)
    asyncio.run(scenario())


def test_a_server_that_cannot_be_told_what_is_known(
    tmp_path: Path, server: ControlPlaneServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As istiod, which takes 4 MiB.  Then its first answer is all that there is."""

    async def scenario() -> None:
        server.put(*(pod(f"p{number}", f"10.0.0.{number}") for number in range(20)), policy("p"))
        server.max_request_bytes = 500
        async with following(tmp_path / "s", control(server.start())) as (agent, source):
            await until(lambda: agent.settled, "both types are answered")
            for number in range(5, 20):
                del server.resources[ADDRESS][f"Kubernetes//Pod/ns/p{number}"]  # nobody is told
            server.end_streams()
            await until(lambda: source.statistics().terminations.get("request_too_large"), "it was too much")
            await until(lambda: source.connected, "it is back")
            assert not server.requests(ADDRESS)[0].initial_resource_versions
            assert agent.view().counts() == {"workloads": 5, "services": 0, "policies": 1}
            server.put(pod("late", "10.0.0.30"))
            await until(lambda: agent.view().counts()["workloads"] == 6, "later answers are changes")

    monkeypatch.setattr(xds, "_ANY_SERVER_TAKES_BYTES", 500)
    asyncio.run(scenario())


def test_a_server_that_is_stuck_is_left(tmp_path: Path, server: ControlPlaneServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        stuck = ControlPlaneServer()
        stuck.resources.clear()  # it knows no type
        try:
            async with following(tmp_path / "s", control(stuck.start(), server.start())) as (agent, source):
                await until(lambda: agent.settled, "the other one answers")
                assert source.statistics().terminations == {"timeout": 1}
        finally:
            stuck.stop()

    monkeypatch.setattr(xds, "ANSWER_TIMEOUT_S", 0.2)
    asyncio.run(scenario())


def test_a_store_that_is_full_ends_the_stream_and_is_told(
    tmp_path: Path, server: ControlPlaneServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with following(tmp_path / "s", control(server.start())) as (agent, source):
            await until(lambda: agent.settled, "both types are answered")
            real = agent.apply

            async def full(change: object) -> None:
                raise StateError("no room")

            monkeypatch.setattr(agent, "apply", full)
            server.put(pod("a", "10.0.0.1"))
            await until(lambda: source.statistics().terminations.get("state"), "it ended")
            assert [str(error) for error in agent.refused][:1] == ["no room"]
            monkeypatch.setattr(agent, "apply", real)
            await until(lambda: agent.view().counts()["workloads"] == 1, "it is sent again")

    asyncio.run(scenario())


def test_the_next_address_is_tried_and_the_state_stays(tmp_path: Path, server: ControlPlaneServer) -> None:
    async def scenario() -> None:
        second = ControlPlaneServer()
        for each in (server, second):
            each.put(pod("a", "10.0.0.1"))
        first_url, second_url = server.start(), second.start()
        try:
            async with following(tmp_path / "s", control(first_url, second_url)) as (agent, source):
                await until(lambda: agent.settled, "both types are answered")
                server.stop()
                await until(lambda: second.streams and source.connected, "the second one is connected")
                assert source.connection().address == second_url
                second.stop()
                await until(lambda: source.connection().error.startswith("connection_error: unavailable"), "nobody is there")
                assert not source.connection().connected
                assert agent.view().counts()["workloads"] == 1
        finally:
            second.stop()

    asyncio.run(scenario())


def test_tokens_and_roots_are_read_again(tmp_path: Path, server: ControlPlaneServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        old, new = Root(), Root()
        file, token = write_root(tmp_path / "root.pem", old), tmp_path / "token"
        token.write_text("first\n")
        server.token = "first"
        url = server.start(root=old)
        async with following(tmp_path / "s", control(url, root=file, token=token)) as (agent, source):
            await until(lambda: agent.settled, "both types are answered")
            server.token = "second"
            server.end_streams()
            await until(lambda: source.statistics().terminations.get("unauthenticated"), "the old token is refused")
            token.write_text("second\n")
            await until(lambda: source.connected, "the new one is not")
            write_root(file, old, new)
            await until(lambda: source.statistics().terminations.get("trust_changed"), "a changed file of roots is noticed")
            await until(lambda: source.connected, "it is connected")
            address = server.address
            server.stop()
            server.start(address, root=new)
            await until(lambda: source.connected and server.streams, "the new certificate is trusted")
            write_root(file, old)
            await until(lambda: "CERTIFICATE_VERIFY_FAILED" in source.connection().error, "it is no more")
            file.unlink()
            await until(lambda: source.connection().error.startswith("credentials: "), "what is missing is named")

    monkeypatch.setattr(xds, "TRUST_POLL_S", 0.05)
    monkeypatch.setattr(backoff, "MAX_S", 0.1)
    asyncio.run(scenario())


def test_a_source_that_flaps_is_asked_less_and_less(
    tmp_path: Path, server: ControlPlaneServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    real = backoff.Backoff.wait_s

    def wait_s(self: backoff.Backoff, lived_s: float, jitter: float) -> float:
        waits.append(real(self, lived_s, 1.0))
        return 0.0

    async def scenario() -> None:
        async with following(tmp_path / "s", control(server.start())) as (agent, source):
            for count in range(1, 16):
                await until(lambda: source.connected, "it is connected")
                server.end_streams()
                await until(lambda count=count: len(waits) == count, "it ended")

    monkeypatch.setattr(backoff.Backoff, "wait_s", wait_s)
    asyncio.run(scenario())
    assert waits == [min(0.01 * 2**count, 15.0) for count in range(15)]


class Listener:
    def __init__(self) -> None:
        self.told: list[tuple[list[str], list[str]]] = []
        self.connections: list[bool] = []

    async def arrived(self, keys: Iterable[str], gone: Iterable[str]) -> None:
        self.told.append((list(keys), list(gone)))

    def connected(self, connected: bool) -> None:
        if self.connections[-1:] != [connected]:
            self.connections.append(connected)


def test_on_demand(tmp_path: Path, server: ControlPlaneServer) -> None:
    async def scenario() -> None:
        listener = Listener()
        server.put(pod("a", "10.0.0.1"), pod("b", "10.0.0.2"), policy("p"))
        async with following(tmp_path / "s", control(server.start()), on_demand=True) as (agent, source):
            source.listener = listener
            await until(lambda: agent.settled, "both types are answered")
            assert agent.view().counts() == {"workloads": 0, "services": 0, "policies": 1}
            source.subscribe(["/10.0.0.1", "/10.0.0.9"])
            await until(lambda: agent.view().workload_at("", "10.0.0.1"), "it has come")
            await until(lambda: len(listener.told) == 2, "it was told")
            assert listener.told[1] == (["Kubernetes//Pod/ns/a"], ["/10.0.0.9"])
            source.ask_again(["/10.0.0.9"])
            await until(lambda: len(listener.told) == 3, "it was answered once more")
            assert listener.told[2] == ([], ["/10.0.0.9"])
            server.remove(ADDRESS, "Kubernetes//Pod/ns/a")
            await until(lambda: len(listener.told) == 4, "it was told")
            assert listener.told[3] == ([], ["Kubernetes//Pod/ns/a"])
            assert agent.view().counts()["workloads"] == 0
            assert listener.connections == [True]
            server.end_streams()
            await until(lambda: listener.connections == [True, False, True], "it came back")

    asyncio.run(scenario())


def test_on_demand_a_service_is_not_there_before_its_endpoints(
    tmp_path: Path, server: ControlPlaneServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with following(tmp_path / "s", control(server.start()), on_demand=True) as (agent, source):
            source.listener = Listener()
            await until(lambda: agent.settled, "both types are answered")
            endpoints = [pod(f"e{number}", f"10.0.1.{number}", services={"ns/web.svc": PortList()}) for number in range(20)]
            server.put(Service(name="web", namespace="ns", hostname="web.svc"), *endpoints)
            counts = []
            apply = agent.apply

            async def applied(change: Change) -> None:
                await apply(change)
                if agent.view().service("ns/web.svc") is not None:
                    counts.append(agent.view().count_endpoints("ns/web.svc"))

            monkeypatch.setattr(agent, "apply", applied)
            source.subscribe(["ns/web.svc", *(f"/10.0.1.{number}" for number in range(20))])
            await until(lambda: counts, "it has come")
            assert counts[0] == 20

    monkeypatch.setattr(xds_apply, "MAX_BATCH", 3)
    asyncio.run(scenario())
