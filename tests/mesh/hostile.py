"""A client of port 15008 that has a valid certificate and no manners; and what it costs the node."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
import time
from pathlib import Path

from nodeproxy.identity.local_ca import LocalCA
from nodeproxy.identity.tls import client_context
from nodeproxy.lab.topology import Host
from nodeproxy.linux.netns import inside
from nodeproxy.wire import frames
from nodeproxy.wire.frames import END_HEADERS, PREFACE, FrameType, Setting
from nodeproxy.wire.hpack_static import TABLE_SIZE_ZERO, encode_block
from tests.mesh.cluster import TIMEOUT_S, Agent, Cluster
from tests.mesh.evidence import HBONE_PORT

Fields = list[tuple[bytes, bytes]]


def raw(host: Host, address: str, port: int = HBONE_PORT, receive_bytes: int = 0) -> socket.socket:
    """A TCP connection from `host`."""
    with inside(host.netns_fd):
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    sock.settimeout(TIMEOUT_S)
    if receive_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    try:
        sock.connect((address, port))
    except BaseException:
        sock.close()
        raise
    return sock


def context(cluster: Cluster, account: str = "mallory") -> ssl.SSLContext:
    """What a member of the mesh shows; its CA made it."""
    ca = LocalCA.open(cluster.ca)
    issued = ca.issue(f"spiffe://cluster.local/ns/shop/sa/{account}")
    return client_context(issued.chain_pem, issued.key_pem, (cluster.ca / "root-cert.pem").read_bytes())


def connect_fields(authority: str) -> Fields:
    return [(b":method", b"CONNECT"), (b":authority", authority.encode())]


class Tunnel:
    """TLS stands; with `preface`, so does HTTP/2."""

    def __init__(self, sock: socket.socket, tls: ssl.SSLContext, *, preface: bool = True) -> None:
        self.sock = tls.wrap_socket(sock)
        self.source = "{}:{}".format(*self.sock.getsockname()[:2])
        self._buffer = b""
        if preface:
            self.send(PREFACE + frames.settings({Setting.HEADER_TABLE_SIZE: 0}) + frames.SETTINGS_ACK)

    def __enter__(self) -> Tunnel:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        """Send; an other end that has had enough by then is what attacks are after, and `until_closed` shows it."""
        with contextlib.suppress(ssl.SSLEOFError, BrokenPipeError, ConnectionResetError):
            self.sock.sendall(data)

    def flood(self, data: bytes, deadline_s: float = TIMEOUT_S) -> None:
        """Send until the other end has had enough; AssertionError if it never has."""
        deadline = time.monotonic() + deadline_s
        self.sock.settimeout(deadline_s)
        while time.monotonic() < deadline:
            try:
                self.sock.sendall(data)
            except OSError:
                return
        raise AssertionError("the node takes it without end")

    def frame(self) -> tuple[int, int, int, bytes]:
        """(kind, flags, stream, payload) of the next frame."""
        head = self._exactly(9)
        length = int.from_bytes(head[:3], "big")
        return head[3], head[4], int.from_bytes(head[5:9], "big"), self._exactly(length)

    def _exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            more = self.sock.recv(1 << 16)
            if not more:
                raise EOFError
            self._buffer += more
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    def until(self, *kinds: int) -> tuple[int, int, int, bytes]:
        """The next frame of one of these kinds."""
        while True:
            found = self.frame()
            if found[0] in kinds:
                return found

    def until_closed(self) -> None:
        """Read until the other end has closed, in whatever way."""
        try:
            while self.sock.recv(1 << 16):
                pass
        except TimeoutError:
            raise AssertionError("the node keeps it open") from None
        except OSError:
            return

    def request(self, stream: int, fields: Fields, *, end_stream: bool = False) -> bytes:
        """A HEADERS frame; the first one of a connection says that there is no dynamic table."""
        block = (TABLE_SIZE_ZERO if stream == 1 else b"") + encode_block(fields)
        return frames.headers(stream, block, end_stream=end_stream, max_frame_bytes=1 << 20)

    def status(self, stream: int) -> int:
        """The answer to a request."""
        while True:
            kind, _, number, payload = self.until(FrameType.HEADERS)
            if number == stream and kind == FrameType.HEADERS:
                match = re.search(rb"[1-5][0-9][0-9]", payload)
                # 200 and 400 have a place in HPACK's static table (RFC 7541, appendix A): 8 and 12.
                return int(match[0]) if match else {0x88: 200, 0x8C: 400}[payload.lstrip(b"\x20")[0]]


def unfinished(stream: int, block: bytes) -> bytes:
    """HEADERS without END_HEADERS."""
    return frames.frame_header(FrameType.HEADERS, 0, stream, len(block)) + block


def continuation(stream: int, block: bytes, *, end: bool = False) -> bytes:
    return frames.frame_header(FrameType.CONTINUATION, END_HEADERS if end else 0, stream, len(block)) + block


def worker_pids(agent: Agent) -> list[int]:
    return [worker["pid"] for worker in agent.get("/status")["workers"]]


def memory_mib(agent: Agent) -> float:
    """Proportional set size of all workers."""
    texts = (Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in worker_pids(agent))
    return sum(int(re.findall(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)[0]) for text in texts) / 1024


def descriptors(agent: Agent) -> int:
    """Open descriptors of all workers."""
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in worker_pids(agent))
