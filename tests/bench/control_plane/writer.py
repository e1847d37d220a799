"""Writes very many objects to an API server: over many kept connections, with no more Python for each request than it needs."""

from __future__ import annotations

import contextlib
import itertools
import json
import queue
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tests.cluster.apiserver import ADMIN, ApiServer
from tests.cluster.kinds import Object, list_path

_CONNECTIONS = 16
_TIMEOUT_S = 60.0
_END = b"\r\n"
# What a thread takes at a time, and after how many objects it is told how far it is.
_BATCH = 50
_PROGRESS = 5000


class WriteError(Exception):
    """The API server did not take an object."""


class Connection:
    """HTTP/1.1 to an API server as its administrator; each request is answered before the next is sent."""

    def __init__(self, api: ApiServer) -> None:
        self._head = f" HTTP/1.1\r\nHost: api\r\nAuthorization: Bearer {api.tokens[ADMIN]}\r\n"
        # Answers are not read but for their status, and this form costs the server least.
        self._head += "Accept: application/vnd.kubernetes.protobuf, application/json\r\n"
        context = ssl.create_default_context(cafile=str(api.ca_file))
        with api.inside():
            raw = socket.create_connection((api.address, api.port), _TIMEOUT_S)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = context.wrap_socket(raw, server_hostname=api.address)
        self._buffer = bytearray()

    def send(self, request: bytes) -> None:
        self._sock.sendall(request)

    def request(self, method: str, path: str, body: Any, content_type: str = "application/json") -> bytes:
        """One request as bytes."""
        content = json.dumps(body, separators=(",", ":"))
        return (
            f"{method} {path}{self._head}Content-Type: {content_type}\r\nContent-Length: {len(content)}\r\n\r\n{content}".encode(
                "ascii"
            )
        )

    def status(self) -> tuple[int, bytes]:
        """Status and body (of chunks, with their sizes in it) of the next answer."""
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            self._more()
        head = bytes(self._buffer[: end + 2])
        del self._buffer[: end + 4]
        at = head.lower().find(b"content-length: ")
        if at >= 0:
            length = int(head[at + 16 : head.index(_END, at)])
            while len(self._buffer) < length:
                self._more()
        else:
            length = self._chunks()
        body = bytes(self._buffer[:length])
        del self._buffer[:length]
        return int(head[9:12]), body

    def _chunks(self) -> int:
        """How long the chunks are that follow, their sizes included."""
        at = 0
        while True:
            while (end := self._buffer.find(_END, at)) < 0:
                self._more()
            size = int(self._buffer[at:end], 16)
            at = end + 2 + size + 2
            while len(self._buffer) < at:
                self._more()
            if size == 0:
                return at

    def _more(self) -> None:
        data = self._sock.recv(65536)
        if not data:
            raise WriteError("the API server closed the connection")
        self._buffer += data

    def close(self) -> None:
        self._sock.close()


def write(api: ApiServer, objects: Iterable[Object], progress: Callable[[int], None], connections: int = _CONNECTIONS) -> int:
    """Create them all, in no certain order, but without a status; how many.  progress(how many so far) is called now and then.

    Raises WriteError.
    """
    items = iter(objects)
    taking, done = threading.Lock(), [0]
    errors: queue.Queue[BaseException] = queue.Queue()
    stopping = threading.Event()

    def batches() -> Iterator[list[Object]]:
        while not stopping.is_set():
            with taking:
                batch = list(itertools.islice(items, _BATCH))
            if not batch:
                return
            yield batch
            with taking:
                before, done[0] = done[0], done[0] + len(batch)
                if before // _PROGRESS != done[0] // _PROGRESS:
                    progress(done[0])

    def work() -> None:
        try:
            with contextlib.closing(Connection(api)) as connection:
                for batch in batches():
                    for item in batch:
                        _create(connection, item)
        except Exception as error:
            stopping.set()
            errors.put(error)

    threads = [threading.Thread(target=work) for _ in range(connections)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException:
        stopping.set()
        raise
    if not errors.empty():
        raise WriteError("objects could not be written") from errors.get()
    return done[0]


def _create(connection: Connection, item: Object) -> None:
    connection.send(connection.request("POST", list_path(item["kind"], item["metadata"].get("namespace", "")), item))
    status, body = connection.status()
    if status != 201:
        raise WriteError(f"{item['kind']} {item['metadata']['name']}: {status} {body[:300]!r}")
