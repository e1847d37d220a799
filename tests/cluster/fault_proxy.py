"""A proxy between a client and the API server that passes everything through, until a test tells it to fail.

It speaks HTTP on loopback and TLS to the API server; the client's token is passed on.  It runs in a thread of its own.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

import aiohttp
import yaml
from aiohttp import web

from tests.cluster.apiserver import ApiServer
from tests.cluster.background import Background


class Fault(StrEnum):
    NONE = "none"
    CUT = "cut"  # connections are closed without an answer, and standing streams as well
    THROTTLE = "429"
    FAIL = "500"
    GARBAGE = "garbage"  # 200, and then nonsense
    TRUNCATE = "truncate"  # half of the answer


class FaultProxy:
    """Use it as a context.  seen: how many requests met which fault."""

    def __init__(self, api: ApiServer) -> None:
        self._api = api
        self._fault = Fault.NONE
        self.seen: Counter[Fault] = Counter()
        self._streams: set[asyncio.Task[Any]] = set()
        self._serving = threading.Event()
        self._background = Background("fault proxy", self._serve)

    def __enter__(self) -> Self:
        self._background.start()
        assert self._serving.wait(30), self._background.error
        return self

    def __exit__(self, *exc: object) -> None:
        self._background.stop()

    def kubeconfig(self, token: str) -> Path:
        path = self._api.kubeconfig(token, "proxied")
        content = yaml.safe_load(path.read_text())
        content["clusters"][0]["cluster"] = {"server": f"http://127.0.0.1:{self.port}"}
        path.write_text(yaml.safe_dump(content))
        return path

    def set(self, fault: Fault) -> None:
        """From now on; streams that stand are ended."""
        self._fault = fault
        self._background.call(self._end_streams)

    async def _serve(self, stop: asyncio.Event) -> None:
        connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=str(self._api.ca_file)))
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False, read_bufsize=1 << 20) as self._session:
            application = web.Application()
            application.router.add_route("*", "/{path:.*}", self._handle)
            runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.port = runner.addresses[0][1]
            self._serving.set()
            await stop.wait()
            self._end_streams()
            await runner.cleanup()

    def _end_streams(self) -> None:
        for task in list(self._streams):
            task.cancel()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        fault = self._fault
        self.seen[fault] += 1
        if fault in (Fault.THROTTLE, Fault.FAIL):
            return web.json_response({"kind": "Status", "message": "a test says so"}, status=int(fault))
        if fault is Fault.GARBAGE:
            return web.Response(body=b'{"type":"ADDED","object":{"meta\n\xff<html>\n')
        if fault is Fault.CUT:
            return _cut(request)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in ("host", "content-length")}
        body = await request.read()
        task = asyncio.current_task()
        assert task is not None
        self._streams.add(task)
        try:
            url = self._api.url + request.raw_path
            async with self._session.request(request.method, url, headers=headers, data=body or None) as answer:
                return await self._pass_on(request, answer, fault)
        except (aiohttp.ClientError, ConnectionError):
            return _cut(request)
        except asyncio.CancelledError:
            _cut(request)
            raise
        finally:
            self._streams.discard(task)

    async def _pass_on(self, request: web.Request, answer: aiohttp.ClientResponse, fault: Fault) -> web.StreamResponse:
        kept = ("Content-Type", "Content-Encoding", "Retry-After")
        response = web.StreamResponse(
            status=answer.status, headers={name: answer.headers[name] for name in kept if name in answer.headers}
        )
        if fault is Fault.TRUNCATE:
            content = await answer.content.readany()
            response.content_length = len(content)
            await response.prepare(request)
            await response.write(content[: len(content) // 2])
            _cut(request)
            return response
        await response.prepare(request)
        async for chunk in answer.content.iter_any():
            await response.write(chunk)
        await response.write_eof()
        return response


def _cut(request: web.Request) -> web.Response:
    if request.transport is not None:  # the client may have gone already
        request.transport.abort()
    return web.Response()
