"""Many light clients of delta xDS in one process of its own: how long a controller takes to tell them all.

    python -m tests.bench.xds_clients TARGET COUNT [--token T] [--root FILE --name HOST]

Each gets everything, of both types, and acknowledges; it reads no more of a response than the nonce, so that many of them load a
machine less than the server does.  It writes a line of JSON when all have the whole state; then, for each line TEXT that it
reads, one when all have been sent a response that holds TEXT.  Times are seconds since the epoch.  It ends with its input.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path

import grpc
import grpc.aio
import uvloop

from nodeproxy.proto import discovery_pb2
from nodeproxy.xds.names import ADDRESS, AUTHORIZATION
from tests.xds_client import METHOD

_NONCE = 5  # DeltaDiscoveryResponse.nonce
_TYPE_URL = 4


def head(message: bytes) -> dict[int, str]:
    """type_url and nonce, by field number: the strings before the first resource, as nodeproxy's controller writes them."""
    found: dict[int, str] = {}
    at = 0
    while len(found) < 2:
        number, at = message[at] >> 3, at + 1
        size = shift = 0
        while True:
            byte, at = message[at], at + 1
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        if number in (_TYPE_URL, _NONCE):
            found[number] = message[at : at + size].decode()
        at += size
    return found


class Client:
    """One stream."""

    def __init__(self, clients: Clients, number: int) -> None:
        self.clients, self.number = clients, number
        self.whole_at: dict[str, float] = {}
        self.bytes = self.responses = 0

    async def run(self) -> None:
        async with self.clients.channel() as channel:
            call = channel.stream_stream(METHOD)(metadata=self.clients.metadata)
            for type_url in (ADDRESS, AUTHORIZATION):
                request = discovery_pb2.DeltaDiscoveryRequest(type_url=type_url)
                request.node.id = f"ztunnel~10.0.0.1~bench-{self.number}.bench~bench.svc.cluster.local"
                await call.write(request.SerializeToString())
            while True:
                message = await call.read()
                if not isinstance(message, bytes):
                    raise SystemExit(f"client {self.number} was sent away: {await call.code()} {await call.details()}")
                now, fields = time.time(), head(message)
                self.bytes += len(message)
                self.responses += 1
                self.whole_at.setdefault(fields[_TYPE_URL], now)
                self.clients.came(self, message, now)
                reply = discovery_pb2.DeltaDiscoveryRequest(type_url=fields[_TYPE_URL], response_nonce=fields[_NONCE])
                await call.write(reply.SerializeToString())


class Clients:
    """All of them."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.metadata = (("authorization", f"Bearer {arguments.token}"),) if arguments.token else ()
        self.clients = [Client(self, number) for number in range(arguments.count)]
        self._arguments = arguments
        self._wanted: dict[bytes, dict[int, float]] = {}
        self._began = time.time()
        self._whole = False

    def channel(self) -> grpc.aio.Channel:
        options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        if self._arguments.root is None:
            return grpc.aio.insecure_channel(self._arguments.target, options=options)
        options.append(("grpc.ssl_target_name_override", self._arguments.name))
        credentials = grpc.ssl_channel_credentials(self._arguments.root.read_bytes())
        return grpc.aio.secure_channel(self._arguments.target, credentials, options=options)

    def came(self, client: Client, message: bytes, now: float) -> None:
        for text, seen in list(self._wanted.items()):
            if client.number not in seen and text in message:
                seen[client.number] = now
                if len(seen) == len(self.clients):
                    del self._wanted[text]
                    self._tell(text=text.decode(), times=seen.values())
        if not self._whole and all(len(each.whole_at) == 2 for each in self.clients):
            self._whole = True
            self._tell(text="", times=[max(each.whole_at.values()) for each in self.clients])

    def _tell(self, *, text: str, times: object) -> None:
        ordered = sorted(times)  # type: ignore[call-overload]
        line = {
            "text": text,
            "began": self._began,
            "first": ordered[0],
            "median": ordered[len(ordered) // 2],
            "last": ordered[-1],
            "bytes": sum(client.bytes for client in self.clients),
            "responses": sum(client.responses for client in self.clients),
            "cpu_s": time.process_time(),
        }
        print(json.dumps(line), flush=True)

    async def run(self) -> None:
        tasks = [asyncio.create_task(client.run()) for client in self.clients]
        loop = asyncio.get_running_loop()
        reader = asyncio.create_task(self._read(loop))
        done, _ = await asyncio.wait((reader, *tasks), return_when=asyncio.FIRST_COMPLETED)
        for task in (reader, *tasks):
            task.cancel()
        await asyncio.gather(reader, *tasks, return_exceptions=True)
        for task in done:
            task.result()

    async def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            self._wanted[line.strip().encode()] = {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("count", type=int)
    parser.add_argument("--token", default="")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--name", default="")
    uvloop.run(Clients(parser.parse_args()).run())


if __name__ == "__main__":
    main()
