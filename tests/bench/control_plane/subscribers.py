"""Many wildcard subscribers in one process, and the parent's end of it.

As a program it reads one line of JSON (`Plan`), then words: "connect N" opens so many streams more, "count" asks for what came so
far, and its input's end is its own.  It writes a line of JSON for each event: `full` (a stream has everything), `seen` (every
stream has a change), `counted`, `failed`.  A change is known by its mark in the bytes of a message, so nothing is decoded.  Times
are CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

import json
import os
import queue
import re
import selectors
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.bench.control_plane.delta_stream import ADDRESS, TYPES, DeltaStream, StreamError

MARK = "bench-{:08d}"
_MARKS = re.compile(MARK.replace("{:08d}", r"(\d{8})").encode())
_ROOT = Path(__file__).resolve().parents[3]
_RECEIVE_BYTES = 1 << 18
_URL = ADDRESS.encode()
_END_S = 10.0

Plan = dict[str, Any]
"""address and port of the control plane; roots: a file; tokens: one a stream; nodes: their names; namespace of their pods;
resources: how many addresses make a first push full."""


class Stream:
    """One subscriber and its socket."""

    def __init__(self, number: int, plan: Plan, context: ssl.SSLContext) -> None:
        self.number = number
        self.delta = DeltaStream(plan["address"], plan["tokens"][number], plan["nodes"][number], plan["namespace"])
        self.began = time.monotonic()
        raw = socket.create_connection((plan["address"], plan["port"]))
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = context.wrap_socket(raw, server_hostname=plan["address"])
        self.sock.setblocking(False)
        self.first: set[str] = set()
        self.full = False
        self.messages = self.resources = self.bytes = 0

    def write(self) -> None:
        """Send what there is to send."""
        while self.delta.outgoing:
            try:
                del self.delta.outgoing[: self.sock.send(self.delta.outgoing)]
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                return

    def read(self, take: Callable[[Stream, str, bytes], None]) -> None:
        """Take every message that is there."""
        while True:
            try:
                data = self.sock.recv(_RECEIVE_BYTES)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            if not data:
                raise StreamError("the connection was closed")
            for url, message in self.delta.received(data):
                take(self, url, message)
            self.write()


class Subscribers:
    """The streams of this process."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._context = ssl.create_default_context(cafile=plan["roots"])
        self._context.set_alpn_protocols(["h2"])
        self._streams: list[Stream] = []
        self._selector = selectors.DefaultSelector()
        self._seen: dict[int, list[float]] = {}
        self._words = bytearray()

    def run(self) -> None:
        """Until standard input ends."""
        os.set_blocking(0, False)
        self._selector.register(0, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.data is not None:
                    key.data.read(self._take)
                    self._want(key.data)
                elif not self._command():
                    return

    def _want(self, stream: Stream) -> None:
        """Be told of room to send only while there is something to send."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if stream.delta.outgoing else 0)
        if self._selector.get_key(stream.sock).events != events:
            self._selector.modify(stream.sock, events, stream)

    def _command(self) -> bool:
        data = os.read(0, 4096)
        self._words += data
        *lines, rest = bytes(self._words).split(b"\n")
        self._words[:] = rest
        for word in lines:
            if word.startswith(b"connect "):
                self._connect(int(word.split()[1]))
            elif word == b"count":
                _say(event="counted", streams=[[each.messages, each.resources, each.bytes] for each in self._streams])
        return bool(data)

    def _connect(self, count: int) -> None:
        for _ in range(count):
            stream = Stream(len(self._streams), self.plan, self._context)
            self._streams.append(stream)
            self._selector.register(stream.sock, selectors.EVENT_READ, stream)
            stream.write()
            self._want(stream)

    def _take(self, stream: Stream, url: str, message: bytes) -> None:
        now = time.monotonic()
        stream.messages += 1
        stream.bytes += len(message)
        if url == ADDRESS:
            stream.resources += message.count(_URL) - 1  # one of them is the message's own
        stream.first.add(url)
        if not stream.full:
            if stream.resources >= self.plan["resources"] and len(stream.first) == len(TYPES):
                stream.full = True
                _say(event="full", stream=stream.number, at=now, s=now - stream.began, bytes=stream.bytes)
            return
        for mark in _MARKS.findall(message):
            times = self._seen.setdefault(int(mark), [])
            times.append(now)
            if len(times) == len(self._streams):
                _say(event="seen", mark=int(mark), first=times[0], last=times[-1])
                del self._seen[int(mark)]


def _say(**event: Any) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


class Count(NamedTuple):
    """What a stream has received; resources: addresses."""

    messages: int
    resources: int
    bytes: int


class Group:
    """The parent's end: starts the process with `popen`, and hears what it says.  A context manager."""

    def __init__(self, plan: Plan, popen: Callable[..., subprocess.Popen[bytes]]) -> None:
        argv = [sys.executable, "-m", __name__]
        environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
        self._process = popen(argv, cwd=_ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._events: queue.Queue[dict[str, Any]] = queue.Queue()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        self._tell(json.dumps(plan))

    def connect(self, count: int, timeout_s: float) -> list[dict[str, Any]]:
        """Open streams; their `full` events.  Raises StreamError, TimeoutError."""
        self._tell(f"connect {count}")
        return [self._next("full", timeout_s) for _ in range(count)]

    def seen(self, timeout_s: float) -> dict[str, Any]:
        """The next change that every stream has."""
        return self._next("seen", timeout_s)

    def count(self) -> list[Count]:
        """Of each stream, since its beginning."""
        self._tell("count")
        return [Count(*each) for each in self._next("counted", _END_S)["streams"]]

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._thread.join()
        self._process.stdout.close()

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._events.put(json.loads(line))
        self._events.put({"event": "failed", "error": "the subscribers' process ended"})

    def _next(self, kind: str, timeout_s: float) -> dict[str, Any]:
        """The next event, which is of that kind."""
        try:
            event = self._events.get(timeout=timeout_s)
        except queue.Empty:
            raise TimeoutError(f"no subscriber said {kind} within {timeout_s} s") from None
        if event["event"] != kind:
            raise StreamError(f"subscribers were to say {kind} and said {event}")
        return event


def main() -> None:
    plan = json.loads(sys.stdin.buffer.raw.readline())
    try:
        Subscribers(plan).run()
    except (StreamError, OSError) as error:
        _say(event="failed", error=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
