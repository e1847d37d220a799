"""Both ends of a tunnel in one process: TLS, streams, ends, windows, and what a peer that stalls or breaks off leaves behind."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Callable

import pytest

from nodeproxy.identity.tls import verify_client
from nodeproxy.model.connection import Direction, Party
from nodeproxy.model.reason import Reason, Refusal
from nodeproxy.proxy.app_socket import AppSocket
from nodeproxy.proxy.attempt import Attempt
from nodeproxy.proxy.buffers import Budget
from nodeproxy.proxy.client_tunnel import ClientStream, ClientTunnel
from nodeproxy.proxy.plans import Plan
from nodeproxy.proxy.pool import Pool, PooledTunnel, PoolKey
from nodeproxy.proxy.server_tunnel import ServerStream
from nodeproxy.proxy.session import Session
from nodeproxy.proxy.tunnel import Headers, Tunnel
from nodeproxy.wire import frames
from nodeproxy.wire.connection import Role
from nodeproxy.wire.frames import PREFACE, ErrorCode
from nodeproxy.wire.hbone import connect_block, ok_block
from nodeproxy.wire.stream import Stream
from tests.unit.proxy.conftest import IDENTITY, Bench, tcp_pair

Contexts = tuple[ssl.SSLContext, ssl.SSLContext]
KEY = PoolKey("uid", IDENTITY, ("127.0.0.1", 15008), frozenset({IDENTITY}))
DENIED = Refusal(Reason.POLICY_DENY, "policy says no", "ns/policy")
_LINGER_RESET = struct.pack("ii", 1, 0)


class Server(Tunnel):
    """What arrives goes to an application's socket; or `judge` says something else."""

    role = Role.SERVER

    def __init__(self, bench: Bench, sock: socket.socket, tls: ssl.SSLContext, budget: Budget) -> None:
        self.bench = bench
        self.lost: list[Refusal] = []
        self.sessions: list[Session] = []
        self.applications: list[socket.socket] = []
        self.judge: Callable[[Session, ServerStream], None] = self._serve
        super().__init__(bench.poller, budget, sock, tls)

    def verify_peer(self) -> None:
        verify_client(self.tls, "cluster.local")

    def on_lost(self, refusal: Refusal) -> None:
        self.lost.append(refusal)

    def on_request(self, stream: Stream, headers: Headers, end_stream: bool) -> None:
        session = self.bench.session(Direction.INBOUND)
        session.source = half = ServerStream(self, session, stream)
        self.sessions.append(session)
        self.judge(session, half)

    def _serve(self, session: Session, half: ServerStream) -> None:
        ours, application = self.bench.pair()
        self.applications.append(application)
        half.accept(ok_block())
        session.relay(half, AppSocket(self.bench.poller, ours, session))


class World:
    """A pool that makes tunnels to `Server`s."""

    def __init__(self, bench: Bench, tls: Contexts, budget: Budget | None = None) -> None:
        self.bench, self.tls = bench, tls
        self.budget = budget or Budget()
        self.servers: list[Server] = []
        self.clients: list[ClientTunnel] = []
        self.pool = Pool(self._make, bench.poller.clock)
        self.judge: Callable[[Session, ServerStream], None] | None = None
        self.again: Callable[[], None] | None = None

    def _make(self, key: PoolKey) -> None:
        near, far = tcp_pair()
        server = Server(self.bench, far, self.tls[1], self.budget)
        if self.judge is not None:
            server.judge = self.judge
        self.servers.append(server)
        client = ClientTunnel(self.bench.poller, Budget(), near, self.tls[0], key, self.pool)
        self.clients.append(client)
        client.start_handshake()

    def connect(self, *, again: Callable[[], None] | None = None) -> tuple[socket.socket, Session]:
        """A program that connects, and its session."""
        program, ours = self.bench.pair()
        session = self.bench.session()
        session.source = AppSocket(self.bench.poller, ours, session)
        self.again = again
        attempt = Attempt(session, "127.0.0.1", None, Plan(Party("")))
        attempt.unserved = again is None

        def have(tunnel: PooledTunnel | None, refusal: Refusal | None) -> None:
            if not isinstance(tunnel, ClientTunnel):
                session.refuse(refusal or DENIED)
                return
            session.destination = half = ClientStream(tunnel, self, attempt)
            tunnel.connect(half, connect_block("127.0.0.1:80"))

        session.pending = self.pool.acquire(KEY, have)
        return program, session

    def answered(self, half: ClientStream, refusal: Refusal | None) -> None:
        if refusal is not None:
            half.abort(ErrorCode.CANCEL)
            half.session.refuse(refusal)
        else:
            half.session.relay(half.session.source, half)

    def unserved(self, attempt: Attempt) -> None:
        assert self.again is not None
        self.again()

    def unreached(self, attempt: Attempt, refusal: Refusal) -> bool:
        return False

    def joined(self) -> tuple[socket.socket, socket.socket, Session]:
        """(program, application, the program's session)."""
        program, session = self.connect()
        before = sum(len(server.applications) for server in self.servers)
        self.bench.until(lambda: session.relaying and sum(len(server.applications) for server in self.servers) > before - 1)
        return program, self.servers[-1].applications[-1], session

    def end(self) -> None:
        for tunnel in (*self.clients, *self.servers):
            tunnel.lose(DENIED)
        self.bench.passes()


@pytest.fixture
def world(bench: Bench, tls: Contexts) -> World:
    made = World(bench, tls)
    yield made
    made.end()
    assert bench.errors == []
    assert len(bench.sessions) == 0
    assert (made.budget._left, made.budget._unowed) == (Budget()._left, Budget()._unowed), "all that was held was given back"
    assert all(not tunnel.waiting for tunnel in (*made.clients, *made.servers))


def test_bytes_and_ends_pass_both_ways(bench: Bench, world: World) -> None:
    program, application, session = world.joined()
    program.send(b"question")
    assert bench.read(application, 8) == b"question"
    program.shutdown(socket.SHUT_WR)
    assert bench.read(application, 1) == b""
    application.send(b"answer")
    assert bench.read(program, 6) == b"answer"
    application.close()
    assert bench.read(program, 1) == b""
    bench.until(lambda: len(bench.ended) == 2)
    assert [record.reason for record in bench.ended] == [None, None]
    assert {(record.received_bytes, record.sent_bytes) for record in bench.ended} == {(8, 6)}
    assert world.clients[0].codec.active_streams == 0


@pytest.mark.parametrize("who", [0, 1])
def test_a_reset_passes(bench: Bench, world: World, who: int) -> None:
    *ends, session = world.joined()
    ends[who].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    ends[who].close()
    with pytest.raises(ConnectionResetError):
        bench.read(ends[1 - who], 1)
    bench.until(lambda: len(bench.ended) == 2)
    assert {record.reason for record in bench.ended} == {(Reason.RESET_BY_SOURCE, Reason.RESET_BY_DESTINATION)[who]}
    world.joined()
    assert len(world.clients) == 1, "the tunnel goes on"


def test_all_who_wait_share_one_handshake(bench: Bench, world: World) -> None:
    sessions = [world.connect()[1] for _ in range(50)]
    bench.until(lambda: all(session.relaying for session in sessions))
    assert len(world.clients) == 1
    assert world.clients[0].active_streams == 50


def test_a_reader_that_stands_still_stops_its_writer_alone(bench: Bench, world: World) -> None:
    program, application, _ = world.joined()
    total, idle = 0, 0
    while idle < 10:
        try:
            total += program.send(b"x" * (1 << 20))
            idle = 0
        except BlockingIOError:
            idle += 1
        bench.passes(3)
    assert 4 << 20 <= total < 24 << 20, "a stream's window, and what kernels hold"
    other, its_application, _ = world.joined()
    other.send(b"I pass")
    assert bench.read(its_application, 6) == b"I pass"
    assert len(bench.read(application, total)) == total
    program.send(b"and on")
    assert bench.read(application, 6) == b"and on"


def test_a_refusal_is_a_status_and_the_tunnel_goes_on(bench: Bench, world: World) -> None:
    world.judge = lambda session, half: session.refuse(DENIED)
    program, session = world.connect()
    bench.until(lambda: session.ended)
    assert session.record.reason is Reason.HBONE_DENIED
    with pytest.raises(ConnectionResetError):
        bench.read(program, 1)
    world.servers[0].judge = world.servers[0]._serve
    _, session = world.connect()
    bench.until(lambda: session.relaying)
    assert len(world.clients) == 1


def test_a_client_that_goes_before_the_answer_is_named_as_the_one(bench: Bench, world: World) -> None:
    world.judge = lambda session, half: None
    _, session = world.connect()
    bench.until(lambda: world.servers and world.servers[0].sessions)
    session.refuse(DENIED)
    served = world.servers[0].sessions[0]
    bench.until(lambda: served.ended)
    assert served.record.reason is Reason.RESET_BY_SOURCE


def test_a_lost_tunnel_ends_what_was_on_it_and_asks_again_for_what_was_not_answered(bench: Bench, world: World) -> None:
    _, _, relaying = world.joined()
    world.servers[0].judge = lambda session, half: None
    asked: list[str] = []
    _, waiting = world.connect(again=lambda: asked.append("again"))
    bench.until(lambda: len(world.servers[0].sessions) == 2)
    world.servers[0].lose(Refusal(Reason.RESET_BY_DESTINATION, "its node went down"))
    bench.until(lambda: relaying.ended)
    assert relaying.record.reason is Reason.RESET_BY_DESTINATION
    assert asked == ["again"]
    assert not waiting.ended
    waiting.refuse(DENIED)
    _, session = world.connect()
    bench.until(lambda: session.relaying)
    assert len(world.clients) == 2


def test_goaway_lets_streams_end_and_then_the_tunnel(bench: Bench, world: World) -> None:
    program, application, session = world.joined()
    server, client = world.servers[0], world.clients[0]
    server.say_goaway()
    bench.until(lambda: client.free_streams == 0)
    program.send(b"goes on")
    assert bench.read(application, 7) == b"goes on"
    world.joined()
    assert len(world.clients) == 2, "a new one, for new streams"
    program.close()
    application.close()
    bench.until(lambda: client.closed and server.closed)
    assert session.record.reason is None


@pytest.mark.parametrize("at_once", [True, False])
def test_what_a_client_asks_for_before_it_reads_goaway(bench: Bench, world: World, at_once: bool) -> None:
    program, application, _ = world.joined()
    server, client = world.servers[0], world.clients[0]
    asked: list[str] = []
    late, session = world.connect(again=lambda: asked.append("again"))
    server.say_goaway(at_once)
    bench.until(lambda: session.relaying or asked)
    assert asked == (["again"] if at_once else [])
    if asked:
        session.refuse(DENIED)
    assert client.free_streams == 0, "the next one has a tunnel of its own"
    for sock in (program, application, late, *server.applications):
        sock.close()
    bench.until(lambda: client.closed and server.closed)


def test_a_server_that_leaves_ends_an_idle_tunnel_by_itself(bench: Bench, world: World) -> None:
    """A client may keep it for ever; its socket would keep the pod's network namespace."""
    now = [100.0]
    program, application, session = world.joined()
    bench.poller.clock = lambda: now[0]
    program.close()
    application.close()
    bench.until(lambda: session.ended)
    server = world.servers[0]
    bench.poller.remove(world.clients[0].sock.fileno())  # a client that does not listen, and so does not let go
    server.say_goaway()
    bench.passes()
    assert not server.closed
    now[0] += 2
    bench.until(lambda: server.closed)


def test_of_a_pod_that_leaves_used_tunnels_end_with_their_last_stream(bench: Bench, world: World) -> None:
    program, application, session = world.joined()
    world.pool.shut_idle("uid")
    bench.passes()
    assert not world.clients[0].closed
    program.close()
    application.close()
    bench.until(lambda: world.clients[0].closed)
    assert session.record.reason is None


def test_more_unread_bytes_than_a_worker_may_hold_end_the_connection_that_brings_them(bench: Bench, tls: Contexts) -> None:
    world = World(bench, tls, Budget(100_000, 200_000))
    program, _, session = world.joined()

    def pushed() -> bool:
        try:
            program.send(b"x" * (1 << 20))
        except OSError:
            pass
        return session.ended

    bench.until(pushed)
    assert Reason.MEMORY_FULL in {record.reason for record in bench.ended}
    assert (world.budget._left, world.budget._unowed) == (100_000, 200_000)
    other, application, _ = world.joined()
    other.send(b"small")
    assert bench.read(application, 5) == b"small"
    assert len(world.clients) == 1
    world.end()


# ── peers that stall, break off or break rules ──


def alone(bench: Bench, tls: Contexts) -> tuple[Server, socket.socket]:
    """A server's tunnel, and the plain socket of whoever connected to it."""
    near, far = bench.pair()
    return Server(bench, far, tls[1], Budget()), near


def shaken(bench: Bench, tls: Contexts) -> tuple[Server, ssl.SSLSocket]:
    """The same with TLS, by Python's own socket."""
    server, near = alone(bench, tls)
    peer = tls[0].wrap_socket(near, do_handshake_on_connect=False)
    bench.socks.append(peer)

    def done() -> bool:
        try:
            peer.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return server.established

    bench.until(done)
    return server, peer


def test_a_handshake_that_stalls_ends_in_time(bench: Bench, tls: Contexts) -> None:
    now = [0.0]
    bench.poller.clock = lambda: now[0]
    server, near = alone(bench, tls)
    near.send(b"\x16\x03\x01")
    now[0] = 9.9
    bench.passes()
    assert not server.closed
    now[0] = 10.1
    bench.passes()
    assert server.lost[0].reason is Reason.TLS_TIMEOUT


def test_tls_without_a_preface_ends_in_time(bench: Bench, tls: Contexts) -> None:
    now = [0.0]
    bench.poller.clock = lambda: now[0]
    server, peer = shaken(bench, tls)
    peer.send(PREFACE[:10])
    bench.passes()
    now[0] = 10.1
    bench.passes()
    assert server.lost[0].reason is Reason.H2_TIMEOUT


def test_a_peer_that_answers_no_ping_is_down(bench: Bench, tls: Contexts) -> None:
    now = [0.0]
    bench.poller.clock = lambda: now[0]
    server, peer = shaken(bench, tls)
    peer.send(PREFACE + frames.settings({}))
    bench.passes()
    for now[0] in (10.1, 20.2, 30.3):
        assert not server.closed
        bench.passes()
    assert server.lost[0].reason is Reason.H2_TIMEOUT


def test_garbage_is_no_tls(bench: Bench, tls: Contexts) -> None:
    server, near = alone(bench, tls)
    near.send(b"GET / HTTP/1.1\r\n\r\n")
    bench.until(lambda: server.closed)
    assert server.lost[0].reason is Reason.TLS_FAILURE
    near.close()


def test_a_peer_that_goes_amid_the_handshake(bench: Bench, tls: Contexts) -> None:
    server, near = alone(bench, tls)
    near.close()
    bench.until(lambda: server.closed)
    assert server.lost[0].reason is Reason.TLS_FAILURE


def test_what_stands_behind_the_end_in_one_read_is_not_acted_upon(bench: Bench, tls: Contexts) -> None:
    """A callback ends the tunnel; the codec still holds a request."""
    server, peer = shaken(bench, tls)
    server.judge = lambda session, half: server.lose(DENIED)
    block = connect_block("127.0.0.1:80")
    requests = b"".join(
        frames.headers(number, (b"\x20" if number == 1 else b"") + block, end_stream=False, max_frame_bytes=16384)
        for number in (1, 3, 5)
    )
    peer.send(PREFACE + frames.settings({}) + requests)
    bench.until(lambda: server.closed)
    assert len(server.sessions) == 1
    assert server.sessions[0].ended
    assert len(bench.sessions) == 0
    bench.passes()
    assert bench.errors == []


def test_a_defect_in_one_request_is_its_own(bench: Bench, world: World, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise RuntimeError("a defect")

    world.judge = lambda session, half: session.guard(fail)
    _, session = world.connect()
    bench.until(lambda: session.ended)
    assert session.record.reason is Reason.HBONE_REFUSED
    world.servers[0].judge = world.servers[0]._serve
    _, session = world.connect()
    bench.until(lambda: session.relaying)
    assert "a defect" in caplog.text
