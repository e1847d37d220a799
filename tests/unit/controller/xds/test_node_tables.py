from __future__ import annotations

import pytest

from nodeproxy.controller.xds.node_tables import NodeTables
from nodeproxy.controller.xds.session import Session
from nodeproxy.model.node_pod import NodePod
from nodeproxy.proto import discovery_pb2
from nodeproxy.xds.encode import Encoded, encode_node_pod
from nodeproxy.xds.names import NODE_POD

pytestmark = pytest.mark.unit


def pod(name: str, uid: str = "u") -> Encoded:
    return encode_node_pod(NodePod(namespace="ns", name=name, pod_uid=uid))


class Subscriber:
    def __init__(self, tables: NodeTables, node: str) -> None:
        self.session = Session((), node="", clock=lambda: 0.0)
        self.session.receive(discovery_pb2.DeltaDiscoveryRequest(type_url=NODE_POD).SerializeToString())
        assert self.session.awaits_place
        self.session.place([tables.join(node, self)])
        assert not self.session.awaits_place

    def wake(self) -> None:
        raise AssertionError("nobody asked for it")

    def told(self) -> tuple[list[str], list[str]]:
        push = self.session.respond()
        if push is None:
            return [], []
        response = discovery_pb2.DeltaDiscoveryResponse.FromString(push.message)
        acknowledged = discovery_pb2.DeltaDiscoveryRequest(type_url=NODE_POD, response_nonce=push.nonce)
        self.session.receive(acknowledged.SerializeToString())
        return [resource.name for resource in response.resources], list(response.removed_resources)


def test_a_change_concerns_the_subscribers_of_its_node_alone() -> None:
    tables = NodeTables()
    tables.put("n1", pod("a"), 0.0)
    tables.put("n2", pod("b"), 0.0)
    assert tables.release() == set()
    first, second, other = (Subscriber(tables, node) for node in ("n1", "n1", "n2"))
    assert [each.told()[0] for each in (first, second, other)] == [["ns/a"], ["ns/a"], ["ns/b"]]
    assert tables.put("n1", pod("c"), 0.0)
    assert not tables.put("n1", pod("c"), 0.0)
    assert tables.changed
    assert first.told() == ([], [])  # not yet
    assert tables.release() == {first, second}
    assert not tables.changed
    assert [each.told()[0] for each in (first, second, other)] == [["ns/c"], ["ns/c"], []]
    assert tables.remove("n2", "ns/b", 0.0)
    assert not tables.remove("n2", "ns/b", 0.0)
    assert tables.release() == {other}
    assert other.told() == ([], ["ns/b"])


def test_a_node_without_pods_and_subscribers_costs_nothing() -> None:
    tables = NodeTables()
    tables.put("n1", pod("a"), 0.0)
    subscriber = Subscriber(tables, "n1")
    assert subscriber.told()[0] == ["ns/a"]
    tables.remove("n1", "ns/a", 0.0)
    assert tables.release() == {subscriber}
    assert subscriber.told() == ([], ["ns/a"])
    assert len(list(tables.all())) == 1
    tables.leave("n1", subscriber)
    assert list(tables.all()) == []
    tables.put("n1", pod("a"), 0.0)
    tables.remove("n1", "ns/a", 0.0)
    assert list(tables.all()) == []
    assert not tables.changed
    assert not tables.remove("never", "ns/a", 0.0)
    assert list(tables.all()) == []


def test_what_all_of_a_node_have_been_told_is_forgotten() -> None:
    tables = NodeTables()
    subscriber = Subscriber(tables, "n1")
    subscriber.told()
    for number in range(50):
        tables.put("n1", pod("a", str(number)), 0.0)
        tables.put("n2", pod("b", str(number)), 0.0)
        tables.release()
        assert subscriber.told()[0] == ["ns/a"]
    assert [table.kept for table in tables.all()] == [1, 0]
