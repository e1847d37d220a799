"""The gRPC server, over loopback, with a client written with plain gRPC."""

from __future__ import annotations

import time
from collections.abc import Iterator

import grpc
import pytest

from nodeproxy.controller.xds import ads
from nodeproxy.controller.xds import stream as xds_stream
from nodeproxy.controller.xds.ads import Metadata
from nodeproxy.controller.xds.limits import StreamEnd, end
from nodeproxy.errors import CallerError
from nodeproxy.model.delta import Delta
from nodeproxy.model.node_pod import MeshNamespace, NodePod
from nodeproxy.model.policy import Action, Policy, PolicyScope
from nodeproxy.xds.names import ADDRESS, AUTHORIZATION, MESH_NAMESPACE, NODE_POD
from tests.unit.state.builders import pod, service
from tests.xds_client import XdsClient, channel
from tests.xds_service import Somebody, XdsServer, wait_until

POLICY = Policy(name="p", namespace="ns", scope=PolicyScope.NAMESPACE, action=Action.DENY)


async def with_token(metadata: Metadata, peer: str) -> Somebody:
    """Lets in who sends the name of its node as token."""
    values = dict(metadata)
    assert peer.startswith("ipv4:127.0.0.1:")
    scheme, _, token = str(values.get("authorization", "")).partition(" ")
    if scheme != "Bearer" or not token.startswith("n"):
        raise CallerError("no_token", "send one bearer token in the metadata `authorization`", "UNAUTHENTICATED")
    return Somebody(node=token, pod_uid=f"pod-{token}", proxy=token != "n-app")


@pytest.fixture(scope="module")
def server() -> Iterator[XdsServer]:
    with XdsServer(with_token) as server:
        server.publish(
            Delta(
                workloads=(pod("a", "10.0.0.1", services={"ns/s.svc": {80: 1}}), pod("l", node="n1")),
                services=(service("s", "10.1.0.1"),),
                policies=(POLICY,),
            )
        )
        yield server


@pytest.fixture(scope="module")
def connection(server: XdsServer) -> Iterator[grpc.Channel]:
    with channel(server.target) as connection:
        yield connection


def test_ztunnels_wildcard(server: XdsServer, connection: grpc.Channel) -> None:
    with XdsClient(connection, token="n1", node="n1") as client:
        client.wildcard()
        first = client.take()
        assert (first.type_url, len(first.resources)) == (ADDRESS, 3)
        assert client.take().type_url == AUTHORIZATION
        assert list(client.workload("a").services) == ["ns/s.svc"]
        assert client.service("ns/s.svc").hostname == "s.svc"
        assert client.policy("ns/p").name == "p"
        server.publish(Delta(workloads=(pod("new"),)))
        client.until(lambda: "new" in client.resources[ADDRESS])
        server.publish(Delta(removed_workloads=("new",)))
        client.until(lambda: "new" not in client.resources[ADDRESS])
        versions = client.versions(ADDRESS)
    with XdsClient(connection, token="n1") as client:
        client.begin(ADDRESS, versions=versions | {"gone": "1"})
        resumed = client.take()
        assert (list(resumed.resources), list(resumed.removed_resources)) == ([], ["gone"])


def test_ztunnel_on_demand(server: XdsServer, connection: grpc.Channel) -> None:
    with XdsClient(connection, token="n1") as client:
        client.begin(ADDRESS, on_demand=True)
        assert [resource.name for resource in client.take().resources] == ["l"]  # by the caller's node
        client.send(ADDRESS, ["/10.1.0.1", "/10.9.9.9"])
        answer = client.take()
        assert {resource.name for resource in answer.resources} == {"a", "ns/s.svc"}
        assert list(answer.removed_resources) == ["/10.9.9.9"]


@pytest.mark.parametrize(
    ("token", "pods", "namespaces"), [("n7", {"ns/a"}, {"ns"}), ("n8", set(), {"ns"}), ("n-app", set(), set())]
)
def test_a_nodes_proxy_gets_the_pods_of_its_node_whatever_it_says(
    server: XdsServer, connection: grpc.Channel, token: str, pods: set[str], namespaces: set[str]
) -> None:
    own, other = (("n7", NodePod(namespace="ns", name="a", pod_uid="u")), ("n9", NodePod(namespace="ns", name="b", pod_uid="v")))
    server.publish(Delta(node_pods=(own, other), mesh_namespaces=(MeshNamespace(name="ns", labelled=True),)))
    with XdsClient(connection, token=token, node="n9") as client:
        client.begin(NODE_POD)
        assert {resource.name for resource in client.take().resources} == pods
        client.begin(MESH_NAMESPACE)
        assert {resource.name for resource in client.take().resources} == namespaces
        server.publish(Delta(node_pods=((token, NodePod(namespace="ns", name="new", pod_uid="w")),)))
        if pods:
            client.until(lambda: "ns/new" in client.resources[NODE_POD])
        server.publish(Delta(removed_node_pods=((token, "ns/new"),)))
        client.wildcard()
        client.until(lambda: len(client.resources[ADDRESS]) >= 3)  # nobody is held up by it
        versions = client.versions(NODE_POD)
    with XdsClient(connection, token=token) as client:
        client.begin(NODE_POD, versions=versions | {"ns/gone": "1"})
        resumed = client.take()
        assert {resource.name for resource in resumed.resources} == set()
        assert "ns/gone" in resumed.removed_resources


def test_a_nodes_proxy_that_nobody_has_seen_is_told_so_only_if_it_asks_for_pods(
    server: XdsServer, connection: grpc.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unplaced(caller: Somebody) -> str:
        raise end(StreamEnd.UNPLACED, "not seen")

    monkeypatch.setattr(server.ads, "_node_of", unplaced)
    with XdsClient(connection, token="n1") as client:
        client.begin(ADDRESS)
        client.take()
        client.begin(NODE_POD)
        ended = client.ended()
        assert (ended.code, ended.details) == (grpc.StatusCode.UNAVAILABLE, "not seen")
    wait_until(lambda: server.metric("streams_ended_total", reason="unplaced") == 1)


def test_who_makes_it_work_has_to_wait(connection: grpc.Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("MIN_WORK_S", 0.0), ("REST", 1e6), ("MAX_REST_S", 0.1)):
        monkeypatch.setattr(xds_stream, name, value)
    began = time.monotonic()
    with XdsClient(connection, token="n1") as client:
        client.begin(ADDRESS, on_demand=True)
        client.take()
        client.send(ADDRESS, ["/10.1.0.1"])
        client.take()
    assert time.monotonic() - began >= 0.1


@pytest.mark.parametrize("token", ["", "x"])
def test_who_is_not_authenticated_is_told_so(connection: grpc.Channel, token: str) -> None:
    with XdsClient(connection, token=token) as client:
        client.wildcard()
        ended = client.ended()
    assert (ended.code, ended.details) == (
        grpc.StatusCode.UNAUTHENTICATED,
        "send one bearer token in the metadata `authorization`",
    )


def test_other_methods_are_not_served(connection: grpc.Channel) -> None:
    call = connection.unary_unary("/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"", timeout=20)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]


def test_a_malformed_request_ends_its_stream_alone(server: XdsServer, connection: grpc.Channel) -> None:
    before = server.metric("streams_ended_total", reason="malformed")
    with XdsClient(connection, token="n1") as good, XdsClient(connection, token="n2") as bad:
        good.wildcard()
        good.take()
        bad.send_bytes(b"\xff\xff")
        assert bad.ended().code is grpc.StatusCode.INVALID_ARGUMENT
        good.take()
    assert server.metric("streams_ended_total", reason="malformed") == before + 1


def test_nacks_and_pushes_are_counted(server: XdsServer, connection: grpc.Channel) -> None:
    nacks = server.metric("nacks_total", kind="address")
    pushes, acks = server.metric("pushes_total", kind="address"), server.metric("ack_seconds_count", kind="address")
    with XdsClient(connection, token="n1") as client:
        client.begin(ADDRESS)
        client.take(error="a: no")
        client.send("other")
        server.publish(Delta(workloads=(pod("m"),)))
        client.until(lambda: "m" in client.resources[ADDRESS])
        client.send(ADDRESS, ["none"])
        client.take()  # so the server has read all that was sent before
    assert server.metric("nacks_total", kind="address") == nacks + 1
    wait_until(lambda: server.metric("pushes_total", kind="address") == pushes + 3)  # counted when it is written
    assert server.metric("ack_seconds_count", kind="address") == acks + 1
    assert server.metric("requests_passed_over_total", why="type") == 1
    assert server.metric("push_bytes_total", kind="address") > 0
    assert server.metric("resources", kind="authorization") == 1


def test_a_caller_has_so_many_streams(monkeypatch: pytest.MonkeyPatch, connection: grpc.Channel) -> None:
    monkeypatch.setattr(ads, "MAX_STREAMS_OF_A_CALLER", 1)
    with XdsClient(connection, token="n8") as first, XdsClient(connection, token="n9") as other:
        for client in (first, other):
            client.begin(ADDRESS)
            client.take()
        with XdsClient(connection, token="n8") as second:
            second.begin(ADDRESS)
            assert second.ended().code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_the_controller_has_so_many_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ads, "MAX_CLIENTS", 1)
    with XdsServer() as server, channel(server.target) as connection, XdsClient(connection) as first:
        first.begin(ADDRESS)
        first.take()
        with XdsClient(connection) as second:
            assert second.ended().code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert server.metric("streams_ended_total", reason="clients") == 1


def test_before_the_state_is_whole_nobody_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ads, "START_WAIT_S", 0.05)
    with XdsServer(start=False) as server, channel(server.target) as connection:
        with XdsClient(connection) as client:
            client.wildcard()
            ended = client.ended()
            assert (ended.code, server.metric("pushes_total", kind="address")) == (grpc.StatusCode.UNAVAILABLE, 0)
        monkeypatch.setattr(ads, "START_WAIT_S", 20.0)
        with XdsClient(connection) as client:
            client.wildcard()
            server.publish(Delta(workloads=(pod("a"),)))
            server.call(server.publisher.start)
            assert [resource.name for resource in client.take().resources] == ["a"]


def test_who_says_nothing_is_sent_away(monkeypatch: pytest.MonkeyPatch, connection: grpc.Channel) -> None:
    monkeypatch.setattr(xds_stream, "FIRST_REQUEST_WAIT_S", 0.05)
    with XdsClient(connection, token="n1") as client:
        assert client.ended().code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_who_does_not_acknowledge_is_sent_away(monkeypatch: pytest.MonkeyPatch, connection: grpc.Channel) -> None:
    monkeypatch.setattr(xds_stream, "ACK_WAIT_S", 0.05)
    with XdsClient(connection, token="n1") as client:
        client.begin(ADDRESS)
        client.receive()
        assert client.ended().code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_client_that_ends_its_side_ends_the_stream(server: XdsServer, connection: grpc.Channel) -> None:
    with XdsClient(connection, token="n1") as client:
        client.begin(ADDRESS)
        client.take()
        client.finish()
        assert client.ended().code is grpc.StatusCode.OK


def test_streams_begin_by_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xds_stream, "MAX_STARTING", 1)
    with XdsServer() as server, channel(server.target) as connection:
        with XdsClient(connection) as first:
            first.begin(ADDRESS)
            first.take()
            with XdsClient(connection) as second:
                second.wildcard()
                with pytest.raises(TimeoutError):
                    second.receive(0.1)
                first.begin(AUTHORIZATION)  # now all is said that it may have much to say of
                second.take()
                second.take()
        monkeypatch.setattr(xds_stream, "STARTING_S", 0.1)
        with XdsClient(connection) as first:
            first.begin(ADDRESS)
            first.take()
            with XdsClient(connection) as second:
                second.begin(ADDRESS)
                second.take()


def test_a_connection_ends_when_it_is_old() -> None:
    options = {"grpc.max_connection_age_ms": 100, "grpc.max_connection_age_grace_ms": 50}
    with XdsServer(options=options) as server, channel(server.target) as connection, XdsClient(connection) as client:
        client.begin(ADDRESS)
        client.take()
        assert client.ended().code is grpc.StatusCode.UNAVAILABLE
        wait_until(lambda: server.ads.streams == 0)
