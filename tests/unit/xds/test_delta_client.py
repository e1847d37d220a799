from __future__ import annotations

import pytest

from nodeproxy.errors import ResourceError
from nodeproxy.proto import discovery_pb2
from nodeproxy.xds.delta_client import MAX_NAMED, DeltaClient, Rejected, encode_known
from nodeproxy.xds.names import ADDRESS, AUTHORIZATION

NODE = discovery_pb2.Node(id="ztunnel~10.0.0.1~a.system~system.svc.cluster.local")


def client(on_demand: bool = False) -> DeltaClient:
    made = DeltaClient(NODE, (AUTHORIZATION, ADDRESS), on_demand=(ADDRESS,) if on_demand else ())
    made.open()
    return made


def sent(state: DeltaClient) -> list[discovery_pb2.DeltaDiscoveryRequest]:
    return [discovery_pb2.DeltaDiscoveryRequest.FromString(raw) for raw in state.take()]


def test_what_is_known_of_many() -> None:
    known = {f"uid-{number}": str(number) for number in range(1200)}
    state = client()
    state.begin(AUTHORIZATION, encode_known(known.items()))
    (request,) = sent(state)
    assert dict(request.initial_resource_versions) == known
    assert request.node == NODE


def test_first_request_of_a_type_is_for_all_and_only_the_first_of_a_stream_says_who_asks() -> None:
    state = client()
    assert state.due() == AUTHORIZATION
    state.begin(AUTHORIZATION)
    (request,) = sent(state)
    assert request.type_url == AUTHORIZATION
    assert request.node == NODE
    assert not request.resource_names_subscribe
    assert state.due() is None  # policies first: workloads are asked for when they are known
    state.reply(AUTHORIZATION, "n1")
    assert state.due() == ADDRESS
    state.begin(ADDRESS, encode_known({"uid": "v1", "ns/host": ""}.items()))
    acknowledged, second = sent(state)
    assert (acknowledged.type_url, acknowledged.response_nonce) == (AUTHORIZATION, "n1")
    assert not acknowledged.HasField("error_detail")
    assert not second.HasField("node")
    assert dict(second.initial_resource_versions) == {"uid": "v1", "ns/host": ""}
    assert second.response_nonce == ""
    assert not state.all_answered
    state.reply(ADDRESS, "n2")
    assert state.all_answered
    assert state.due() is None


def test_a_new_stream_begins_anew() -> None:
    state = client()
    state.begin(AUTHORIZATION)
    state.reply(AUTHORIZATION, "n1")
    state.open()
    assert sent(state) == []
    assert state.due() == AUTHORIZATION
    state.begin(AUTHORIZATION, encode_known({"ns/name": "7"}.items()))
    (request,) = sent(state)
    assert request.node == NODE
    assert dict(request.initial_resource_versions) == {"ns/name": "7"}


def test_nack_names_what_was_rejected() -> None:
    state = client()
    state.begin(AUTHORIZATION)
    sent(state)
    rejected = [Rejected(f"ns/{number}", "extension", "why") for number in range(MAX_NAMED + 3)]
    state.reply(AUTHORIZATION, "n1", rejected, count=100)
    (request,) = sent(state)
    assert request.response_nonce == "n1"
    assert request.error_detail.code == 3
    assert request.error_detail.message.startswith("100 rejected: ns/0: why; ns/1: why")
    assert f"ns/{MAX_NAMED}:" not in request.error_detail.message
    assert request.error_detail.message.endswith(f"and {100 - MAX_NAMED} more")
    assert state.due() == ADDRESS  # it was answered all the same


def test_a_type_that_was_not_asked_for() -> None:
    state = client()
    state.begin(AUTHORIZATION)
    state.expect(AUTHORIZATION)
    for type_url in (ADDRESS, "type.googleapis.com/envoy.config.cluster.v3.Cluster", ""):
        with pytest.raises(ResourceError) as error:
            state.expect(type_url)
        assert error.value.reason == "unexpected_type"


def test_on_demand_subscribes_to_nothing_and_then_by_name() -> None:
    state = client(on_demand=True)
    state.begin(AUTHORIZATION)
    state.reply(AUTHORIZATION, "n1")
    state.subscribe(ADDRESS, ["/10.0.0.9"])  # before the type has begun
    state.begin(ADDRESS, encode_known({"uid-1": "v"}.items()))
    requests = sent(state)
    assert list(requests[-1].resource_names_subscribe) == ["*", "/10.0.0.9"]
    assert list(requests[-1].resource_names_unsubscribe) == ["*"]
    assert dict(requests[-1].initial_resource_versions) == {"uid-1": "v"}
    state.subscribe(ADDRESS, ["/10.0.0.1", "/10.0.0.2", "/10.0.0.9"])
    state.unsubscribe(ADDRESS, ["/10.0.0.2", "/10.0.0.9", "never subscribed"])
    state.reply(ADDRESS, "n2")
    reply, change = sent(state)
    assert reply.response_nonce == "n2"
    assert not reply.resource_names_subscribe
    assert change.response_nonce == ""
    assert list(change.resource_names_subscribe) == ["/10.0.0.1"]
    assert list(change.resource_names_unsubscribe) == ["/10.0.0.9"]
    assert sent(state) == []
    assert state.subscribed(ADDRESS) == {"/10.0.0.1"}
    assert state.subscribed(AUTHORIZATION) is None
    state.open()
    state.begin(AUTHORIZATION)
    state.reply(AUTHORIZATION, "n1")
    state.begin(ADDRESS)
    assert list(sent(state)[-1].resource_names_subscribe) == ["*", "/10.0.0.1"]


@pytest.mark.parametrize("lets_go_first", [False, True])
def test_a_name_is_answered_once_more(lets_go_first: bool) -> None:
    """istiod answers only for names that are new to it."""
    state = client(on_demand=True)
    state.lets_go_first = lets_go_first
    state.subscribe(ADDRESS, ["/10.0.0.1"])
    state.ask_again(ADDRESS, ["/10.0.0.1"])  # nobody was asked yet
    state.begin(AUTHORIZATION)
    state.reply(AUTHORIZATION, "n1")
    state.begin(ADDRESS)
    sent(state)
    state.subscribe(ADDRESS, ["/10.0.0.2"])
    state.ask_again(ADDRESS, ["/10.0.0.1", "/10.0.0.2", "never subscribed"])
    found = [(list(each.resource_names_subscribe), list(each.resource_names_unsubscribe)) for each in sent(state)]
    if lets_go_first:
        assert found == [(["/10.0.0.2"], ["/10.0.0.1"]), (["/10.0.0.1"], [])]
    else:
        assert found == [(["/10.0.0.1", "/10.0.0.2"], [])]
    assert sent(state) == []
    assert state.subscribed(ADDRESS) == {"/10.0.0.1", "/10.0.0.2"}


@pytest.mark.parametrize("lets_go_first", [False, True])
def test_who_lets_go_and_comes_back_at_once_is_answered(lets_go_first: bool) -> None:
    state = client(on_demand=True)
    state.lets_go_first = lets_go_first
    state.subscribe(ADDRESS, ["/10.0.0.1"])
    state.begin(AUTHORIZATION)
    state.reply(AUTHORIZATION, "n1")
    state.begin(ADDRESS)
    sent(state)
    state.unsubscribe(ADDRESS, ["/10.0.0.1"])
    state.subscribe(ADDRESS, ["/10.0.0.1"])
    *before, request = sent(state)
    assert [list(each.resource_names_unsubscribe) for each in before] == [["/10.0.0.1"]] * lets_go_first
    assert list(request.resource_names_subscribe) == ["/10.0.0.1"]
    state.ask_again(ADDRESS, ["/10.0.0.1"])
    state.unsubscribe(ADDRESS, ["/10.0.0.1"])
    (request,) = sent(state)
    assert list(request.resource_names_unsubscribe) == ["/10.0.0.1"]
    assert state.subscribed(ADDRESS) == set()


def test_what_comes_while_a_request_is_sent_is_sent_next() -> None:
    state = client(on_demand=True)
    state.begin(AUTHORIZATION)
    state.reply(AUTHORIZATION, "n1")
    state.begin(ADDRESS)
    sent(state)
    state.subscribe(ADDRESS, ["/10.0.0.1"])
    requests = state.take()
    next(requests)
    state.subscribe(ADDRESS, ["/10.0.0.2"])
    assert list(requests) == []
    (request,) = sent(state)
    assert list(request.resource_names_subscribe) == ["/10.0.0.2"]
