"""Programs that run inside pods: `python programs.py NAME ADDRESS PORT`.  What a client saw it prints as JSON.

They use ordinary libraries in the ordinary way and know nothing of the mesh.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import Any

MIB = 1 << 20
_GRPC_OPTIONS = [("grpc.max_receive_message_length", 64 * MIB), ("grpc.enable_http_proxy", 0)]


def noise(seed: int, count: int) -> bytes:
    """Bytes that do not repeat and can be made again elsewhere."""
    return random.Random(seed).randbytes(count)


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


# ── aiohttp: chunked bodies both ways at once, and a WebSocket ──


def http_server(address: str, port: int) -> None:
    from aiohttp import web

    async def echo(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        async for chunk in request.content.iter_any():
            await response.write(chunk)
        await response.write_eof()
        return response

    async def chat(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=8 * MIB)
        await socket.prepare(request)
        async for message in socket:
            await socket.send_bytes(message.data[::-1])
        return socket

    app = web.Application(client_max_size=64 * MIB)
    app.add_routes([web.post("/echo", echo), web.get("/chat", chat)])
    web.run_app(app, host=address, port=port, print=None)


def http_client(address: str, port: int) -> None:
    import aiohttp

    async def echo(session: aiohttp.ClientSession, seed: int) -> bool:
        body = noise(seed, MIB + seed)

        async def chunks() -> Any:
            for start in range(0, len(body), 70_001):
                yield body[start : start + 70_001]

        async with session.post(f"http://{address}:{port}/echo", data=chunks()) as response:
            return await response.read() == body

    async def main() -> dict[str, Any]:
        async with aiohttp.ClientSession() as session:
            echoed = await asyncio.gather(*(echo(session, seed) for seed in range(20)))
            async with session.ws_connect(f"http://{address}:{port}/chat", max_msg_size=8 * MIB) as socket:
                reversed_ = []
                for size in (1, 126, 65_536, 3 * MIB):
                    message = noise(size, size)
                    await socket.send_bytes(message)
                    reversed_.append(await socket.receive_bytes() == message[::-1])
            return {"echoed": sum(echoed), "reversed": sum(reversed_)}

    print(json.dumps(asyncio.run(main())))


# ── gRPC: a unary call and the three kinds of streams, messages as they are ──


def grpc_server(address: str, port: int) -> None:
    import grpc

    def unary(request: bytes, context: Any) -> bytes:
        if request == b"fail":
            context.set_trailing_metadata((("why", "asked-to"),))
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as you wish")
        return request[::-1]

    def down(request: bytes, context: Any) -> Iterator[bytes]:
        for seed in range(int(request)):
            yield noise(seed, 100_000)

    def up(requests: Iterable[bytes], context: Any) -> bytes:
        return digest(b"".join(requests)).encode()

    def both(requests: Iterable[bytes], context: Any) -> Iterator[bytes]:
        for request in requests:
            yield request[::-1]

    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Down": grpc.unary_stream_rpc_method_handler(down),
        "Up": grpc.stream_unary_rpc_method_handler(up),
        "Both": grpc.stream_stream_rpc_method_handler(both),
    }
    server = grpc.server(futures.ThreadPoolExecutor(16), options=_GRPC_OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", handlers),))
    server.add_insecure_port(f"{address}:{port}")
    server.start()
    server.wait_for_termination()


def grpc_client(address: str, port: int) -> None:
    import grpc

    with grpc.insecure_channel(f"{address}:{port}", options=_GRPC_OPTIONS) as channel:
        unary = channel.unary_unary("/test.Test/Unary")
        large = noise(1, 16 * MIB)
        calls = [unary.future(noise(seed, 1000)) for seed in range(200)]
        parts = [noise(seed, 50_000) for seed in range(100)]
        try:
            unary(b"fail")
            failure: list[Any] = []
        except grpc.RpcError as error:
            failure = [error.code().name, error.details(), dict(error.trailing_metadata())["why"]]
        result = {
            "peer": channel.unary_unary("/test.Test/Unary").with_call(b"x")[1].code().name,
            "large": unary(large) == large[::-1],
            "calls": sum(call.result() == noise(seed, 1000)[::-1] for seed, call in enumerate(calls)),
            "down": list(channel.unary_stream("/test.Test/Down")(b"50")) == [noise(seed, 100_000) for seed in range(50)],
            "up": channel.stream_unary("/test.Test/Up")(iter(parts)) == digest(b"".join(parts)).encode(),
            "both": _in_turn(channel.stream_stream("/test.Test/Both"), 300),
            "failure": failure,
        }
    print(json.dumps(result))


def _in_turn(call: Any, count: int) -> bool:
    """A conversation: each message is sent only when the answer to the one before is there."""
    import queue

    outgoing: queue.Queue[bytes | None] = queue.Queue()
    answers = call(iter(outgoing.get, None))
    for seed in range(count):
        outgoing.put(noise(seed, 10 + seed))
        if next(answers) != noise(seed, 10 + seed)[::-1]:
            return False
    outgoing.put(None)
    return list(answers) == []


PROGRAMS: dict[str, Callable[[str, int], None]] = {
    "http-server": http_server,
    "http-client": http_client,
    "grpc-server": grpc_server,
    "grpc-client": grpc_client,
}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
