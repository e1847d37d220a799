"""What two ends of one connection do to each other, whatever lies between them."""

from __future__ import annotations

import hashlib
import http.client
import http.server
import json
import os
import select
import socket
import struct
import threading
from collections.abc import Callable

from tests.mesh.cluster import MeshPod, exactly

Pair = tuple[socket.socket, socket.socket]
JOIN_S = 30.0
_BLOCK_BYTES = 1 << 20
_LINGER_RESET = struct.pack("ii", 1, 0)


def joined(connect: Callable[[], socket.socket], server: MeshPod, port: int) -> Pair:
    """The client's and the application's end of one connection."""
    with server.listen(port) as listener:
        ours = connect()
        try:
            theirs, _ = listener.accept()
        except BaseException:
            ours.close()
            raise
        theirs.settimeout(JOIN_S)
        ours.settimeout(JOIN_S)
        return ours, theirs


class _Worker(threading.Thread):
    """Half of a transfer; what went wrong in it is raised by `result`."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(daemon=True)
        self.sock, self.hash, self.count = sock, hashlib.sha256(), 0
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self.work()
        except Exception as error:  # of whatever kind: the test's own thread raises it again
            self.error = error

    def work(self) -> None:
        raise NotImplementedError

    def result(self) -> tuple[int, str]:
        self.join(JOIN_S)
        if self.error is not None:
            raise self.error
        return self.count, self.hash.hexdigest()


class _Sender(_Worker):
    def __init__(self, sock: socket.socket, size: int) -> None:
        super().__init__(sock)
        self.size = size

    def work(self) -> None:
        block = memoryview(os.urandom(_BLOCK_BYTES))
        while self.count < self.size:
            chunk = block[: min(self.size - self.count, _BLOCK_BYTES)]
            self.sock.sendall(chunk)
            self.hash.update(chunk)
            self.count += len(chunk)


class _Receiver(_Worker):
    def __init__(self, sock: socket.socket, size: int) -> None:
        super().__init__(sock)
        self.size = size

    def work(self) -> None:
        buffer = memoryview(bytearray(_BLOCK_BYTES))
        while self.count < self.size:
            count = self.sock.recv_into(buffer[: min(self.size - self.count, _BLOCK_BYTES)])
            if count == 0:
                raise EOFError(f"the stream ended after {self.count} of {self.size} bytes")
            self.hash.update(buffer[:count])
            self.count += count


def bulk(ends: Pair, size: int) -> None:
    """`size` bytes each way at once arrive as they were sent."""
    ours, theirs = ends
    ways = ((ours, theirs), (theirs, ours))
    transfers = [(_Sender(source, size), _Receiver(sink, size)) for source, sink in ways]
    for transfer in transfers:
        for worker in transfer:
            worker.start()
    for sender, receiver in transfers:
        assert sender.result() == receiver.result()


def half_close(first: socket.socket, second: socket.socket, answer_bytes: int = 3_000_000) -> None:
    """`first` has said all; `second` still answers at length, and ends."""
    first.sendall(b"all I had to say")
    first.shutdown(socket.SHUT_WR)
    assert exactly(second, 16) == b"all I had to say"
    assert second.recv(1) == b""
    sender, receiver = _Sender(second, answer_bytes), _Receiver(first, answer_bytes)
    sender.start()
    receiver.start()
    assert sender.result() == receiver.result()
    second.shutdown(socket.SHUT_WR)
    assert first.recv(1) == b""


def reset(sock: socket.socket) -> None:
    """Close by RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    sock.close()


def echo_once(ends: Pair, text: bytes = b"ping") -> None:
    ours, theirs = ends
    ours.sendall(text)
    assert exactly(theirs, len(text)) == text
    theirs.sendall(text[::-1])
    assert exactly(ours, len(text)) == text[::-1]


def arrives(connect: Callable[[], socket.socket], listener: socket.socket) -> bool:
    """Whether a connection comes to the application; not if it ends before."""
    try:
        sock = connect()
    except (ConnectionRefusedError, ConnectionResetError):  # a reset may be faster than the return of connect()
        return False
    with sock:
        readable, _, _ = select.select([sock, listener], [], [], JOIN_S)
        assert readable, "it neither arrived nor ended"
        if listener in readable:
            listener.accept()[0].close()
            return True
    return False


def ends_late(ours: socket.socket, theirs: socket.socket, wait_ended: Callable[[], object]) -> None:
    """`theirs` says all and ends; `ours` reads when that was long ago."""
    answer = os.urandom(3 << 20)  # less than a stream's window: Envoy drops what is beyond
    theirs.sendall(answer)
    theirs.shutdown(socket.SHUT_WR)
    wait_ended()
    assert exactly(ours, len(answer)) == answer
    assert ours.recv(1) == b""


def many(connect: Callable[[], socket.socket], server: MeshPod, port: int, count: int) -> None:
    """`count` connections that are open at once, each with its own bytes each way."""
    ours: list[socket.socket] = []
    theirs: dict[int, socket.socket] = {}
    try:
        with server.listen(port) as listener:
            for number in range(count):
                sock = connect()
                ours.append(sock)
                sock.sendall(number.to_bytes(4, "big"))
            for _ in range(count):
                sock, _ = listener.accept()
                sock.settimeout(JOIN_S)
                theirs[int.from_bytes(exactly(sock, 4), "big")] = sock
        assert sorted(theirs) == list(range(count))
        for number, sock in theirs.items():
            sock.sendall(b"%04d" % number * 256)
        for number, sock in enumerate(ours):
            assert exactly(sock, 1024) == b"%04d" % number * 256
    finally:
        for sock in (*ours, *theirs.values()):
            sock.close()


class HttpApplication:
    """An HTTP server on a pod's port that answers with the request's headers as JSON."""

    def __init__(self, pod: MeshPod, port: int) -> None:
        self._server = http.server.ThreadingHTTPServer(("", port), _Headers, bind_and_activate=False)
        self._server.socket.close()
        self._server.socket = pod.listen(port, "::")
        self._server.socket.settimeout(None)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> HttpApplication:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(JOIN_S)


class _Headers(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = json.dumps({**dict(self.headers.items()), "client": self.client_address[0]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.send_header("connection", "close")  # so that it is in the access log when it was answered
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """What was asked is in the answer."""


def get(sock: socket.socket) -> dict[str, str]:
    """One GET over `sock`: the headers that the application saw, by their lower-case names."""
    connection = http.client.HTTPConnection("api.shop", timeout=JOIN_S)
    connection.sock = sock
    try:
        connection.request("GET", "/")
        response = connection.getresponse()
        assert response.status == 200, response.read()
        return {name.lower(): value for name, value in json.loads(response.read()).items()}
    finally:
        connection.close()
