"""Envoy as HBONE server: nodeproxy's tunnels end at a workload that speaks HBONE itself."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest

from tests.mesh.cluster import MeshPod, wait_until
from tests.peers.envoy import Config, Envoy, tunnel_server
from tests.peers.exchange import arrives, bulk, echo_once, ends_late, half_close, joined, many, reset
from tests.peers.peers import Peers, is_refused

MIB = 1 << 20
DENIED_PORT = 9101
SETTINGS: dict[str, Config] = {
    "narrow": {
        "initial_stream_window_size": 65535,
        "initial_connection_window_size": 65535,
        "max_concurrent_streams": 10,
        "hpack_table_size": 0,
    },
    # 5: SETTINGS_MAX_FRAME_SIZE (RFC 9113, section 6.5.2)
    "wide": {
        "initial_stream_window_size": 16 * MIB,
        "initial_connection_window_size": 64 * MIB,
        "custom_settings_parameters": [{"identifier": 5, "value": MIB}],
    },
}


@pytest.fixture(scope="module")
def envoy(peers: Peers) -> Iterator[Envoy]:
    config = tunnel_server(peers.credentials(peers.legacy.identity), denied=(f"{peers.legacy.ip}:{DENIED_PORT}",))
    made = peers.envoy(peers.legacy, config)
    yield made
    made.stop()


def to(peers: Peers, pod: MeshPod, port: int) -> Callable[[], socket.socket]:
    return lambda: peers.client.connect(pod.ip, port)


def test_64_mebibytes_each_way_with_both_identities_in_the_log(peers: Peers, envoy: Envoy) -> None:
    ours, theirs = joined(to(peers, peers.legacy, 9100), peers.legacy, 9100)
    with ours, theirs:
        assert ours.getpeername() == (peers.legacy.ip, 9100)
        bulk((ours, theirs), 64 * MIB)
    (row,) = peers.log_of(peers.cluster.agents[0], f"{peers.legacy.ip}:9100")
    assert row["src.identity"] == peers.client.identity
    assert row["dst.identity"] == peers.legacy.identity
    assert row["dst.hbone_addr"] == f"{peers.legacy.ip}:15008"
    assert "error" not in row
    line = wait_until(
        lambda: [each for each in envoy.log().splitlines() if each.startswith(f"HTTP CONNECT {peers.legacy.ip}:9100 200")],
        "Envoy has logged it",
    )[0]
    assert line.endswith(peers.client.identity)


def test_few_streams_and_narrow_windows(peers: Peers) -> None:
    envoy = peers.envoy(peers.legacy2, tunnel_server(peers.credentials(peers.legacy2.identity), settings=SETTINGS["narrow"]))
    try:
        ours, theirs = joined(to(peers, peers.legacy2, 9102), peers.legacy2, 9102)
        with ours, theirs:
            bulk((ours, theirs), 16 * MIB)
        many(to(peers, peers.legacy2, 9103), peers.legacy2, 9103, 60)
        assert envoy.stat("http.connect_terminate.downstream_cx_total") >= 6, "ten streams a tunnel"
    finally:
        envoy.stop()


def test_frames_of_a_mebibyte(peers: Peers) -> None:
    envoy = peers.envoy(peers.legacy2, tunnel_server(peers.credentials(peers.legacy2.identity), settings=SETTINGS["wide"]))
    try:
        ours, theirs = joined(to(peers, peers.legacy2, 9104), peers.legacy2, 9104)
        with ours, theirs:
            bulk((ours, theirs), 32 * MIB)
    finally:
        envoy.stop()


def test_half_closed_by_the_client(peers: Peers, envoy: Envoy) -> None:
    ours, theirs = joined(to(peers, peers.legacy, 9105), peers.legacy, 9105)
    with ours, theirs:
        half_close(ours, theirs)


def test_the_application_ends_first(peers: Peers, envoy: Envoy) -> None:
    """Envoy then sends END_STREAM and RST_STREAM with NO_ERROR: a late reader still gets every byte, and the end."""
    ended = _ended(envoy)
    ours, theirs = joined(to(peers, peers.legacy, 9106), peers.legacy, 9106)
    with ours, theirs:
        ends_late(ours, theirs, lambda: wait_until(lambda: _ended(envoy) > ended, "the end"))
    (row,) = peers.log_of(peers.cluster.agents[0], f"{peers.legacy.ip}:9106")
    assert "error" not in row


def _ended(envoy: Envoy) -> int:
    return envoy.stat("cluster.application.upstream_cx_destroy")


def test_a_reset_of_the_client_reaches_envoy(peers: Peers, envoy: Envoy) -> None:
    """As RST_STREAM with CONNECT_ERROR; what Envoy 1.40 makes of that for the application is a FIN."""
    before = envoy.stat("http.connect_terminate.downstream_rq_rx_reset")
    ours, theirs = joined(to(peers, peers.legacy, 9107), peers.legacy, 9107)
    with theirs:
        echo_once((ours, theirs))
        reset(ours)
        assert theirs.recv(1) == b""
    wait_until(lambda: envoy.stat("http.connect_terminate.downstream_rq_rx_reset") == before + 1, "Envoy counts the reset")


def test_a_reset_of_the_application_reaches_the_client(peers: Peers, envoy: Envoy) -> None:
    ours, theirs = joined(to(peers, peers.legacy, 9108), peers.legacy, 9108)
    with ours:
        echo_once((ours, theirs))
        reset(theirs)
        with pytest.raises(ConnectionResetError):
            ours.recv(1)
    assert peers.reason(peers.cluster.agents[0], f"{peers.legacy.ip}:9108") == "reset_by_destination"


def test_300_streams_at_once(peers: Peers, envoy: Envoy) -> None:
    before = envoy.stat("http.connect_terminate.downstream_cx_total")
    many(to(peers, peers.legacy, 9109), peers.legacy, 9109, 300)
    assert envoy.stat("http.connect_terminate.downstream_cx_total") - before <= 4, "a hundred streams a tunnel, in two workers"


@pytest.mark.parametrize(("port", "reason"), [(DENIED_PORT, "hbone_denied"), (9110, "hbone_refused")], ids=["401", "503"])
def test_an_answer_that_is_not_200(peers: Peers, envoy: Envoy, port: int, reason: str) -> None:
    with pytest.raises(ConnectionResetError), to(peers, peers.legacy, port)() as sock:
        sock.recv(1)
    assert peers.reason(peers.cluster.agents[0], f"{peers.legacy.ip}:{port}") == reason


def test_another_identity_than_the_state_says(peers: Peers) -> None:
    envoy = peers.envoy(peers.legacy2, tunnel_server(peers.credentials(peers.impostor.identity)))
    try:
        with peers.legacy2.listen(9111):
            assert is_refused(to(peers, peers.legacy2, 9111))
        assert peers.reason(peers.cluster.agents[0], f"{peers.legacy2.ip}:9111") == "peer_identity"
    finally:
        envoy.stop()


def test_goaway_after_each_five_streams(peers: Peers) -> None:
    """No connection fails while its tunnel is being replaced."""
    config = tunnel_server(peers.credentials(peers.legacy2.identity), common={"max_requests_per_connection": 5})
    envoy = peers.envoy(peers.legacy2, config)
    try:
        for _ in range(40):
            ends = joined(to(peers, peers.legacy2, 9112), peers.legacy2, 9112)
            with ends[0], ends[1]:
                echo_once(ends)
        many(to(peers, peers.legacy2, 9113), peers.legacy2, 9113, 100)
        assert envoy.stat("http.connect_terminate.downstream_cx_total") >= 8
    finally:
        envoy.stop()
    rows = peers.log_of(peers.cluster.agents[0], f"{peers.legacy2.ip}:9112")
    assert not [row for row in rows if "error" in row]


def test_envoy_drains_ends_and_comes_back(peers: Peers, envoy: Envoy) -> None:
    ends = joined(to(peers, peers.legacy, 9114), peers.legacy, 9114)
    with ends[0], ends[1]:
        echo_once(ends)
        envoy.admin("/drain_listeners?graceful")
        # Tunnels that stand take streams until their GOAWAY has come, so the first attempts may still succeed.
        with peers.legacy.listen(9115) as listener:
            wait_until(lambda: not arrives(to(peers, peers.legacy, 9115), listener), "nothing new gets in")
        assert peers.reason(peers.cluster.agents[0], f"{peers.legacy.ip}:9115") == "connect_refused"
        echo_once(ends, b"what was open goes on")
        envoy.stop()
        with pytest.raises(ConnectionResetError):
            ends[0].recv(1)
    assert is_refused(to(peers, peers.legacy, 9116))
    assert peers.reason(peers.cluster.agents[0], f"{peers.legacy.ip}:9116") == "connect_refused"
    envoy.start()
    ends = joined(to(peers, peers.legacy, 9117), peers.legacy, 9117)
    with ends[0], ends[1]:
        echo_once(ends)
