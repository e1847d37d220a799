"""Admission to a pod."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nodeproxy.decide.inbound import (
    Admission,
    admit_hbone,
    admit_local,
    admit_plain,
    recheck,
    status_for,
)
from nodeproxy.decide.trace import Trace
from nodeproxy.errors import ResourceError
from nodeproxy.model.policy import Action, Match, Policy, PolicyScope, StringMatch
from nodeproxy.model.reason import Reason, Refusal
from nodeproxy.model.workload import ApplicationTunnel, Gateway, WeightedGateway, Workload
from nodeproxy.proto.authorization_pb2 import Authorization
from nodeproxy.state.view import View
from nodeproxy.xds.decode import stand_in
from tests.unit.state.builders import pod, service

Build = Callable[..., View]

CLIENT_ID = "spiffe://cluster.local/ns/clients/sa/c"
POD = pod("server", "10.0.0.2", "fd00::2", services={"ns/web.svc": {}})
WEB = service("web", "10.96.0.1")


def policy(action: Action, name: str = "p", scope: PolicyScope = PolicyScope.NAMESPACE, **fields: object) -> Policy:
    rules = (((Match(**fields),),),) if fields else ()  # type: ignore[arg-type]
    return Policy(name=name, namespace="ns", scope=scope, action=action, rules=rules)


def admitted(found: Admission | Refusal) -> Admission:
    assert isinstance(found, Admission), found
    return found


def hbone(view: View, authority: str, at: Workload = POD, ip: str = "10.0.0.2", identity: str = CLIENT_ID) -> Admission | Refusal:
    return admit_hbone(view, at, authority, ip, identity, "10.0.0.1")


@pytest.mark.parametrize(
    ("authority", "ip"), [("10.0.0.2:8080", "10.0.0.2"), ("[fd00::2]:8080", "fd00::2"), ("[::ffff:10.0.0.2]:8080", "10.0.0.2")]
)
def test_the_pods_own_address_is_admitted(build: Build, authority: str, ip: str) -> None:
    found = admitted(hbone(build(POD, services=(WEB,)), authority, ip=ip))
    assert (found.address, found.target, found.service, found.proxy_protocol) == ((ip, 8080), (ip, 8080), WEB, False)
    assert found.subject.source_identity == CLIENT_ID


@pytest.mark.parametrize(
    ("authority", "reason", "status"),
    [
        ("garbage", Reason.BAD_AUTHORITY, 400),
        ("10.0.0.3:8080", Reason.AUTHORITY_MISMATCH, 400),
        ("10.96.0.1:80", Reason.AUTHORITY_MISMATCH, 400),
        ("10.0.0.2:15008", Reason.ILLEGAL_PORT, 503),
        ("10.0.0.2:15006", Reason.ILLEGAL_PORT, 503),
        ("10.0.0.2:15001", Reason.ILLEGAL_PORT, 503),
        ("nowhere.svc:80", Reason.UNKNOWN_SERVICE, 503),
        ("web.svc:81", Reason.NO_ENDPOINT, 503),
        ("loop.svc:80", Reason.ILLEGAL_PORT, 503),
    ],
)
def test_refusals_and_their_status(build: Build, authority: str, reason: Reason, status: int) -> None:
    loop = service("loop", ports={80: 15008})
    found = hbone(build(POD, services=(WEB, loop)), authority)
    assert isinstance(found, Refusal)
    assert (found.reason, status_for(found)) == (reason, status)


def test_status_of_other_refusals() -> None:
    assert [status_for(Refusal(reason, "")) for reason in (Reason.NOT_CONNECT, Reason.CONNECT_REFUSED, Reason.POLICY_DENY)] == [
        400,
        503,
        401,
    ]


@pytest.mark.parametrize(("own", "port"), [({}, 8080), ({80: 9090}, 9090)])
def test_a_hostname_leads_to_the_services_port_of_this_pod(build: Build, own: dict[int, int], port: int) -> None:
    at = pod("server", "10.0.0.2", services={"ns/web.svc": own})
    found = admitted(hbone(build(at, services=(WEB,)), "web.svc:80", at))
    assert (found.address, found.target, found.service) == (("10.0.0.2", port), ("10.96.0.1", 80), WEB)


def test_a_hostname_means_the_service_of_the_clients_namespace(build: Build) -> None:
    theirs = service("web", "10.96.0.7", namespace="clients", hostname="web.svc", ports={80: 7})
    assert admitted(hbone(build(POD, services=(WEB, theirs)), "web.svc:80")).address == ("10.0.0.2", 7)
    assert admitted(hbone(build(POD, services=(WEB, theirs)), "web.svc:80", identity="")).address == (
        "10.0.0.2",
        7,
    )  # first by key


def test_an_application_tunnel_takes_any_target_and_its_own_port(build: Build) -> None:
    proxy = pod("wp", "10.0.0.9", application_tunnel=ApplicationTunnel(port=15088, proxy=True))
    found = admitted(hbone(build(proxy), "10.96.0.1:80", proxy, "10.0.0.9"))
    assert (found.address, found.target, found.proxy_protocol) == (("127.0.0.1", 15088), ("10.96.0.1", 80), True)
    assert (found.subject.destination_ip, found.subject.destination_port) == ("10.0.0.9", 15088)
    plain = pod("wp", "10.0.0.9", application_tunnel=ApplicationTunnel())
    found = admitted(hbone(build(plain), "10.96.0.1:80", plain, "10.0.0.9"))
    assert (found.address, found.proxy_protocol) == (("10.0.0.9", 80), False)


WAYPOINT = pod("wp", "10.0.0.9", services={"ns/wp.svc": {}})


@pytest.mark.parametrize(
    "gateway", [Gateway(destination="/10.0.0.9"), Gateway(destination="/10.96.0.9"), Gateway("ns/wp.svc", is_hostname=True)]
)
def test_a_waypoint_takes_what_is_meant_for_those_behind_it(build: Build, gateway: Gateway) -> None:
    behind = pod("behind", "10.0.0.3", waypoint=gateway)
    by_weight = service("weighted", "10.96.0.2", weighted_waypoints=(WeightedGateway(gateway),))
    services = (service("web", "10.96.0.1", waypoint=gateway), by_weight, service("wp", "10.96.0.9"))
    view = build(WAYPOINT, behind, POD, services=services)
    for authority in ("10.0.0.3:80", "10.96.0.1:80", "10.96.0.2:80"):
        assert admitted(hbone(view, authority, WAYPOINT, "10.0.0.9")).address == ("10.0.0.9", 80)
    for at, ip, authority in ((WAYPOINT, "10.0.0.9", "10.0.0.2:80"), (POD, "10.0.0.2", "10.0.0.3:80")):
        found = hbone(view, authority, at, ip)
        assert isinstance(found, Refusal)
        assert found.reason is Reason.AUTHORITY_MISMATCH


def test_policy_is_asked_with_identity_and_the_pods_own_port(build: Build) -> None:
    allow = policy(
        Action.ALLOW, namespaces=(StringMatch(exact="clients"),), destination_ports=(8080,), destination_ips=("10.0.0.2",)
    )
    view = build(POD, services=(WEB,), policies=(allow,))
    assert isinstance(hbone(view, "10.0.0.2:8080"), Admission)
    assert isinstance(hbone(view, "web.svc:80"), Admission)
    for found in (hbone(view, "10.0.0.2:80"), hbone(view, "10.0.0.2:8080", identity="spiffe://cluster.local/ns/x/sa/c")):
        assert isinstance(found, Refusal)
        assert (found.reason, status_for(found), found.resource) == (Reason.POLICY_NO_ALLOW, 401, "ns/p")


def test_plaintext_has_no_identity(build: Build) -> None:
    view = build(POD, services=(WEB,))
    found = admitted(admit_plain(view, POD, "10.0.0.2", 8080, "192.0.2.1"))
    assert (found.address, found.service, found.subject.source_identity) == (("10.0.0.2", 8080), WEB, "")
    strict = policy(Action.DENY, "strict", not_principals=(StringMatch(presence=True),), not_destination_ports=(9090,))
    view = build(POD, policies=(strict,))
    denied = admit_plain(view, POD, "10.0.0.2", 8080, "192.0.2.1")
    assert isinstance(denied, Refusal)
    assert denied.detail == "denied by DENY policy ns/strict, rule 0"
    assert isinstance(admit_plain(view, POD, "10.0.0.2", 9090, "192.0.2.1"), Admission)
    assert isinstance(hbone(view, "10.0.0.2:8080"), Admission)


@pytest.mark.parametrize("port", [15001, 15006, 15008])
def test_own_ports_are_never_admitted(build: Build, port: int) -> None:
    view = build(POD)
    for found in (
        admit_plain(view, POD, "10.0.0.2", port, "192.0.2.1"),
        admit_local(view, POD, "10.0.0.2", port, POD, "10.0.0.2"),
    ):
        assert isinstance(found, Refusal)
        assert found.reason is Reason.ILLEGAL_PORT


def test_plaintext_does_not_reach_an_application_tunnel(build: Build) -> None:
    at = pod("wp", "10.0.0.9", application_tunnel=ApplicationTunnel(port=15088, proxy=True))
    found = admitted(admit_plain(build(at), at, "10.0.0.9", 80, "192.0.2.1"))
    assert (found.address, found.proxy_protocol) == (("10.0.0.9", 80), False)


def test_a_pod_of_the_same_node_has_its_identity(build: Build) -> None:
    source = pod("client", "10.0.0.1", namespace="clients", service_account="c")
    view = build(POD, source, policies=(policy(Action.ALLOW, principals=(StringMatch(exact="cluster.local/ns/clients/sa/c"),)),))
    assert admitted(admit_local(view, POD, "10.0.0.2", 80, source, "10.0.0.1")).subject.source_identity == source.identity
    assert isinstance(admit_local(view, POD, "10.0.0.2", 80, POD, "10.0.0.2"), Refusal)


def test_recheck_goes_by_todays_policies_and_todays_workload(build: Build) -> None:
    subject = admitted(hbone(build(POD), "10.0.0.2:8080")).subject
    assert recheck(build(POD), POD, subject) is None
    everybody = policy(Action.DENY, "closed", PolicyScope.WORKLOAD_SELECTOR, destination_ports=(8080,))
    assert recheck(build(POD, policies=(everybody,)), POD, subject) is None
    attached = pod("server", "10.0.0.2", policies=("ns/closed",))
    refusal = recheck(build(attached, policies=(everybody,)), POD, subject)
    assert refusal is not None
    assert refusal.resource == "ns/closed"
    # A pod that the source no longer knows is judged as it was.
    assert recheck(build(policies=(everybody,)), attached, subject) is not None


def test_dry_run_is_told(build: Build) -> None:
    dry = Policy(name="dry", namespace="ns", scope=PolicyScope.NAMESPACE, action=Action.DENY, rules=((),), dry_run=True)
    found = admitted(hbone(build(POD, policies=(dry,)), "10.0.0.2:80"))
    assert [refusal.resource for refusal in found.dry_run] == ["ns/dry"]


def test_the_service_meant(build: Build) -> None:
    at = pod("server", "10.0.0.2", services={"ns/a.svc": {}, "ns/b.svc": {80: 9090}, "ns/gone.svc": {80: 9090}})
    view = build(at, services=(service("a"), service("b")))
    meant = [admitted(hbone(view, f"10.0.0.2:{port}", at)).service for port in (8080, 9090, 22)]
    assert [found and found.name for found in meant] == ["a", "b", None]
    found = admitted(admit_hbone(view, at, "10.0.0.2:8080", "10.0.0.2", CLIENT_ID, "10.0.0.1", forwarded_host="b.svc"))
    assert found.service is not None
    assert found.service.name == "b"


def test_trace_tells_each_policy(build: Build) -> None:
    trace: Trace = []
    policies = (policy(Action.DENY, "d", destination_ports=(1,)), policy(Action.ALLOW, "a", destination_ports=(80,)))
    admit_hbone(build(POD, policies=policies), POD, "10.0.0.2:80", "10.0.0.2", CLIENT_ID, "10.0.0.1", trace)
    assert [(step.outcome, step.resource) for step in trace] == [
        ("does not match", "ns/d"),
        ("matches with rule 0", "ns/a"),
        ("allowed", ""),
    ]


def test_of_many_policies_the_trace_tells_those_that_can_match(build: Build) -> None:
    many = tuple(policy(Action.ALLOW, f"p{n:02}", namespaces=(StringMatch(exact=f"ns{n}"),)) for n in range(40))
    trace: Trace = []
    view = build(POD, policies=(*many, policy(Action.ALLOW, "yes", namespaces=(StringMatch(exact="clients"),))))
    assert admitted(admit_hbone(view, POD, "10.0.0.2:8080", "10.0.0.2", CLIENT_ID, "10.0.0.1", trace)).address
    assert [(step.what, step.outcome) for step in trace] == [
        ("which policies can match?", "1 of the 41 that hold for server"),
        ("allowed by policy?", "matches with rule 0"),
        ("what does policy say?", "allowed"),
    ]


NOT_UNDERSTOOD = ResourceError("extension", "an extension")
ALLOW_OF_WHICH_NO_MORE_IS_READ = Authorization(name="odd", namespace="ns", scope=1).SerializeToString()


@pytest.mark.parametrize("others", [0, 40])  # 40 are looked up by the index
def test_in_place_of_a_policy_that_is_not_understood_everything_is_denied(build: Build, others: int) -> None:
    many = tuple(policy(Action.ALLOW, f"p{n:02}", namespaces=(StringMatch(exact="clients"),)) for n in range(others))
    view = build(POD, policies=(stand_in("ns/odd", b"\xff", NOT_UNDERSTOOD, is_root=False), *many))
    trace: Trace = []
    answer = admit_hbone(view, POD, "10.0.0.2:80", "10.0.0.2", CLIENT_ID, "10.0.0.1", trace)
    assert isinstance(answer, Refusal)
    assert (answer.reason, answer.resource) == (Reason.POLICY_DENY, "ns/odd")
    assert "matches with rule 0; it holds the place of one that can't be understood: an extension" in {s.outcome for s in trace}


@pytest.mark.parametrize("others", [0, 40])
def test_in_place_of_an_allow_policy_others_may_allow(build: Build, others: int) -> None:
    many = tuple(policy(Action.ALLOW, f"p{n:02}", namespaces=(StringMatch(exact="clients"),)) for n in range(others))
    made = stand_in("ns/odd", ALLOW_OF_WHICH_NO_MORE_IS_READ, NOT_UNDERSTOOD, is_root=False)
    answer = admit_hbone(build(POD, policies=(made, *many)), POD, "10.0.0.2:80", "10.0.0.2", CLIENT_ID, "10.0.0.1")
    assert isinstance(answer, Admission) == bool(others)
