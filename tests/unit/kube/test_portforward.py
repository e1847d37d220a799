"""A request through the API server's port-forward; that a real API server and kubelet's library speak it, says tests/cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web

from nodeproxy.errors import ClusterError
from nodeproxy.kube import portforward
from nodeproxy.kube.client import KubeClient
from nodeproxy.kube.portforward import PROTOCOL, Answer, AnswerReader
from tests.unit.kube.playing_server import PlayingServer, Script, says

FORWARD = "/api/v1/namespaces/system/pods/agent/portforward"
PORT = (15000).to_bytes(2, "little")
Talk = Callable[[web.WebSocketResponse, web.Request], Awaitable[None]]


def upgraded(talk: Talk) -> Script:
    async def script(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(protocols=(PROTOCOL,))
        await socket.prepare(request)
        await socket.send_bytes(b"\0" + PORT)
        await socket.send_bytes(b"\1" + PORT)
        await talk(socket, request)
        await socket.close()
        return socket

    return script


def sends(*messages: bytes) -> Script:
    async def talk(socket: web.WebSocketResponse, request: web.Request) -> None:
        await socket.receive_bytes()
        for message in messages:
            await socket.send_bytes(message)

    return upgraded(talk)


def get(
    folder: Path, *scripts: Script, timeout_s: float = 5.0, grant: str = "ask an admin"
) -> tuple[Answer | str, PlayingServer]:
    """The answer or the error's text."""
    server = PlayingServer(folder)
    left = list(scripts)

    async def play(request: web.Request) -> web.StreamResponse:
        server.token_file.write_text("second\n")  # what a 401 is answered by
        return await left.pop(0)(request)

    async def main() -> Answer | str:
        server.others[FORWARD] = play
        async with server.serving():
            client = await KubeClient.connect(server.kubeconfig, grant=grant)
            try:
                return await portforward.get(client, "system", "agent", 15000, "/why", {"a": "b c"}, timeout_s=timeout_s)
            except ClusterError as exc:
                return str(exc)
            finally:
                await client.close()

    return asyncio.run(main()), server


def test_an_answer_comes_in_pieces(tmp_path: Path) -> None:
    asked = []

    async def talk(socket: web.WebSocketResponse, request: web.Request) -> None:
        asked.append(await socket.receive_bytes())
        for piece in (b"HTTP/1.1 409 Conflict\r\nContent-Le", b"ngth: 7\r\n\r\n{}", b"12345"):
            await socket.send_bytes(b"\0" + piece)
        await socket.receive()  # until the client has had enough

    answer, server = get(tmp_path, upgraded(talk))
    assert answer == Answer(409, b"{}12345")
    assert asked[0].startswith(b"\0GET /why?a=b+c HTTP/1.1\r\nHost: localhost\r\n")
    assert server.asked == [("GET", FORWARD, {"ports": "15000"})]
    assert server.headers[0]["Authorization"] == "Bearer first"


def test_a_token_that_ran_out_is_read_again(tmp_path: Path) -> None:
    answer, server = get(tmp_path, says(401), sends(b"\0HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"))
    assert answer == Answer(200, b"")
    assert [headers["Authorization"] for headers in server.headers] == ["Bearer first", "Bearer second"]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (says(403, 'pods "agent" is forbidden'), 'the API server says 403 pods "agent" is forbidden; ask an admin'),
        (says(500, "error dialing backend: refused"), "says 500 error dialing backend: refused"),
        (sends(b"\1error forwarding port: connection refused"), "kubelet can't connect to it: error forwarding port: connection"),
        (sends(), "ended before the answer was whole"),
        (sends(b"\0HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"), "ended before the answer was whole"),
        (sends(b"\0SSH-2.0-OpenSSH\r\n\r\n"), "is no nodeproxy agent's admin API: it answers with 'SSH-2.0-OpenSSH'"),
        (sends(b"\0HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"), "status 200 without a length"),
    ],
)
def test_what_goes_wrong_is_said(tmp_path: Path, script: Script, said: str) -> None:
    answer, _ = get(tmp_path, script)
    assert said in str(answer)


def test_a_node_that_is_silent_is_not_waited_for(tmp_path: Path) -> None:
    async def silent(socket: web.WebSocketResponse, request: web.Request) -> None:
        await socket.receive_bytes()
        await socket.receive()

    answer, _ = get(tmp_path, upgraded(silent), timeout_s=0.05)
    assert "no answer within 0.05 s" in str(answer)


def test_nothing_is_read_without_a_limit() -> None:
    with pytest.raises(ClusterError, match="a header without end"):
        AnswerReader("x").feed(b"HTTP/1.1 200 OK\r\n" + b"a" * portforward.MAX_HEADER_BYTES)
    with pytest.raises(ClusterError, match="an answer of 2 MiB is not read"):
        AnswerReader("x", 1 << 20).feed(b"HTTP/1.1 200 OK\r\nContent-Length: 2097152\r\n\r\n")
    for head in (
        b"HTTP/1.1 2x0",
        b"HTTP/2 200",
        b"",
        b"HTTP/1.1 200\r\ncontent-length: -1",
        b"HTTP/1.1 200\r\ncontent-length: 1e3",
    ):
        with pytest.raises(ClusterError, match="is no nodeproxy"):
            AnswerReader("x").feed(head + b"\r\n\r\n")
