"""Envoy as a waypoint between two nodeproxies: it adds a header, and it is the waypoint whom the destination's policy judges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.mesh.cluster import wait_until
from tests.peers.envoy import Config, Envoy, waypoint
from tests.peers.exchange import HttpApplication, Pair, bulk, echo_once, ends_late, get, half_close, joined, many, reset
from tests.peers.peers import HTTP_PORT, VIP, VIP_6, VIP_BY_NAME, VIP_IMPOSTOR, VIP_LOST, VIP_WEIGHTED, VIPS, Peers, is_refused

MIB = 1 << 20


def configured(peers: Peers, name: str, identity: str) -> Config:
    services = {}
    for vip in VIPS:
        address = f"[{peers.server.ip6}]" if ":" in vip else peers.server.ip
        services[vip, 80] = [f"{address}:{HTTP_PORT}"]
    return waypoint(peers.credentials(identity), name, services=services, http_ports=(HTTP_PORT,))


@pytest.fixture(scope="module")
def envoys(peers: Peers) -> Iterator[dict[str, Envoy]]:
    pods = {"waypoint": peers.waypoint, "waypoint2": peers.waypoint2}
    made = {name: peers.envoy(pod, configured(peers, name, pod.identity)) for name, pod in pods.items()}
    yield made
    for envoy in made.values():
        envoy.stop()


@pytest.fixture(scope="module")
def application(peers: Peers) -> Iterator[None]:
    with HttpApplication(peers.server, HTTP_PORT), HttpApplication(peers.guarded, HTTP_PORT):
        yield


pytestmark = pytest.mark.usefixtures("envoys", "application")


def test_a_service_through_its_waypoint(peers: Peers) -> None:
    sock = peers.client.connect(VIP, 80)
    assert sock.getpeername() == (VIP, 80)
    seen = get(sock)
    assert seen["x-waypoint"] == "waypoint"
    outbound = peers.log_of(peers.cluster.agents[0], f"{VIP}:80")[-1]
    assert outbound["dst.hbone_addr"] == f"{peers.waypoint.ip}:15008"
    assert outbound["dst.identity"] == peers.waypoint.identity
    assert outbound["dst.service"] == "api.shop.svc"


def test_the_destination_sees_the_waypoints_identity(peers: Peers) -> None:
    get(peers.client.connect(VIP, 80))
    rows = peers.log_of(peers.cluster.agents[1], f"{peers.server.ip}:{HTTP_PORT}")
    assert rows[-1]["src.identity"] == peers.waypoint.identity
    assert rows[-1]["src.workload"] == "waypoint"


@pytest.mark.parametrize(("address", "port"), [(VIP_6, 80), (VIP_BY_NAME, 80)], ids=["IPv6", "named by a service"])
def test_other_ways_to_say_it(peers: Peers, address: str, port: int) -> None:
    assert get(peers.client.connect(address, port))["x-waypoint"] == "waypoint"


def test_a_pod_through_its_waypoint(peers: Peers) -> None:
    assert get(peers.client.connect(peers.guarded.ip, HTTP_PORT))["x-waypoint"] == "waypoint"
    assert "x-waypoint" not in get(peers.client.connect(peers.server.ip, HTTP_PORT)), "this pod has none"


def test_policy_lets_the_waypoint_in_and_nobody_else(peers: Peers) -> None:
    principal = peers.waypoint.identity.removeprefix("spiffe://")
    policy = {
        "name": "only-the-waypoint",
        "namespace": "shop",
        "scope": "Namespace",
        "action": "Allow",
        "rules": [[[{"principals": [{"exact": principal}]}]]],
    }
    peers.cluster.policies.append(policy)
    peers.cluster.apply()
    try:
        assert get(peers.client.connect(VIP, 80))["x-waypoint"] == "waypoint"
        assert is_refused(lambda: peers.client.connect(peers.server.ip, HTTP_PORT))
        assert peers.reason(peers.cluster.agents[0], f"{peers.server.ip}:{HTTP_PORT}") == "hbone_denied"
        assert peers.reason(peers.cluster.agents[1], f"{peers.server.ip}:{HTTP_PORT}") == "policy_no_allow"
    finally:
        peers.cluster.policies.remove(policy)
        peers.cluster.apply()


def test_weighted_waypoints(peers: Peers) -> None:
    seen = Counter(get(peers.client.connect(VIP_WEIGHTED, 80))["x-waypoint"] for _ in range(80))
    # Each of two workers counts for itself, so each may be a few connections off the exact split.
    assert set(seen) == {"waypoint", "waypoint2"}
    assert 54 <= seen["waypoint"] <= 66


def test_64_mebibytes_each_way(peers: Peers) -> None:
    ours, theirs = joined_guarded(peers, 9200)
    with ours, theirs:
        bulk((ours, theirs), 64 * MIB)


def joined_guarded(peers: Peers, port: int) -> Pair:
    return joined(lambda: peers.client.connect(peers.guarded.ip, port), peers.guarded, port)


def test_half_closed_by_the_client(peers: Peers) -> None:
    ours, theirs = joined_guarded(peers, 9201)
    with ours, theirs:
        half_close(ours, theirs)


def test_the_application_ends_first(peers: Peers, envoys: dict[str, Envoy]) -> None:
    ended = _completed(envoys)
    ours, theirs = joined_guarded(peers, 9204)
    with ours, theirs:
        ends_late(ours, theirs, lambda: wait_until(lambda: _completed(envoys) > ended, "the end"))


def _completed(envoys: dict[str, Envoy]) -> int:
    return envoys["waypoint"].stat("http.connect_terminate.downstream_rq_completed")


@pytest.mark.parametrize("first", [0, 1], ids=["client", "application"])
def test_reset_by(peers: Peers, first: int) -> None:
    ends = joined_guarded(peers, 9202)
    with ends[1 - first] as other:
        echo_once(ends)
        reset(ends[first])
        with pytest.raises(ConnectionResetError):
            other.recv(1)


def test_100_streams_at_once(peers: Peers) -> None:
    many(lambda: peers.client.connect(peers.guarded.ip, 9203), peers.guarded, 9203, 100)


def test_a_waypoint_that_nobody_knows(peers: Peers) -> None:
    assert is_refused(lambda: peers.client.connect(VIP_LOST, 80))
    row = peers.log_of(peers.cluster.agents[0], f"{VIP_LOST}:80")[-1]
    assert row["error"].startswith("no_waypoint: shop/lost.shop.svc must be reached through its waypoint")


def test_a_waypoint_with_another_identity(peers: Peers) -> None:
    envoy = peers.envoy(peers.impostor, configured(peers, "impostor", peers.legacy.identity))
    try:
        assert is_refused(lambda: peers.client.connect(VIP_IMPOSTOR, 80))
        assert peers.reason(peers.cluster.agents[0], f"{VIP_IMPOSTOR}:80") == "peer_identity"
    finally:
        envoy.stop()


def test_a_waypoint_that_is_away_and_comes_back(peers: Peers, envoys: dict[str, Envoy]) -> None:
    envoys["waypoint"].stop()
    assert is_refused(lambda: peers.client.connect(VIP, 80))
    assert peers.reason(peers.cluster.agents[0], f"{VIP}:80") == "connect_refused"
    envoys["waypoint"].start()
    assert get(peers.client.connect(VIP, 80))["x-waypoint"] == "waypoint"
