"""A request to a port of a pod, through the API server's port-forward: one WebSocket, one GET, its answer.

The protocol is the one that kubelets have spoken since 1.6, `v4.channel.k8s.io`: a message's first byte is its channel, 0 the
port's bytes, 1 an error's text; the first message on each is the port's number in two bytes.  The API server hands it to the
kubelet, which connects to the port on the loopback of the pod's network namespace.  (What kubectl speaks, SPDY within a
WebSocket, is refused by servers before 1.30 and needs SPDY.)
Invariant: nothing is read without a limit of bytes and time, and whatever goes wrong is a ClusterError that says at which of the
stations.  It must not know what is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from urllib.parse import urlencode

import aiohttp
import msgspec

from nodeproxy.errors import ClusterError
from nodeproxy.kube.client import KubeClient

PROTOCOL = "v4.channel.k8s.io"
MAX_ANSWER_BYTES = 256 << 20  # 100,000 connections of some 2 KB
MAX_HEADER_BYTES = 64 << 10
MAX_ERROR_BYTES = 1 << 10  # of what a kubelet says; a sentence
_PORT_BYTES = 2
_DATA, _ERROR = 0, 1


class Answer(msgspec.Struct, frozen=True):
    """An HTTP answer."""

    status: int
    body: bytes


async def get(
    client: KubeClient, namespace: str, pod: str, port: int, path: str, query: Mapping[str, str], *, timeout_s: float
) -> Answer:
    """GET `path` of what listens on 127.0.0.1:`port` in the pod.  Raises ClusterError."""
    where = f"port {port} of pod {namespace}/{pod}"
    target = f"{path}?{urlencode(query)}" if query else path
    request = f"GET {target} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\nConnection: close\r\n\r\n"
    forward = f"/api/v1/namespaces/{namespace}/pods/{pod}/portforward"
    try:
        async with asyncio.timeout(timeout_s), client.websocket(forward, {"ports": f"{port}"}, PROTOCOL) as socket:
            # A kubelet that can't connect says so and is gone, perhaps before this is sent; what it said is read below.
            with contextlib.suppress(ConnectionError):
                await socket.send_bytes(bytes([_DATA]) + request.encode("ascii"))
            reader = AnswerReader(where)
            async with contextlib.aclosing(_channels(socket, where)) as data:
                async for chunk in data:
                    if (answer := reader.feed(chunk)) is not None:
                        return answer
    except TimeoutError as exc:
        raise ClusterError(f"{where}: no answer within {timeout_s:.3g} s; is its node up, and the agent's log quiet?") from exc
    raise ClusterError(f"{where}: the connection ended before the answer was whole; see the agent's log")


async def _channels(socket: aiohttp.ClientWebSocketResponse, where: str) -> AsyncGenerator[bytes, None]:
    """The port's bytes.  Raises ClusterError for what the kubelet says on the channel of errors."""
    begun = set()
    async for message in socket:
        if message.type is not aiohttp.WSMsgType.BINARY or not message.data:
            raise ClusterError(f"{where}: what came is no port-forward ({message.type.name}); is there a proxy in between?")
        channel, chunk = message.data[0], message.data[1:]
        if channel not in begun:
            begun.add(channel)
            chunk = chunk[_PORT_BYTES:]
        if channel == _ERROR and chunk:
            text = chunk[:MAX_ERROR_BYTES].decode(errors="replace").strip()
            raise ClusterError(f"{where}: its node's kubelet can't connect to it: {text}")
        if channel == _DATA and chunk:
            yield chunk


class AnswerReader:
    """HTTP/1.1 of a server that says how long its answer is, as ours do.  Bytes in, an answer out; no I/O."""

    def __init__(self, where: str, max_bytes: int = MAX_ANSWER_BYTES) -> None:
        self._where, self._max_bytes = where, max_bytes
        self._head = bytearray()
        self._body = bytearray()
        self._status = 0
        self._length = -1

    def feed(self, chunk: bytes) -> Answer | None:
        """The answer when it is whole.  Raises ClusterError for what is none, or too large."""
        if self._length < 0:
            self._head += chunk
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                if len(self._head) > MAX_HEADER_BYTES:
                    raise self._alien("a header without end")
                return None
            self._read_head(bytes(self._head[:end]))
            chunk = bytes(self._head[end + 4 :])
        self._body += chunk
        return Answer(self._status, bytes(self._body[: self._length])) if len(self._body) >= self._length else None

    def _read_head(self, head: bytes) -> None:
        first, *lines = head.decode("latin-1").split("\r\n")
        version, _, rest = first.partition(" ")
        status = rest[:3]
        if not version.startswith("HTTP/1.") or not status.isascii() or not status.isdigit():
            raise self._alien(f"{first[:80]!r}")
        fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = fields.get("content-length", "")
        if not length.isascii() or not length.isdigit() or len(length) > 15:
            raise self._alien(f"status {status} without a length")
        if int(length) > self._max_bytes:
            raise ClusterError(f"{self._where}: an answer of {int(length) >> 20} MiB is not read; narrow what is asked for")
        self._status, self._length = int(status), int(length)

    def _alien(self, what: str) -> ClusterError:
        return ClusterError(f"{self._where} is no nodeproxy agent's admin API: it answers with {what}")
