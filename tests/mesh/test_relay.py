"""Bytes through the mesh, between nodes and within one: exact, whatever their number, direction and end."""

from __future__ import annotations

import hashlib
import os
import selectors
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mesh.cluster import Cluster, MeshPod, exactly, wait_until
from tests.mesh.evidence import rows_of

GIB = 1 << 30
_LINGER_RESET = struct.pack("ii", 1, 0)


@pytest.fixture(scope="module")
def mesh() -> Iterator[Cluster]:
    cluster = Cluster()
    try:
        cluster.pod(0, "client")
        cluster.pod(0, "near")
        cluster.pod(1, "far")
        cluster.start()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(params=["far", "near"])
def server(mesh: Cluster, request: pytest.FixtureRequest) -> MeshPod:
    return mesh.pods[request.param]


def joined(client: MeshPod, server: MeshPod, port: int, address: str = "") -> tuple[socket.socket, socket.socket]:
    """Both ends of one connection."""
    with server.listen(port, address) as listener:
        ours = client.connect(address or server.ip, port)
        theirs, _ = listener.accept()
        theirs.settimeout(30)
        ours.settimeout(30)
        return ours, theirs


class Sender(threading.Thread):
    """Sends `size` pseudo-random bytes; `digest` is what they hash to."""

    def __init__(self, sock: socket.socket, size: int) -> None:
        super().__init__(daemon=True)
        self.sock, self.size = sock, size
        self.block = os.urandom(1 << 20)
        self.start()

    def run(self) -> None:
        self.hash = hashlib.blake2b()
        left = self.size
        while left:
            chunk = memoryview(self.block)[: min(left, len(self.block))]
            self.sock.sendall(chunk)
            self.hash.update(chunk)
            left -= len(chunk)
        self.sock.shutdown(socket.SHUT_WR)


class Receiver(threading.Thread):
    """Reads to the end of the stream."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(daemon=True)
        self.sock, self.count, self.hash = sock, 0, hashlib.blake2b()
        self.start()

    def run(self) -> None:
        buffer = bytearray(1 << 20)
        while count := self.sock.recv_into(buffer):
            self.hash.update(memoryview(buffer)[:count])
            self.count += count


def test_a_gibibyte_each_way_at_once(mesh: Cluster, server: MeshPod) -> None:
    ours, theirs = joined(mesh.pods["client"], server, 9000)
    with ours, theirs:
        pairs = [(Sender(ours, GIB), Receiver(theirs)), (Sender(theirs, GIB), Receiver(ours))]
        for sender, receiver in pairs:
            sender.join(120)
            receiver.join(120)
            assert receiver.count == GIB
            assert receiver.hash.digest() == sender.hash.digest()


@pytest.mark.parametrize("address", ["ip", "ip6"])
def test_the_application_sees_its_peers(mesh: Cluster, server: MeshPod, address: str) -> None:
    client = mesh.pods["client"]
    target = getattr(server, address)
    with server.listen(9001, target) as listener, client.connect(target, 9001) as ours:
        theirs, seen = listener.accept()
        with theirs:
            assert ours.getpeername()[:2] == (target, 9001)
            assert seen[0] == getattr(client, address)
            assert theirs.getsockname()[:2] == (target, 9001)


def test_a_mapped_address_is_the_address(mesh: Cluster, server: MeshPod) -> None:
    client = mesh.pods["client"]
    with server.listen(9002) as listener, client.connect(f"::ffff:{server.ip}", 9002) as ours:
        theirs, seen = listener.accept()
        with theirs:
            assert ours.getpeername()[:2] == (f"::ffff:{server.ip}", 9002)
            assert seen[0] == client.ip
            ours.sendall(b"mapped")
            assert exactly(theirs, 6) == b"mapped"


def test_one_byte_ping_pong(mesh: Cluster, server: MeshPod) -> None:
    ours, theirs = joined(mesh.pods["client"], server, 9003)
    with ours, theirs:
        for number in range(1000):
            byte = bytes([number & 0xFF])
            ours.sendall(byte)
            assert theirs.recv(16) == byte
            theirs.sendall(byte)
            assert ours.recv(16) == byte


def test_half_closed_each_way(mesh: Cluster, server: MeshPod) -> None:
    for closes_first in (0, 1):
        ends = joined(mesh.pods["client"], server, 9004)
        first, second = ends[closes_first], ends[1 - closes_first]
        with first, second:
            first.sendall(b"all I had to say")
            first.shutdown(socket.SHUT_WR)
            assert exactly(second, 100) == b"all I had to say"
            answer = os.urandom(3_000_000)
            threading.Thread(target=second.sendall, args=(answer,), daemon=True).start()
            assert exactly(first, len(answer)) == answer
            second.shutdown(socket.SHUT_WR)
            assert first.recv(1) == b""


def test_reset_each_way(mesh: Cluster, server: MeshPod) -> None:
    for resets in (0, 1):
        ends = joined(mesh.pods["client"], server, 9005)
        first, second = ends[resets], ends[1 - resets]
        with second:
            first.sendall(b"x")
            assert second.recv(1) == b"x"
            first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            first.close()
            with pytest.raises(ConnectionResetError):
                second.recv(1)


def test_an_end_amid_bulk_gives_windows_back(mesh: Cluster) -> None:
    """A storm of resets in the middle of data must not use up the tunnel's window: it once stalled all streams."""
    client, server = mesh.pods["client"], mesh.pods["far"]
    for _ in range(40):
        ours, theirs = joined(client, server, 9006)
        ours.setblocking(False)
        try:
            while ours.send(b"x" * (1 << 20)):
                pass
        except BlockingIOError:
            pass
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        theirs.close()
        ours.close()
    ours, theirs = joined(client, server, 9006)
    with ours, theirs:
        sender, receiver = Sender(ours, 64 << 20), Receiver(theirs)
        sender.join(30)
        receiver.join(30)
        assert receiver.count == 64 << 20


def test_a_reader_that_stands_still_stops_only_its_own_writer(mesh: Cluster) -> None:
    client, server = mesh.pods["client"], mesh.pods["far"]
    stalled = [joined(client, server, 9007) for _ in range(8)]
    sent = []
    for ours, _ in stalled:
        ours.setblocking(False)
        total = 0
        for _ in range(200):
            try:
                total += ours.send(b"y" * (1 << 20))
            except BlockingIOError:
                threading.Event().wait(0.01)
        sent.append(total)
    # Beside the window and what proxies hold, the kernel keeps what both ends of the first leg may: 4 + 32 MiB since Linux 6.16.
    kernel = sum(int(Path(f"/proc/sys/net/ipv4/{name}").read_text().split()[2]) for name in ("tcp_wmem", "tcp_rmem"))
    assert max(sent) < kernel + (16 << 20), "back-pressure must reach the writer"
    ours, theirs = joined(client, server, 9008)
    with ours, theirs:
        ours.sendall(b"I pass")
        assert exactly(theirs, 6) == b"I pass"
    for (ours, theirs), total in zip(stalled, sent, strict=True):
        receiver = Receiver(theirs)
        ours.close()
        receiver.join(30)
        assert receiver.count == total
        theirs.close()


def test_two_thousand_connections_at_once(mesh: Cluster) -> None:
    client, server = mesh.pods["client"], mesh.pods["far"]
    count = 2000
    ours: list[socket.socket] = []
    theirs: dict[bytes, socket.socket] = {}
    with server.listen(9009) as listener, selectors.DefaultSelector() as selector:
        listener.setblocking(False)
        selector.register(listener, selectors.EVENT_READ)
        for number in range(count):
            sock = client.connect(server.ip, 9009)
            sock.sendall(struct.pack("!I", number))
            ours.append(sock)

        def accepted() -> bool:
            for _ in selector.select(0.05):
                while True:
                    try:
                        sock, _ = listener.accept()
                    except BlockingIOError:
                        break
                    sock.settimeout(10)
                    theirs[exactly(sock, 4)] = sock
            return len(theirs) == count

        wait_until(accepted, "all connections are accepted", 30)
        for number in range(count):
            theirs[struct.pack("!I", number)].sendall(struct.pack("!I", number ^ 0xFFFFFFFF))
        for number, sock in enumerate(ours):
            assert exactly(sock, 4) == struct.pack("!I", number ^ 0xFFFFFFFF)
        assert len(mesh.agents[0].get("/connections")["connections"]) >= count
        for sock in (*ours, *theirs.values()):
            sock.close()
    wait_until(lambda: not mesh.agents[0].get("/connections")["connections"], "all have ended")
    wait_until(lambda: not mesh.agents[1].get("/connections")["connections"], "all have ended")


def test_what_happened_stands_in_the_access_log(mesh: Cluster) -> None:
    client, server = mesh.pods["client"], mesh.pods["far"]
    ours, theirs = joined(client, server, 9010)
    with ours, theirs:
        ours.sendall(b"a" * 1000)
        exactly(theirs, 1000)
        theirs.sendall(b"b" * 300)
        exactly(ours, 300)
    for agent, direction in zip(mesh.agents, ("outbound", "inbound"), strict=True):
        (row,) = wait_until(lambda agent=agent: rows_of(agent, dst_addr=f"{server.ip}:9010"), "the line is there")
        assert row["direction"] == direction
        assert row["src.identity"] == client.identity
        assert row["dst.identity"] == server.identity
        assert {row["bytes_sent"], row["bytes_recv"]} == {1000, 300}
        assert "error" not in row
