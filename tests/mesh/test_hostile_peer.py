"""Peers with a valid certificate, or none, that try to break a node: each ends by a named reason and costs others nothing."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from nodeproxy.lab.topology import Host
from nodeproxy.wire import frames
from nodeproxy.wire.frames import PREFACE, ErrorCode, FrameType, Setting
from nodeproxy.wire.hpack_static import encode_block
from tests.mesh.cluster import Cluster, MeshPod, exactly, wait_until
from tests.mesh.evidence import HBONE_PORT, refused_total, rows_of
from tests.mesh.hostile import (
    Tunnel,
    connect_fields,
    context,
    continuation,
    descriptors,
    memory_mib,
    raw,
    unfinished,
)

GOOD_PORT, OPEN_PORT = 9300, 9301
# Both workers' growth that is no leak: the allocator keeps what a flood once needed, and buffers of a MiB are touched page by
# page.
MAX_GROWTH_MIB = 48
MAX_DESCRIPTORS_MORE = 4  # the good client's tunnels, which may end on either worker


@dataclass
class Scene:
    """A node with a server, a good client on another node, and a hostile host beside the server."""

    cluster: Cluster
    server: MeshPod
    mallory: Host
    tls: ssl.SSLContext
    listener: socket.socket
    descriptors: int = 0
    memory_mib: float = 0.0
    kept: list[socket.socket] = field(default_factory=list)

    def serves(self) -> None:
        """Good traffic passes at once."""
        with self.cluster.pods["client"].connect(self.server.ip, GOOD_PORT) as ours:
            ours.settimeout(2)
            ours.sendall(b"good")
            theirs, _ = self.listener.accept()
            with theirs:
                assert exactly(theirs, 4) == b"good"
                theirs.sendall(b"too")
                assert exactly(ours, 3) == b"too"

    def tunnel(self, *, preface: bool = True) -> Tunnel:
        # Little room for what the node answers: who does not read is to be noticed soon.
        return Tunnel(raw(self.mallory, self.server.ip, receive_bytes=4096), self.tls, preface=preface)

    def is_well(self) -> None:
        """After an attack: it serves, and has given back what it took."""
        self.serves()
        agent = self.cluster.agents[1]
        more = self.descriptors + MAX_DESCRIPTORS_MORE
        wait_until(lambda: descriptors(agent) <= more, f"descriptors are back to {self.descriptors}")
        grown = memory_mib(agent) - self.memory_mib
        assert grown < MAX_GROWTH_MIB, f"the workers grew by {grown:.1f} MiB"
        assert all(worker["restarts"] == 0 for worker in agent.get("/status")["workers"])


@pytest.fixture(scope="module")
def scene(run_cluster: Callable[..., Cluster]) -> Iterator[Scene]:
    def populate(cluster: Cluster) -> None:
        cluster.pod(0, "client")
        cluster.pod(1, "server")
        cluster.pod(1, "mallory", protocol="TCP")

    cluster = run_cluster(populate)
    server = cluster.pods["server"]
    with server.listen(GOOD_PORT) as listener, server.listen(OPEN_PORT):
        made = Scene(cluster, server, cluster.pods["mallory"].host, context(cluster), listener)
        for _ in range(8):
            made.serves()
        made.descriptors, made.memory_mib = descriptors(cluster.agents[1]), memory_mib(cluster.agents[1])
        yield made
        for sock in made.kept:
            sock.close()


def rapid_reset(tunnel: Tunnel, authority: str) -> None:
    opened = connect_fields(authority)
    pairs = (tunnel.request(number, opened) + frames.rst_stream(number, ErrorCode.CANCEL) for number in range(1, 1400, 2))
    with contextlib.suppress(OSError):
        tunnel.send(b"".join(pairs))


def many_continuations(tunnel: Tunnel, authority: str) -> None:
    tunnel.send(unfinished(1, b"") + continuation(1, b"") * 20)


def ping_flood(tunnel: Tunnel, authority: str) -> None:
    tunnel.flood(frames.ping(b"hostile!", ack=False) * 5000)


def settings_flood(tunnel: Tunnel, authority: str) -> None:
    tunnel.flood(frames.settings({Setting.INITIAL_WINDOW_SIZE: 1 << 20}) * 5000)


def empty_data_flood(tunnel: Tunnel, authority: str) -> None:
    tunnel.send(tunnel.request(1, connect_fields(authority)))
    tunnel.flood(frames.frame_header(FrameType.DATA, 0, 1, 0) * 20_000)


def refused_requests_without_reading(tunnel: Tunnel, authority: str) -> None:
    number = 1
    illegal = connect_fields(authority.replace(str(OPEN_PORT), "15006"))
    for _ in range(4000):
        batch = b"".join(tunnel.request(each, illegal) for each in range(number, number + 1000, 2))
        number += 1000
        try:
            tunnel.sock.sendall(batch)
        except OSError:
            return
    raise AssertionError("the node takes refused requests without end")


def zero_increment(tunnel: Tunnel, authority: str) -> None:
    tunnel.send(frames.window_update(0, 0))


def window_overflow(tunnel: Tunnel, authority: str) -> None:
    tunnel.send(frames.window_update(0, (1 << 31) - 1))


def window_overflow_by_settings(tunnel: Tunnel, authority: str) -> None:
    tunnel.send(tunnel.request(1, connect_fields(authority)) + frames.window_update(1, 1 << 30))
    tunnel.send(frames.settings({Setting.INITIAL_WINDOW_SIZE: (1 << 31) - 1}))


def beyond_the_window(tunnel: Tunnel, authority: str) -> None:
    tunnel.send(tunnel.request(1, connect_fields(authority)))
    tunnel.flood(frames.frame_header(FrameType.DATA, 0, 1, 1 << 19) + bytes(1 << 19))


def oversized_headers(tunnel: Tunnel, authority: str) -> None:
    fields = [*connect_fields(authority), *((b"x-%d" % number, b"v" * 4000) for number in range(20))]
    tunnel.send(frames.headers(1, encode_block(fields), end_stream=False, max_frame_bytes=1 << 20))


def compression_bomb(tunnel: Tunnel, authority: str) -> None:
    """A field is put into the dynamic table once and named 30,000 times: 64 KiB of block are 120 MB of fields."""
    literal = b"\x40\x01x\x7f\xa1\x1e" + b"v" * 4000
    block = encode_block(connect_fields(authority)) + literal + b"\xbe" * 30_000
    sock = tunnel.sock
    sock.sendall(PREFACE + frames.settings({}) + frames.headers(1, block, end_stream=False, max_frame_bytes=1 << 20))


def no_preface(tunnel: Tunnel, authority: str) -> None:
    tunnel.send(b"GET / HTTP/1.1\r\nHost: " + authority.encode() + b"\r\n\r\n")


def huge_frame(tunnel: Tunnel, authority: str) -> None:
    tunnel.send(frames.frame_header(0x42, 0, 0, (1 << 24) - 1))


def push_promise(tunnel: Tunnel, authority: str) -> None:
    tunnel.send(frames.frame_header(FrameType.PUSH_PROMISE, 4, 1, 4) + bytes(4))


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        (many_continuations, "h2_continuation_flood"),
        (rapid_reset, "h2_rapid_reset"),
        (ping_flood, "h2_control_flood"),
        (settings_flood, "h2_control_flood"),
        (empty_data_flood, "h2_control_flood"),
        (refused_requests_without_reading, "h2_control_flood"),
        (zero_increment, "h2_protocol"),
        (window_overflow, "h2_flow_control"),
        (window_overflow_by_settings, "h2_flow_control"),
        (beyond_the_window, "h2_flow_control"),
        (oversized_headers, "h2_headers_too_large"),
        (compression_bomb, "h2_headers_too_large"),
        (no_preface, "h2_protocol"),
        (huge_frame, "h2_protocol"),
        (push_promise, "h2_protocol"),
    ],
)
def test_an_attack_on_http2_ends_the_tunnel(scene: Scene, attack: Callable[[Tunnel, str], None], reason: str) -> None:
    agent = scene.cluster.agents[1]
    before = refused_total(agent, reason)
    bare = attack in (no_preface, compression_bomb)
    with scene.tunnel(preface=not bare) as tunnel:
        attack(tunnel, f"{scene.server.ip}:{OPEN_PORT}")
        tunnel.until_closed()
        scene.serves()

    def told() -> bool:
        return any(row["error"].startswith(f"{reason}: ") for row in rows_of(agent, src_addr=tunnel.source) if "error" in row)

    wait_until(told, f"the access log has {reason}")
    assert refused_total(agent, reason) > before
    scene.is_well()


@pytest.mark.parametrize(
    ("fields", "status", "reason"),
    [
        ([(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"x"), (b":path", b"/")], 400, "not_connect"),
        (connect_fields("no authority at all"), 400, "bad_authority"),
        (connect_fields("10.10.1.2:0"), 400, "bad_authority"),
        (connect_fields("10.10.0.77:80"), 400, "authority_mismatch"),
        (connect_fields("127.0.0.1:80"), 400, "authority_mismatch"),
        (connect_fields("{ip}:15001"), 503, "illegal_port"),
        (connect_fields("{ip}:15008"), 503, "illegal_port"),
        (connect_fields("no-such-service.example:80"), 503, "unknown_service"),
        (connect_fields("{ip}:9399"), 503, "connect_refused"),
    ],
)
def test_a_request_that_cannot_be_is_answered_by_status(
    scene: Scene, fields: list[tuple[bytes, bytes]], status: int, reason: str
) -> None:
    agent = scene.cluster.agents[1]
    fields = [(name, value.replace(b"{ip}", scene.server.ip.encode())) for name, value in fields]
    before = refused_total(agent, reason)
    with scene.tunnel() as tunnel:
        tunnel.send(tunnel.request(1, fields))
        assert tunnel.status(1) == status
        # The tunnel goes on.
        tunnel.send(tunnel.request(3, connect_fields(f"{scene.server.ip}:{OPEN_PORT}")))
        assert tunnel.status(3) == 200
    assert refused_total(agent, reason) == before + 1
    wait_until(lambda: any(row.get("error", "").startswith(reason) for row in rows_of(agent, src_addr=tunnel.source)), "its line")
    scene.is_well()


def test_more_streams_than_are_allowed_are_refused(scene: Scene) -> None:
    with scene.tunnel() as tunnel:
        authority = f"{scene.server.ip}:{OPEN_PORT}"
        tunnel.send(b"".join(tunnel.request(number, connect_fields(authority)) for number in range(1, 501, 2)))
        refused = served = 0
        while refused + served < 250:
            kind, _, _, payload = tunnel.until(FrameType.RST_STREAM, FrameType.HEADERS)
            if kind == FrameType.RST_STREAM:
                assert int.from_bytes(payload, "big") == ErrorCode.REFUSED_STREAM
                refused += 1
            else:
                served += 1
        assert (served, refused) == (200, 50)
        scene.serves()
    scene.is_well()


def test_early_data_without_end_is_bounded_by_windows(scene: Scene) -> None:
    """An application that does not read: what a client may send is its window, and the worker holds no more than that."""
    with scene.tunnel() as tunnel:
        authority = f"{scene.server.ip}:{OPEN_PORT}"
        chunk = frames.frame_header(FrameType.DATA, 0, 1, 1 << 16) + bytes(1 << 16)
        tunnel.send(tunnel.request(1, connect_fields(authority)) + chunk * 64)
        tunnel.send(b"".join(tunnel.request(number, connect_fields(authority)) for number in (3, 5, 7)))
        for number in (3, 5, 7):
            tunnel.send((frames.frame_header(FrameType.DATA, 0, number, 1 << 16) + bytes(1 << 16)) * 63)
        scene.serves()
    scene.is_well()


def test_thousands_of_connections_that_never_speak(scene: Scene) -> None:
    """They hold no handshake that an honest client wants, and a place of theirs goes to a newer one."""
    agent = scene.cluster.agents[1]
    before = refused_total(agent, "too_many_connections")
    with contextlib.ExitStack() as closing:
        for _ in range(3000):
            closing.enter_context(raw(scene.mallory, scene.server.ip))
        wait_until(lambda: refused_total(agent, "too_many_connections") - before >= 3000 - 2 * 1024, "the oldest gave way")
        scene.serves()
        with scene.tunnel() as tunnel:  # a new one, while all the others wait
            tunnel.send(tunnel.request(1, connect_fields(f"{scene.server.ip}:{OPEN_PORT}")))
            assert tunnel.status(1) == 200
    scene.is_well()


@pytest.mark.parametrize("garbage", [b"\x00" * 3000, b"\x16\x03\x01" + b"\xff" * 2000, b"SSH-2.0-OpenSSH_9.2p1\r\n"])
def test_garbage_instead_of_tls(scene: Scene, garbage: bytes) -> None:
    agent = scene.cluster.agents[1]
    with raw(scene.mallory, scene.server.ip) as sock:
        source = "{}:{}".format(*sock.getsockname())
        sock.sendall(garbage)
        with contextlib.suppress(OSError):
            while sock.recv(4096):
                pass
    wait_until(
        lambda: [row for row in rows_of(agent, src_addr=source) if row["error"].startswith("tls_failure")], "the log says so"
    )
    scene.is_well()


def test_tunnels_without_a_request_make_room_for_others(scene: Scene) -> None:
    """Hundreds that stand idle cost little each and end with their client."""
    agent = scene.cluster.agents[1]
    with contextlib.ExitStack() as closing:
        before = memory_mib(agent)
        for _ in range(300):
            closing.enter_context(scene.tunnel())
        each_kib = (memory_mib(agent) - before) * 1024 / 300
        print(f"an idle tunnel takes {each_kib:.0f} KiB")
        assert each_kib < 200
        scene.serves()
    scene.is_well()


def test_slow_ones_end_in_time(scene: Scene) -> None:
    """A ClientHello byte by byte, and TLS without a preface: 10 s each, at once."""
    agent = scene.cluster.agents[1]
    hello = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        scene.tls.wrap_bio(ssl.MemoryBIO(), hello).do_handshake()
    dribbled = hello.read()
    with raw(scene.mallory, scene.server.ip) as loris, scene.tunnel(preface=False) as silent:
        source = "{}:{}".format(*loris.getsockname())
        loris.settimeout(0.2)
        for position in range(len(dribbled)):
            try:
                loris.send(dribbled[position : position + 1])
                if not loris.recv(1):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        else:
            raise AssertionError("the node waits for ever")
        silent.until_closed()
    wait_until(
        lambda: [row for row in rows_of(agent, src_addr=source) if row["error"].startswith("tls_timeout")], "loris is named"
    )
    target = f"{scene.server.ip}:{HBONE_PORT}"

    def named() -> bool:
        rows = rows_of(agent, src_addr=silent.source, dst_addr=target)
        return any(row["error"].startswith("h2_timeout") for row in rows)

    wait_until(named, "the silent one is named")
    scene.is_well()
