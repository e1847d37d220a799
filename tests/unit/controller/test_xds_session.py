"""The protocol of one stream, request by request: as ztunnel speaks it to istiod."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from nodeproxy.controller import xds_session, xds_subscription
from nodeproxy.controller.xds_session import Acknowledged, Begun, Changed, PassedOver, Rejected, Session
from nodeproxy.controller.xds_tables import Table
from nodeproxy.errors import CallerError
from nodeproxy.model.policy import Action, Policy, PolicyScope
from nodeproxy.model.workload import Service, Workload
from nodeproxy.proto import discovery_pb2 as discovery
from nodeproxy.xds.encode import encode_policy, encode_service, encode_workload
from nodeproxy.xds.names import ADDRESS, AUTHORIZATION, MAX_NAME_BYTES
from tests.unit.state.builders import pod, service

POLICY = Policy(name="p", namespace="ns", scope=PolicyScope.NAMESPACE, action=Action.DENY)
SERVICES = {"ns/s.svc": {80: 1}}


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Stream:
    """A session and what both sides say; `published` is the server's state."""

    def __init__(self, *, node: str = "") -> None:
        self.clock = Clock()
        self.addresses, self.policies = Table(ADDRESS), Table(AUTHORIZATION)
        self.session = Session([self.addresses, self.policies], node=node, clock=self.clock)
        self.last = discovery.DeltaDiscoveryResponse()

    def put(self, *resources: Workload | Service | Policy) -> None:
        for resource in resources:
            match resource:
                case Workload():
                    self.addresses.put(encode_workload(resource), self.clock())
                case Service():
                    self.addresses.put(encode_service(resource), self.clock())
                case Policy():
                    self.policies.put(encode_policy(resource), self.clock())
        self.release()

    def remove(self, *names: str) -> None:
        for name in names:
            self.addresses.remove(name, self.clock())
        self.release()

    def release(self) -> None:
        self.addresses.release()
        self.policies.release()

    def request(self, type_url: str = ADDRESS, subscribe: Any = (), unsubscribe: Any = (), **more: Any) -> list[object]:
        node = more.pop("node", "")
        error = more.pop("error", "")
        request = discovery.DeltaDiscoveryRequest(
            type_url=type_url, resource_names_subscribe=subscribe, resource_names_unsubscribe=unsubscribe, **more
        )
        if node:
            request.node.id = f"ztunnel~{node}"
            request.node.metadata.update({"NODE_NAME": node})
        if error:
            request.error_detail.message = error
        return list(self.session.receive(request.SerializeToString()))

    def on_demand(self, **more: Any) -> list[object]:
        return self.request(ADDRESS, ["*"], ["*"], **more)

    def told(self) -> tuple[list[str], list[str]] | None:
        """Names of the next response and what it says is gone; None if there is none."""
        push = self.session.respond()
        if push is None:
            return None
        self.last = discovery.DeltaDiscoveryResponse.FromString(push.message)
        assert (push.type_url, push.nonce) == (self.last.type_url, self.last.nonce)
        return sorted(resource.name for resource in self.last.resources), sorted(self.last.removed_resources)

    def acknowledge(self, **more: Any) -> list[object]:
        return self.request(self.last.type_url, response_nonce=self.last.nonce, **more)

    def tell(self) -> tuple[list[str], list[str]] | None:
        told = self.told()
        if told is not None:
            self.acknowledge()
        return told


def test_a_wildcard_gets_everything_then_changes() -> None:
    stream = Stream()
    stream.put(pod("a"), service("s"), POLICY)
    assert stream.request() == [Begun(ADDRESS, True, 0)]
    assert stream.request(AUTHORIZATION) == [Begun(AUTHORIZATION, True, 0)]
    assert stream.tell() == (["a", "ns/s.svc"], [])
    assert stream.tell() == (["ns/p"], [])
    assert stream.tell() is None
    stream.put(pod("b"))
    stream.remove("a")
    assert stream.tell() == (["b"], ["a"])
    assert stream.tell() is None


def test_an_empty_state_is_answered_with_an_empty_response() -> None:
    stream = Stream()
    stream.request(subscribe=["*"])
    stream.request(AUTHORIZATION)
    assert (stream.tell(), stream.tell(), stream.tell()) == (([], []), ([], []), None)


def test_one_response_of_a_type_is_unacknowledged_at_most() -> None:
    stream = Stream()
    stream.put(pod("a", "10.0.0.1"), POLICY)
    stream.request()
    stream.request(AUTHORIZATION)
    assert stream.told() == (["a"], [])
    first = stream.last
    assert stream.told() == (["ns/p"], [])  # types do not wait for each other
    for number in range(2, 9):
        stream.put(pod("a", f"10.0.0.{number}"))
    assert stream.told() is None
    assert stream.session.unacknowledged_since() == 100.0
    stream.request(ADDRESS, response_nonce=first.nonce)
    assert stream.told() == (["a"], [])  # once, as it is now
    (resource,) = stream.last.resources
    assert resource.version == encode_workload(pod("a", "10.0.0.8")).version


def test_policies_are_told_of_before_the_workloads_that_may_list_them() -> None:
    stream = Stream()
    for type_url in (ADDRESS, AUTHORIZATION):
        stream.request(type_url)
        stream.tell()
    stream.put(pod("a", "10.0.0.1"), POLICY)
    assert stream.told() == (["ns/p"], [])
    first = stream.last.nonce
    stream.put(msgspec.structs.replace(POLICY, action=Action.ALLOW))
    assert stream.told() is None  # the workload waits for the policy, which waits for the client
    stream.request(AUTHORIZATION, response_nonce=first)
    assert stream.told() == (["ns/p"], [])
    assert stream.told() == (["a"], [])
    stream.acknowledge()
    stream.request(AUTHORIZATION, response_nonce="2")
    stream.put(pod("b", "10.0.0.2"), POLICY)
    stream.policies.put(encode_policy(msgspec.structs.replace(POLICY, dry_run=True)), stream.clock())  # to be told of later
    assert stream.told() == (["b"], [])


def test_an_acknowledgement_tells_how_long_a_change_took() -> None:
    stream = Stream()
    stream.request()
    stream.told()
    assert stream.acknowledge() == [Acknowledged(ADDRESS, None)]
    stream.put(pod("a"))
    stream.clock.now += 1.0
    stream.put(pod("b"))
    stream.told()
    stream.clock.now += 0.5
    assert stream.acknowledge() == [Acknowledged(ADDRESS, 1.5)]


def test_what_is_rejected_is_sent_again_only_when_it_changed() -> None:
    stream = Stream()
    stream.put(pod("a"))
    stream.request()
    stream.told()
    assert stream.acknowledge(error="a: no such thing") == [Rejected(ADDRESS, "a: no such thing")]
    assert stream.told() is None
    stream.put(pod("a", "10.0.0.1"))
    assert stream.told() == (["a"], [])


def test_wrong_nonces_and_foreign_types_are_passed_over() -> None:
    stream = Stream()
    stream.put(pod("a"))
    stream.request()
    stream.told()
    assert stream.request(response_nonce="of another stream") == [PassedOver(ADDRESS, "nonce")]
    assert stream.told() is None
    stream.acknowledge()
    assert stream.acknowledge() == [PassedOver(ADDRESS, "nonce")]
    assert stream.request("type.googleapis.com/envoy.config.cluster.v3.Cluster") == [
        PassedOver("type.googleapis.com/envoy.config.cluster.v3.Cluster", "type")
    ]
    assert stream.told() is None


def test_a_wildcard_resumes_with_what_differs() -> None:
    stream = Stream()
    stream.put(pod("a"), pod("b"), pod("c"))
    versions = {"a": encode_workload(pod("a")).version, "b": "old", "gone": "x"}
    assert stream.request(initial_resource_versions=versions) == [Begun(ADDRESS, True, 3)]
    assert stream.tell() == (["b", "c"], ["gone"])
    assert stream.tell() is None


def test_a_resume_with_nothing_new_is_answered() -> None:
    stream = Stream()
    stream.put(pod("a"))
    stream.request(initial_resource_versions={"a": encode_workload(pod("a")).version})
    assert stream.tell() == ([], [])


def test_ztunnel_resumes_by_names_without_versions() -> None:
    stream = Stream()
    stream.put(pod("a"), pod("b"))
    stream.request(initial_resource_versions={"a": "", "b": "", "gone": ""}, response_nonce="of another stream")
    assert stream.tell() == (["a", "b"], ["gone"])


def test_what_went_while_a_whole_state_was_due_is_told() -> None:
    stream = Stream()
    stream.put(pod("a"), pod("b"))
    stream.request(initial_resource_versions={"a": "", "b": ""})
    stream.remove("b")
    assert stream.tell() == (["a"], [])
    assert stream.tell() == ([], ["b"])


def test_on_demand_begins_with_nothing_and_answers_names_and_addresses() -> None:
    stream = Stream()
    stream.put(pod("a", "10.0.0.1"), pod("b", "10.0.0.2", services=SERVICES), pod("c"), service("s", "10.1.0.1"))
    assert stream.on_demand() == [Begun(ADDRESS, False, 0)]
    assert stream.tell() == ([], [])
    assert stream.request(subscribe=["/10.0.0.1"]) == [Changed(ADDRESS)]
    assert stream.told() == (["a"], [])
    assert list(stream.last.resources[0].aliases) == ["/10.0.0.1"]
    stream.acknowledge()
    stream.request(subscribe=["/10.1.0.1", "/10.9.9.9", "nobody"])
    assert stream.tell() == (["b", "ns/s.svc"], ["/10.9.9.9", "nobody"])
    stream.request(subscribe=["c", "ns/s.svc"])
    assert stream.tell() == (["b", "c", "ns/s.svc"], [])
    assert stream.tell() is None


def test_on_demand_tells_changes_of_what_was_asked_for() -> None:
    stream = Stream()
    stream.put(pod("a", "10.0.0.1"), pod("b", services=SERVICES), service("s", "10.1.0.1"))
    stream.on_demand()
    stream.request(subscribe=["/10.0.0.1", "/10.1.0.1", "/10.0.0.9"])
    assert stream.tell() == (["a", "b", "ns/s.svc"], ["/10.0.0.9"])
    stream.put(pod("x"), pod("y", services={"ns/other.svc": {}}))
    assert stream.tell() is None
    stream.put(pod("z", "10.0.0.9"), pod("b2", services=SERVICES))  # an address and an endpoint appear
    assert stream.tell() == (["b2", "z"], [])
    stream.remove("a", "b", "x")
    assert stream.tell() == ([], ["a", "b"])
    stream.put(pod("b2"))  # it is an endpoint no more, and that is told
    assert stream.tell() == (["b2"], [])


def test_a_service_that_appears_comes_with_its_endpoints() -> None:
    stream = Stream()
    stream.put(pod("a", services=SERVICES))
    stream.on_demand()
    stream.request(subscribe=["/10.1.0.1"])
    assert stream.tell() == ([], ["/10.1.0.1"])
    stream.put(service("s", "10.1.0.1"))
    assert stream.tell() == (["a", "ns/s.svc"], [])


def test_what_is_asked_for_again_is_answered_again() -> None:
    stream = Stream()
    stream.put(pod("a"))
    stream.on_demand()
    stream.request(subscribe=["a", "/10.9.9.9"])
    assert stream.tell() == (["a"], ["/10.9.9.9"])
    stream.request(subscribe=["a", "/10.9.9.9"])
    assert stream.tell() == (["a"], ["/10.9.9.9"])


def test_the_workloads_of_the_clients_node_come_unasked() -> None:
    stream = Stream()
    stream.put(pod("a", node="n1"), pod("b", node="n2"))
    stream.on_demand(node="n1")
    assert stream.session.client == "ztunnel~n1"
    assert stream.tell() == (["a"], [])
    stream.put(pod("c", node="n1"), pod("d", node="n2"))
    assert stream.tell() == (["c"], [])
    stream.remove("c")
    assert stream.tell() == ([], ["c"])


def test_whoever_the_caller_is_known_to_be_counts_for_more() -> None:
    stream = Stream(node="n1")
    stream.put(pod("a", node="n1"), pod("b", node="n2"))
    stream.on_demand(node="n2")
    assert stream.tell() == (["a"], [])


def test_what_nothing_leads_to_any_more_is_told_to_be_gone() -> None:
    stream = Stream()
    stream.put(pod("a", "10.0.0.1", services=SERVICES), pod("b", services=SERVICES), service("s", "10.1.0.1"))
    stream.on_demand()
    stream.request(subscribe=["ns/s.svc", "/10.0.0.1"])
    assert stream.tell() == (["a", "b", "ns/s.svc"], [])
    stream.request(unsubscribe=["ns/s.svc"])
    assert stream.tell() == ([], ["b", "ns/s.svc"])
    stream.put(pod("b", "10.0.0.2"), pod("a", "10.0.0.1", "10.0.0.3"))
    assert stream.tell() == (["a"], [])


def test_to_let_go_of_what_was_not_asked_for_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream()
    stream.put(pod("a", "10.0.0.1"))
    stream.request(subscribe=["*", "a"], unsubscribe=["*"])
    monkeypatch.delattr(xds_subscription.Subscription, "_narrow")
    stream.request(unsubscribe=["b"])
    with pytest.raises(AttributeError):
        stream.request(unsubscribe=["a"])


def test_on_demand_resumes_by_names_and_addresses() -> None:
    stream = Stream()
    stream.put(pod("a", "10.0.0.1"), pod("b", services=SERVICES), service("s"), pod("n", node="n1"))
    versions = {
        "a": encode_workload(pod("a", "10.0.0.1")).version,
        "/10.0.0.1": "",
        "ns/s.svc": encode_service(service("s")).version,
        "b": "old",
        "/10.9.9.9": "",
    }
    stream.on_demand(initial_resource_versions=versions, node="n1")
    assert stream.tell() == (["b", "n"], ["/10.9.9.9"])
    stream.put(pod("a"), service("s", "10.1.0.1"))
    assert stream.tell() == (["a", "ns/s.svc"], [])


def test_a_client_changes_between_all_and_some() -> None:
    stream = Stream()
    stream.put(pod("a"), pod("b"), POLICY)
    stream.on_demand()
    stream.request(subscribe=["a"])
    assert stream.tell() == (["a"], [])
    stream.request(subscribe=["*"])
    assert stream.tell() == (["a", "b"], [])
    stream.put(pod("b", "10.0.0.2"))
    assert stream.tell() == (["b"], [])
    stream.request(unsubscribe=["*"])
    assert stream.tell() == (["a"], [])
    stream.put(pod("b", "10.0.0.3"))
    assert stream.tell() is None
    stream.put(pod("a", "10.0.0.4"))
    assert stream.tell() == (["a"], [])


def test_policies_can_be_asked_for_by_name() -> None:
    stream = Stream()
    stream.put(POLICY, msgspec.structs.replace(POLICY, name="q"))
    stream.request(AUTHORIZATION, ["ns/q", "ns/none"])
    assert stream.tell() == (["ns/q"], ["ns/none"])


def test_pushes_are_cut_and_answers_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream()
    size = len(encode_workload(pod("p100")).entry)
    monkeypatch.setattr(xds_subscription, "MAX_PUSH_BYTES", size * 10)
    stream.request()
    stream.tell()
    pods = [pod(f"p{number}") for number in range(100, 125)]
    stream.put(*pods)
    told = [stream.tell() for _ in range(4)]
    assert [len(names[0]) for names in told if names] == [10, 10, 5]
    assert told[3] is None
    assert sorted(name for names in told if names for name in names[0]) == [pod.uid for pod in pods]
    later = Stream()
    later.put(*pods)
    later.on_demand()
    later.request(subscribe=[pod.uid for pod in pods])
    assert [len(names[0]) for names in (later.tell(),) if names] == [25]


@pytest.mark.parametrize("resumes", [False, True])
def test_a_state_beyond_any_message_is_cut_after_all(monkeypatch: pytest.MonkeyPatch, resumes: bool) -> None:
    stream = Stream()
    monkeypatch.setattr(xds_subscription, "MAX_ANSWER_BYTES", len(encode_workload(pod("p100")).entry) * 10)
    stream.put(*(pod(f"p{number}") for number in range(100, 125)))
    stream.request(initial_resource_versions={"p100": encode_workload(pod("p100")).version} if resumes else {})
    told = [names[0] for names in (stream.tell() for _ in range(4)) if names]
    assert sorted(name for names in told for name in names) == [f"p{number}" for number in range(100 + resumes, 125)]
    assert stream.tell() is None


def test_who_is_too_far_behind_has_to_resume() -> None:
    stream = Stream()
    stream.put(pod("a"))
    stream.request()
    stream.tell()
    stream.put(pod("b"))
    stream.addresses.forget(stream.addresses.revision)
    with pytest.raises(CallerError) as caught:
        stream.told()
    assert (caught.value.reason, caught.value.code) == ("behind", "ABORTED")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xff\xff\xff", "malformed"),
        (b"GET / HTTP/1.1\r\n", "malformed"),
        (discovery.DeltaDiscoveryRequest(type_url=ADDRESS, resource_names_subscribe=["x" * 481]).SerializeToString(), "names"),
        (
            discovery.DeltaDiscoveryRequest(
                type_url=ADDRESS,
                resource_names_subscribe=["*"],
                resource_names_unsubscribe=["*"],
                initial_resource_versions={"x" * (MAX_NAME_BYTES + 1): ""},
            ).SerializeToString(),
            "names",
        ),
    ],
)
def test_requests_that_end_a_stream(data: bytes, reason: str) -> None:
    with pytest.raises(CallerError) as caught:
        Stream().session.receive(data)
    assert caught.value.reason == reason


def test_a_client_of_another_protocol_is_told_so_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xds_session, "MAX_FOREIGN_REQUESTS", 3)
    stream = Stream()
    for _ in range(3):
        stream.request("other")
    with pytest.raises(CallerError, match=r"only .*Address and .*Authorization are served"):
        stream.request("other")


def test_names_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xds_subscription, "MAX_NAMES", 10)
    stream = Stream()
    stream.put(*(pod(f"p{number}", node="n1") for number in range(11)))
    stream.on_demand()
    stream.request(subscribe=[str(number) for number in range(10)])
    with pytest.raises(CallerError) as caught:
        stream.request(subscribe=["one more"])
    assert (caught.value.reason, caught.value.code) == ("names", "RESOURCE_EXHAUSTED")
    with pytest.raises(CallerError):
        Stream().on_demand(initial_resource_versions={str(number): "" for number in range(11)})
    other = Stream(node="n1")
    other.put(*(pod(f"p{number}", node="n1") for number in range(11)))
    other.on_demand()
    with pytest.raises(CallerError):
        other.told()


def test_what_waits_is_counted() -> None:
    stream = Stream()
    stream.put(pod("a"), pod("b"))
    stream.request()
    assert stream.session.waiting() == 2
    assert stream.session.owes_whole_state
    stream.tell()
    assert stream.session.waiting() == 0
    assert not stream.session.owes_whole_state
    stream.put(pod("c"))
    assert stream.session.waiting() == 1
