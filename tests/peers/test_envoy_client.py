"""Envoy as HBONE client: its tunnels end at nodeproxy."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.mesh.cluster import MeshPod, exactly, wait_until
from tests.peers.envoy import Config, Envoy, tunnel_client
from tests.peers.exchange import arrives, bulk, echo_once, half_close, joined, many, reset
from tests.peers.peers import Peers, is_refused

MIB = 1 << 20
PORTS = range(9000, 9020)
SETTINGS: dict[str, Config] = {
    "default": {},
    "narrow": {"initial_stream_window_size": 65535, "initial_connection_window_size": 65535, "hpack_table_size": 0},
    # 5: SETTINGS_MAX_FRAME_SIZE (RFC 9113, section 6.5.2)
    "wide": {
        "initial_stream_window_size": 16 * MIB,
        "initial_connection_window_size": 64 * MIB,
        "custom_settings_parameters": [{"identifier": 5, "value": MIB}],
    },
}


def configured(peers: Peers, pod: MeshPod, settings: Config | None = None) -> Config:
    targets = {port: f"{peers.server.ip}:{port}" for port in PORTS}
    return tunnel_client(peers.credentials(pod.identity), peers.server.ip, targets, peers.server.identity, settings)


@pytest.fixture(scope="module")
def envoy(peers: Peers) -> Iterator[Envoy]:
    made = peers.envoy(peers.gateway, configured(peers, peers.gateway))
    yield made
    made.stop()


def through(pod: MeshPod, port: int) -> Callable[[], socket.socket]:
    return lambda: pod.connect("127.0.0.1", port)


def answers(envoy: Envoy, port: int) -> list[str]:
    """What Envoy's own access log says about connections to `port`."""
    return [line for line in envoy.log().splitlines() if line.startswith(f"TCP 127.0.0.1:{port} ")]


def deny(peers: Peers, name: str, **match: Any) -> Config:
    policy = {"name": name, "namespace": "shop", "scope": "Namespace", "action": "Deny", "rules": [[[match]]]}
    peers.cluster.policies.append(policy)
    peers.cluster.apply()
    return policy


def test_64_mebibytes_each_way_with_both_identities_in_the_log(peers: Peers, envoy: Envoy) -> None:
    ours, theirs = joined(through(peers.gateway, 9000), peers.server, 9000)
    with ours, theirs:
        assert theirs.getpeername()[0] == peers.gateway.ip
        bulk((ours, theirs), 64 * MIB)
    (row,) = peers.log_of(peers.cluster.agents[1], f"{peers.server.ip}:9000")
    assert row["src.identity"] == peers.gateway.identity
    assert row["src.workload"] == "gateway"
    assert row["dst.identity"] == peers.server.identity
    assert (row["bytes_sent"], row["bytes_recv"]) == (64 * MIB, 64 * MIB)
    assert "error" not in row
    (line,) = wait_until(lambda: answers(envoy, 9000), "Envoy has logged it")
    assert '"200"' in line
    assert "k8s.pod.name=server" in line, "the baggage of the server"


@pytest.mark.parametrize("name", ["narrow", "wide"])
def test_other_settings_of_http_2(peers: Peers, name: str) -> None:
    envoy = peers.envoy(peers.gateway2, configured(peers, peers.gateway2, SETTINGS[name]))
    try:
        ours, theirs = joined(through(peers.gateway2, 9001), peers.server, 9001)
        with ours, theirs:
            bulk((ours, theirs), 16 * MIB)
    finally:
        envoy.stop()


@pytest.mark.parametrize("first", [0, 1], ids=["client", "application"])
def test_half_closed_by(peers: Peers, envoy: Envoy, first: int) -> None:
    ends = joined(through(peers.gateway, 9002), peers.server, 9002)
    with ends[0], ends[1]:
        half_close(ends[first], ends[1 - first])


def test_a_reset_of_the_client_reaches_the_application(peers: Peers, envoy: Envoy) -> None:
    ours, theirs = joined(through(peers.gateway, 9003), peers.server, 9003)
    with theirs:
        echo_once((ours, theirs))
        reset(ours)
        with pytest.raises(ConnectionResetError):
            theirs.recv(1)
    assert peers.reason(peers.cluster.agents[1], f"{peers.server.ip}:9003") == "reset_by_source"


def test_a_reset_of_the_application_reaches_envoy(peers: Peers, envoy: Envoy) -> None:
    """As RST_STREAM with CONNECT_ERROR; what Envoy 1.40 makes of that for its own client is a FIN."""
    before = envoy.stat("cluster.hbone.http2.rx_reset")
    ours, theirs = joined(through(peers.gateway, 9004), peers.server, 9004)
    with ours:
        echo_once((ours, theirs))
        reset(theirs)
        assert ours.recv(1) == b""
    wait_until(lambda: envoy.stat("cluster.hbone.http2.rx_reset") == before + 1, "Envoy counts the reset")


def test_300_streams_at_once(peers: Peers, envoy: Envoy) -> None:
    many(through(peers.gateway, 9005), peers.server, 9005, 300)
    assert len(wait_until(lambda: _complete(peers, 9005, 300), "all 300 are logged")) == 300


def _complete(peers: Peers, port: int, count: int) -> list[dict[str, Any]]:
    rows = peers.log_of(peers.cluster.agents[1], f"{peers.server.ip}:{port}")
    return rows if len(rows) >= count else []


def test_a_denial_is_401_and_names_its_policy(peers: Peers, envoy: Envoy) -> None:
    principal = peers.gateway.identity.removeprefix("spiffe://")
    policy = deny(peers, "no-gateway", principals=[{"exact": principal}], destinationPorts=[9006])
    try:
        with peers.server.listen(9006):
            assert is_refused(through(peers.gateway, 9006))
        assert '"401"' in wait_until(lambda: answers(envoy, 9006), "Envoy has logged it")[0]
        assert peers.reason(peers.cluster.agents[1], f"{peers.server.ip}:9006") == "policy_deny"
        assert "shop/no-gateway" in peers.log_of(peers.cluster.agents[1], f"{peers.server.ip}:9006")[0]["error"]
    finally:
        peers.cluster.policies.remove(policy)
        peers.cluster.apply()


def test_a_policy_that_comes_ends_the_stream_and_not_the_tunnel(peers: Peers, envoy: Envoy) -> None:
    denied, kept = (joined(through(peers.gateway, port), peers.server, port) for port in (9007, 9008))
    with denied[0], denied[1], kept[0], kept[1]:
        echo_once(denied)
        echo_once(kept)
        policy = deny(peers, "not-any-more", destinationPorts=[9007])
        try:
            assert denied[0].recv(1) == b""
            with pytest.raises(ConnectionResetError):
                denied[1].recv(1)
            echo_once(kept)
        finally:
            peers.cluster.policies.remove(policy)
            peers.cluster.apply()


def test_nothing_listens(peers: Peers, envoy: Envoy) -> None:
    assert is_refused(through(peers.gateway, 9009))
    assert '"503"' in wait_until(lambda: answers(envoy, 9009), "Envoy has logged it")[0]
    assert peers.reason(peers.cluster.agents[1], f"{peers.server.ip}:9009") == "connect_refused"


def test_no_client_certificate(peers: Peers) -> None:
    config = configured(peers, peers.gateway2)
    del config["static_resources"]["clusters"][0]["transport_socket"]["typed_config"]["common_tls_context"]["tls_certificates"]
    envoy = peers.envoy(peers.gateway2, config)
    try:
        with peers.server.listen(9010):
            assert is_refused(through(peers.gateway2, 9010))
        assert peers.reason(peers.cluster.agents[1], f"{peers.server.ip}:15008") == "peer_no_certificate"
    finally:
        envoy.stop()


def test_nodeproxy_drains_and_comes_back(peers: Peers, envoy: Envoy) -> None:
    agent = peers.cluster.agents[1]
    ours, theirs = joined(through(peers.gateway, 9011), peers.server, 9011)
    with ours, theirs:
        echo_once((ours, theirs))
        assert agent.process is not None
        agent.process.send_signal(signal.SIGTERM)
        with peers.server.listen(9012) as listener:
            wait_until(lambda: not arrives(through(peers.gateway, 9012), listener), "new connections are refused")
        echo_once((ours, theirs), b"still here")
        ours.shutdown(socket.SHUT_WR)
        assert exactly(theirs, 1) == b""
    agent.kill(signal.SIGTERM)
    agent.start()
    ours, theirs = joined(through(peers.gateway, 9013), peers.server, 9013)
    with ours, theirs:
        echo_once((ours, theirs))
